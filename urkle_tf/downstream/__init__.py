"""`adapt`: from an exported encoder and labels to a classifier; the function behind `finetune`."""

import json
import os

import keras
import numpy as np

from urkle_tf import errors, export, networks, runs, spec
from urkle_tf.data import compatibility, pipeline, sources
from urkle_tf.downstream import _labels
from urkle_tf.downstream.base import Protocol, Task
from urkle_tf.networks.classifier import Classifier


def _linear(features, classes):
  return networks.mlp(features, [classes], "head")


def _mlp(features, classes, width=256, layers=3):
  if layers < 1 or width < 1:
    raise errors.UserError("mlp: width and layers must be at least 1")
  return networks.mlp(features, [width] * (layers - 1) + [classes], "head")


HEADS = {"linear": _linear, "mlp": _mlp}


def adapt(
  encoder,
  output_dir,
  protocol="slf",
  head="linear",
  dataset="digits",
  data_dir=None,
  download=False,
  split="train",
  validation_split=None,
  examples=None,
  image_size=None,
  labels=None,
  augment="none",
  augment_copies=1,
  optimizer="adamw",
  learning_rate=1e-2,
  weight_decay=1e-4,
  batch_size=512,
  epochs=50,
  samples=20,
  seed=0,
  log_every=50,
):
  """Makes a classifier of an exported encoder, in a run's folder.

  Writes `flags.cfg`, `metrics.jsonl` and `classifier/`.  On the folder of the same settings
  that is finished it trains nothing and returns the same.

  Args:
    encoder: the exported encoder's folder.
    output_dir: the run's folder.
    protocol: spec of how: `"slf"`, a frozen encoder and a head trained on clean images.
    head: spec of the head: `"linear"` or `"mlp(width=256, layers=3)"`.
    dataset: a TFDS name, `"digits"` or `"folder:PATH"`.
    data_dir: where prepared TFDS data lies; None for TFDS's own folder.
    download: whether TFDS may download.
    split: the labelled split, with slices.
    validation_split: held-out images to report the accuracy on; None for no report.
    examples: use the first so many examples of the split.
    image_size: resize to squares; None for the images' own size.
    labels: how many labels to use, a count or a fraction below 1, drawn evenly from the
      classes; None for all.
    augment: spec of the augmentation: `"none"`, `"crop(padding=4)"`.
    augment_copies: how many augmented copies of each image, where there is augmentation; the
      image itself is used too.
    optimizer: spec: `"adamw"` or `"sgd(momentum=0.9)"`.
    learning_rate: its highest value; cosine to 0 per step.
    weight_decay: decoupled; biases and batch norms are left out.
    batch_size: images a step.
    epochs: passes over the labelled images.
    samples: how many z a served prediction averages over.
    seed: everything random is a function of it.
    log_every: steps between rows of metrics.

  Returns:
    The last row of metrics, with `"classifier"`: the folder of the export.

  Raises:
    UserError: for settings, data or folders that do not fit.
  """
  settings = dict(locals())
  for name in ("epochs", "batch_size", "log_every", "samples"):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  name = spec.parse(protocol)[0]
  if name not in spec.names("downstream"):
    raise errors.unknown("protocol", name, spec.names("downstream"))
  method = spec.build("downstream", protocol, Protocol)
  if not encoder:
    raise errors.UserError("give --encoder=FOLDER: the export of a trained encoder")
  metadata = export.read_metadata(encoder, "encoder")
  open_split = lambda part, first: sources.load(  # noqa: E731
    dataset, part, data_dir, download, image_size, first
  )
  source = open_split(split, examples)
  compatibility.check_images(metadata["image_size"], source)
  compatibility.check_labelled(source)
  validation = None
  if validation_split:
    validation = open_split(validation_split, None)
    compatibility.check_images(metadata["image_size"], validation)
    compatibility.check_labelled(validation)
    compatibility.check_classes(len(source.class_names), source.class_names, validation)
  all_labels = source.labels if source.labels is not None else _read_labels(source)
  chosen = _labels.choose(all_labels, labels, seed)
  keras.utils.set_random_seed(seed)
  loaded = export.load_encoder(encoder)
  classifier = Classifier(
    loaded.network,
    spec.call(HEADS, head, "head", features=loaded.latent_dim, classes=len(source.class_names)),
    loaded.stochastic,
    samples,
  )
  classifier.class_names = list(source.class_names)
  task = Task(
    encoder=loaded,
    classifier=classifier,
    source=source,
    chosen=chosen,
    labels=np.asarray(all_labels)[chosen],
    validation=validation,
    augment=augment,
    augment_copies=augment_copies,
    optimizer=optimizer,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    batch_size=batch_size,
    epochs=epochs,
    seed=seed,
    log_every=log_every,
  )
  method.check(task)  # the last that can be wrong: a mistake leaves no folder behind

  run = runs.open_run(output_dir, settings)
  try:
    folder = run.path / "classifier"
    if (folder / "metadata.json").exists():
      done = export.read_metadata(folder, "classifier")
      if done.get("encoder_fingerprint") != metadata["fingerprint"]:
        raise errors.UserError(
          f"{run.path} holds a classifier of another encoder than {encoder} holds now: give "
          "another --output_dir"
        )
      print(f"{run.path} is finished: nothing to do")
      return {**run.metrics()[-1], "classifier": str(folder)}
    run.rewind_metrics(-1)  # an interrupted head is trained afresh: it takes seconds
    if labels is not None:
      _list_chosen(run.path / "labels.json", chosen)
    row = method.fit(task, run)
    kept = {name: metadata[name] for name in ("norm", "epsilon") if name in metadata}
    export.export_classifier(
      classifier,
      folder,
      {
        **kept,
        "dataset": export.settings_without_paths(settings)["dataset"],
        "settings": settings,
        "encoder_settings": metadata.get("settings", {}),
        "encoder_fingerprint": metadata["fingerprint"],
      },
    )
  finally:
    run.close()
  return {**row, "classifier": str(folder)}


def _read_labels(source):
  return np.concatenate([batch["label"].numpy() for batch in pipeline.batches(source, 500)])


def _list_chosen(file, chosen):
  """Writes which examples of the split had their labels used."""
  side = file.with_suffix(".side")
  side.write_text(json.dumps({"positions": chosen.tolist()}) + "\n")
  os.replace(side, file)
