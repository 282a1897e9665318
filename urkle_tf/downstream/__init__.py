"""From an exported encoder and labels to a predictor: the functions behind `finetune`."""

import dataclasses
import json
import pathlib
import statistics

import keras
import numpy as np

from urkle_tf import attacks, errors, export, networks, spec
from urkle_tf.data import compatibility, pipeline, sources
from urkle_tf.downstream import _labels
from urkle_tf.downstream.base import Protocol, Task
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor
from urkle_tf.output import files
from urkle_tf.settings import Adapt, arguments
from urkle_tf.training import preemption, runs


def _linear(features, outputs):
  return networks.mlp(features, [outputs], "head")


def _mlp(features, outputs, width=256, layers=3):
  if layers < 1 or width < 1:
    raise errors.UserError("mlp: width and layers must be at least 1")
  return networks.mlp(features, [width] * (layers - 1) + [outputs], "head")


HEADS = {"linear": _linear, "mlp": _mlp}
FEATURES = ("loc", "pooled")
SELECT = ("clean", "robust")
_ATTACK = ("norm", "epsilon", "attack_steps", "attack_step_size")  # settings of the attack


@arguments(Adapt)
def adapt(given):
  """Makes a classifier or a regressor of an exported encoder, in a run's folder.

  Writes `flags.cfg`, `metrics.jsonl`, `labels.json` where `labels` is given, and `classifier/`,
  or `regressor/` where the labels are numbers.  On the folder of the same settings that is
  finished it trains nothing and returns the same; one that was killed resumes at its last epoch,
  but for a head of `slf`, which is trained afresh; its weight decays that were tried are kept.
  SIGTERM and Ctrl-C end the step and write a checkpoint, at which all protocols resume.  However
  often it is interrupted, it ends with the same bits.

  Returns:
    The row of metrics of the weights that were exported, with `"classifier"` or `"regressor"`:
    the folder of the export; and `"selection"` where the weight decay was chosen: what
    metadata.json says of it, {"select", "held_out", "images", "weight_decay", "candidates"}.

  Raises:
    UserError: for settings, data or folders that do not fit.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training.
  """
  settings = dataclasses.asdict(given)
  name = spec.parse(given.protocol)[0]
  if name not in spec.names("downstream"):
    raise errors.unknown("protocol", name, spec.names("downstream"))
  method = spec.build("downstream", given.protocol, Protocol)
  if not given.encoder:
    raise errors.UserError("give --encoder=FOLDER: the export of a trained encoder, or preset:NAME")
  if given.features not in FEATURES:
    raise errors.unknown("choice of --features", given.features, FEATURES)
  if given.features != "loc" and not method.frozen:
    raise errors.UserError(
      f"--features={given.features} is for the head of a frozen encoder: use --protocol=slf or alf"
    )
  metadata = export.read_metadata(given.encoder, "encoder")
  unused = _settle(settings, method, metadata)
  for setting in ("epochs", "batch_size", "log_every", "samples"):
    if settings[setting] < 1:
      raise errors.UserError(f"--{setting} must be at least 1, got {settings[setting]}")
  open_split = lambda part, first: sources.load(  # noqa: E731
    given.dataset, part, given.data_dir, given.download, given.image_size, first
  )
  source = open_split(given.split, given.examples)
  compatibility.check_images(metadata["image_size"], source)
  compatibility.check_labelled(source)
  validation = None
  if given.validation_split:
    validation = open_split(given.validation_split, None)
    compatibility.check_images(metadata["image_size"], validation)
    compatibility.check_labelled(validation)
    if source.class_names is not None:
      compatibility.check_classes(len(source.class_names), source.class_names, validation)
  all_labels = np.asarray(source.labels if source.labels is not None else _read_labels(source))
  chosen = _labels.choose(all_labels, given.labels, given.seed)
  keras.utils.set_random_seed(given.seed)
  task = _task(settings, metadata, source, validation, chosen, all_labels[chosen], method)
  method.check(task)  # the last that can be wrong: a mistake leaves no folder behind
  if unused:
    print(f"{name} does not use {', '.join(unused)} with these settings")

  kind = "classifier" if task.classifies else "regressor"
  run = runs.open_run(given.output_dir, settings)
  try:
    folder = run.path / kind
    if (folder / "metadata.json").exists():
      done = export.read_metadata(folder, kind)
      if done.get("encoder_fingerprint") != metadata["fingerprint"]:
        raise errors.UserError(
          f"{run.path} holds a {kind} of another encoder than {given.encoder} holds now: give "
          "another --output_dir"
        )
      print(f"{run.path} is finished: nothing to do")
      row = _row(run, done.get("selected", {}).get("step"))
      if "selection" in done:
        row["selection"] = done["selection"]
      return {**row, kind: str(folder)}
    if given.labels is not None:
      _list_chosen(run.path / "labels.json", chosen)
    with preemption.watch() as watch:
      row = method.fit(dataclasses.replace(task, watch=watch), run)
    threat = task.attack.threat if task.attack else None
    trained = {"norm": threat.norm, "epsilon": float(threat.epsilon)} if threat else metadata
    details = {
      **{key: trained[key] for key in ("norm", "epsilon") if key in trained},
      "dataset": export.settings_without_paths(settings)["dataset"],
      "settings": settings,
      "encoder_settings": metadata.get("settings", {}),
      "encoder_fingerprint": metadata["fingerprint"],
      "selected": {key: row[key] for key in ("step", "epoch")},
      "selection": row.get("selection"),
    }
    if task.classifies:
      export.export_classifier(task.model, folder, details)
    else:
      export.export_regressor(_in_units(task), folder, details)
  finally:
    run.close()
  return {**row, kind: str(folder)}


def adapt_seeds(output_dir, seeds, seed=0, **settings):
  """`adapt` with several seeds, each in a folder of its own, and what they have in common.

  Writes `OUTPUT_DIR/seed-N/` for each seed N, and `OUTPUT_DIR/seeds.json`.  Seeds that are
  finished are not run again.  A seed decides which labels are drawn, the head's first weights,
  the noise and the order of images; the encoder is the same.

  Args:
    output_dir: the folder of all of them.
    seeds: how many: seed, seed + 1, ...
    seed: the first.
    **settings: of `adapt`.

  Returns:
    What `seeds.json` holds: {"seeds": [...], "runs": what `adapt` returned for each, without
    paths, "mean": {name: of every figure that begins with "validation"}, "deviation": the same,
    the sample standard deviation, empty for one seed}.

  Raises:
    UserError: as `adapt`, or for fewer seeds than one.
  """
  if seeds < 1:
    raise errors.UserError(f"--seeds must be at least 1, got {seeds}")
  folder, numbers, rows = pathlib.Path(output_dir), list(range(seed, seed + seeds)), []
  with preemption.watch() as watch:
    for number in numbers:
      watch.check(None, None)
      print(f"seed {number}: {folder}/seed-{number}", flush=True)
      row = adapt(output_dir=str(folder / f"seed-{number}"), seed=number, **settings)
      rows.append({k: v for k, v in row.items() if k not in ("classifier", "regressor")})
  figures = {name: [row[name] for row in rows] for name in rows[0] if name.startswith("validation")}
  result = {
    "seeds": numbers,
    "runs": rows,
    "mean": {name: statistics.fmean(values) for name, values in figures.items()},
    "deviation": {name: statistics.stdev(values) for name, values in figures.items() if seeds > 1},
  }
  files.write(folder / "seeds.json", json.dumps(result, indent=1) + "\n")
  return result


def _settle(settings, method, metadata):
  """Fills in what the user left open; returns the flags that are not used then."""
  given = [name for name in (*_ATTACK, "select") if settings[name] is not None]
  for name, value in method.defaults.items():
    if settings[name] is None:
      settings[name] = value
  if settings["weight_decay"] is not None:
    settings["select"] = None
  elif settings["select"] is None:
    robustness = str(metadata.get("settings", {}).get("robustness", "none"))
    settings["select"] = "clean" if robustness.split("(")[0].strip() == "none" else "robust"
  elif settings["select"] not in SELECT:
    raise errors.unknown("choice of --select", settings["select"], SELECT)
  if method.adversarial or settings["select"] == "robust":
    for name, usual in (("norm", "linf"), ("epsilon", 8 / 255), ("attack_steps", 10)):
      if settings[name] is None:
        settings[name] = metadata.get(name, usual)
  else:
    settings |= dict.fromkeys(_ATTACK)
  return [f"--{name}" for name in given if settings[name] is None]


def _task(settings, metadata, source, validation, chosen, labels, method):
  """The `Task` of settings that are settled; labels are the chosen ones of the data."""
  loaded = export.load_encoder(settings["encoder"])
  if settings["features"] == "pooled":
    features = networks.pooled(loaded.network)
    outputs = {"loc": features.output, "scale": keras.ops.ones_like(features.output)}  # unused
    network = keras.Model(features.input, outputs, name="network")
    loaded = export.ExportedEncoder(network, {**metadata, "stochastic": False})
  classifies, offset, spread = source.class_names is not None, 0.0, 1.0
  head = spec.call(
    HEADS,
    settings["head"],
    "head",
    features=loaded.latent_dim,
    outputs=len(source.class_names) if classifies else 1,
  )
  parts = (loaded.network, head, loaded.stochastic, settings["samples"])
  model = Classifier(*parts) if classifies else Regressor(*parts)
  if classifies:
    model.class_names = list(source.class_names)
  else:
    model.target = source.target
    offset, spread = float(labels.mean(dtype=np.float64)), float(labels.std(dtype=np.float64))
    if not spread > 0:
      raise errors.UserError(f"the labels of {source.name!r} are all the same number")
    labels = ((labels - offset) / spread).astype(np.float32)[:, None]
  attack = None
  if method.adversarial or settings["select"] == "robust":
    attack = attacks.PGD(
      attacks.from_norm(settings["norm"], settings["epsilon"]),
      steps=settings["attack_steps"],
      step_size=settings["attack_step_size"],
    )
  same = ("augment", "augment_copies", "optimizer", "learning_rate", "weight_decay", "select")
  return Task(
    folder=pathlib.Path(settings["encoder"]),
    encoder=loaded,
    model=model,
    source=source,
    chosen=chosen,
    labels=labels,
    validation=validation,
    attack=attack,
    offset=offset,
    spread=spread,
    **{name: settings[name] for name in (*same, "batch_size", "epochs", "seed", "log_every")},
  )


def _in_units(task):
  """The task's regressor with predictions in the target's units and no longer standardised."""
  units = keras.layers.Rescaling(task.spread, task.offset, dtype="float32", name="units")
  head = keras.Model(task.head.input, units(task.head.output), name="head")
  model = Regressor(task.model.network, head, task.model.stochastic, task.model.samples)
  model.target = task.model.target
  return model


def _row(run, step):
  """The row of metrics of a step; the last one if there is none."""
  rows = run.metrics()[::-1]  # of several stages the last counts
  return next((row for row in rows if row["step"] == step), rows[0])


def _read_labels(source):
  return np.concatenate([batch["label"].numpy() for batch in pipeline.batches(source, 500)])


def _list_chosen(file, chosen):
  """Writes which examples of the split had their labels used."""
  files.write(file, json.dumps({"positions": chosen.tolist()}) + "\n")
