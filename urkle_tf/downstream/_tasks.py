"""From the settings of `adapt` to the `Task` that they name."""

import dataclasses
import pathlib

import keras
import numpy as np

from urkle_tf import attacks, errors, export, networks, spec
from urkle_tf.data import compatibility, pipeline, sources
from urkle_tf.downstream import _labels
from urkle_tf.downstream.base import Task
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor


def _linear(features, outputs):
  return networks.mlp(features, [outputs], "head")


def _mlp(features, outputs, width=256, layers=3):
  errors.whole(1, "mlp", width=width, layers=layers)
  return networks.mlp(features, [width] * (layers - 1) + [outputs], "head")


HEADS = {"linear": _linear, "mlp": _mlp}
SELECT = ("clean", "robust")
_ATTACK = ("norm", "epsilon", "attack_steps", "attack_step_size")  # settings of the attack


def settle(settings, method, metadata):
  """Fills in the settings that the user left open; returns the flags that have no effect."""
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
    without_radius = settings["epsilon"] is None
    for name, usual in (("norm", "linf"), ("epsilon", 8 / 255), ("attack_steps", 10)):
      if settings[name] is None:
        settings[name] = metadata.get(name, usual)
    if without_radius:
      compatibility.check_norm(settings["norm"], settings["epsilon"], metadata.get("norm", "linf"))
  else:
    settings |= dict.fromkeys(_ATTACK)
  return [f"--{name}" for name in given if settings[name] is None]


@dataclasses.dataclass(frozen=True)
class Labelled:
  """The images for training a head.

  Attributes:
    source: the labelled images.
    validation: the images that training reports on, or None.
    chosen: int64 [m], the positions in `source` of the labels that may be used, ascending.
    labels: [m], these labels, unchanged.
  """

  source: sources.Source
  validation: sources.Source | None
  chosen: np.ndarray
  labels: np.ndarray


def labelled(given, image_size):
  """The `Labelled` of settings; raises `UserError` if its images have another size."""
  source = _split(given, given.split, given.examples, image_size)
  validation = None
  if given.validation_split:
    validation = _split(given, given.validation_split, None, image_size)
    if source.class_names is not None:
      compatibility.check_classes(len(source.class_names), source.class_names, validation)
  with sources.naming_unreadable(source):
    labels = pipeline.labels(source)
  compatibility.check_no_gaps(source, labels)
  chosen = _labels.choose(labels, given.labels, given.seed)
  compatibility.warn_of_missing_classes(source, labels[chosen])
  return Labelled(source, validation, chosen, labels[chosen])


def _split(given, split, examples, image_size):
  source = sources.load(
    given.dataset, split, given.data_dir, given.download, given.image_size, examples
  )
  compatibility.check_images(image_size, source)
  compatibility.check_labelled(source)
  return source


def make(settings, metadata, data, method):
  """The `Task` of complete settings.

  Args:
    settings: {name: value}.
    metadata: of the export of the encoder.
    data: a `Labelled`.
    method: the `Protocol`.
  """
  encoder, labels, offset, spread = _encoder(settings, metadata), data.labels, 0.0, 1.0
  model = _model(settings, encoder, data.source)
  if data.source.class_names is None:
    offset, spread = float(labels.mean(dtype=np.float64)), float(labels.std(dtype=np.float64))
    if not spread > 0:
      raise errors.UserError(
        f"the labels of {data.source.name!r} are all the same number: give more examples"
      )
    labels = ((labels - offset) / spread).astype(np.float32)[:, None]
  attack = None
  if method.adversarial or settings["select"] == "robust":
    threat = attacks.from_norm(settings["norm"], settings["epsilon"])
    attack = attacks.PGD(threat, settings["attack_steps"], settings["attack_step_size"])
  same = ("augment", "augment_copies", "optimizer", "learning_rate", "weight_decay", "select")
  return Task(
    folder=pathlib.Path(settings["encoder"]),
    encoder=encoder,
    model=model,
    source=data.source,
    chosen=data.chosen,
    labels=labels,
    validation=data.validation,
    attack=attack,
    noise=settings["noise"] or 0.0,
    offset=offset,
    spread=spread,
    **{name: settings[name] for name in (*same, "batch_size", "epochs", "seed", "log_every")},
  )


def _encoder(settings, metadata):
  """The exported encoder, or its pooled features as one."""
  loaded = export.load_encoder(settings["encoder"])
  if settings["features"] != "pooled":
    return loaded
  features = networks.pooled(loaded.network)
  outputs = {"loc": features.output, "scale": keras.ops.ones_like(features.output)}  # unused
  network = keras.Model(features.input, outputs, name="network")
  return export.ExportedEncoder(network, {**metadata, "stochastic": False})


def _model(settings, encoder, source):
  """A `Classifier` or a `Regressor` with a fresh head."""
  names = source.class_names
  sizes = {"features": encoder.latent_dim, "outputs": 1 if names is None else len(names)}
  head = spec.call(HEADS, settings["head"], "head", **sizes)
  parts = (encoder.network, head, encoder.stochastic, settings["samples"])
  if names is None:
    model = Regressor(*parts)
    model.target = source.target
    return model
  model = Classifier(*parts)
  model.class_names = list(names)
  return model


def in_units(task):
  """The task's regressor with predictions in the target's units instead of standardised ones."""
  units = keras.layers.Rescaling(task.spread, task.offset, dtype="float32", name="units")
  head = keras.Model(task.head.input, units(task.head.output), name="head")
  model = Regressor(task.model.network, head, task.model.stochastic, task.model.samples)
  model.target = task.model.target
  return model
