"""Reads exports: their metadata, network and head."""

import json
import os
import pathlib

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import keras_private, presets
from urkle_tf.networks.encoders import ExportedEncoder
from urkle_tf.networks.gaussian import GaussianEncoder
from urkle_tf.networks.saved import foreign_models

FORMAT_VERSION = 1
_KINDS = {"encoder": "an encoder", "classifier": "a classifier", "regressor": "a regressor"}
_LARGEST_METADATA = 2**24  # bytes
_NEEDED = ("format_version", "kind", "image_size", "latent_dim", "stochastic", "fingerprint")
_TEXTS = ("fingerprint", "norm", "dataset", "target", "stream")


def read_metadata(folder, kind=None):
  """Reads and checks an export's metadata.json.

  Args:
    folder: the export's folder, or `"preset:NAME"`.
    kind: "encoder", "classifier" or "regressor"; None for any.

  Returns:
    A dict; see `docs/exports.md`.

  Raises:
    UserError: if the folder is missing, is not an export of this kind, or there is no such preset.
  """
  if presets.is_named(folder):
    return presets.metadata(folder, kind)
  folder = pathlib.Path(os.path.expanduser(folder))
  wanted = _KINDS.get(kind, "an encoder, a classifier or a regressor")
  if folder.is_file():
    raise errors.UserError(
      f"{str(folder)!r} is a file, but not a .keras file: give the folder of {wanted}"
    )
  if not folder.is_dir():
    raise errors.UserError(f"no folder {str(folder)!r}: give the folder of {wanted}")
  file = folder / "metadata.json"
  if not file.is_file():
    inner = [f.parent.name for f in sorted(folder.glob("*/metadata.json"))]
    fitting = [name for name in inner if kind in (None, name)]
    hint = f"; did you mean {str(folder / fitting[0])!r}?" if fitting else ""
    if inner == ["encoder"] and not fitting:
      hint = "; it holds an encoder: make a head for it with python -m urkle_tf.finetune"
    raise errors.UserError(f"{str(folder)!r} is not an export of {wanted} (no metadata.json){hint}")
  try:
    if file.stat().st_size > _LARGEST_METADATA:
      raise ValueError(f"it is larger than {_LARGEST_METADATA >> 20} MiB")
    metadata = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in _NEEDED if name not in metadata]
  except (ValueError, TypeError, RecursionError) as error:
    raise errors.UserError(f"{str(file)!r} is damaged: {error}; export again") from error
  if missing:
    raise errors.UserError(f"{str(file)!r} lacks {missing[0]!r}: export again")
  if metadata["format_version"] != FORMAT_VERSION:
    raise errors.UserError(
      f"{str(folder)!r} has export format {repr(metadata['format_version'])[:20]}, and this "
      f"version of urkle_tf reads {FORMAT_VERSION}: export again, or install the other version"
    )
  if wrong := invalid(metadata):
    raise errors.UserError(f"{str(file)!r} is invalid: {wrong}; export again")
  if kind is not None and metadata["kind"] != kind:
    raise errors.UserError(
      f"{str(folder)!r} holds {_KINDS.get(metadata['kind'])}, not {wanted}: give the folder of one"
    )
  return metadata


def invalid(metadata):
  """Names an entry that no export could have, such as "epsilon is 'big'"; None if all are fine."""
  whole = lambda value, most: type(value) is int and 1 <= value <= most  # noqa: E731  (bool is int)
  text = lambda value: isinstance(value, str) and len(value) < 10_000  # noqa: E731
  size, names = metadata["image_size"], metadata.get("class_names")
  classes, epsilon = metadata.get("classes"), metadata.get("epsilon")
  right = {
    "kind": text(metadata["kind"]) and metadata["kind"] in _KINDS,
    "image_size": isinstance(size, list) and len(size) == 3 and all(whole(s, 2**16) for s in size),
    "latent_dim": whole(metadata["latent_dim"], 2**24),
    "stochastic": isinstance(metadata["stochastic"], bool),
    "samples": whole(metadata.get("samples", 1), 10**6),
    "classes": whole(classes, 2**24) or (classes is None and metadata["kind"] != "classifier"),
    "class_names": names is None
    or (isinstance(names, list) and all(map(text, names)) and len(names) == classes),
    "outputs": whole(metadata.get("outputs", 1), 2**24),
    "epsilon": epsilon is None or (type(epsilon) in (int, float) and 0 <= epsilon < 1e6),
    "settings": isinstance(metadata.get("settings", {}), dict),
    "versions": isinstance(metadata.get("versions", {}), dict),
    **{name: text(metadata.get(name, "")) for name in _TEXTS},
  }
  if wrong := [name for name, fine in right.items() if not fine]:
    # A text's line breaks must not become ours.
    return f"{wrong[0]} is {repr(metadata.get(wrong[0]))[:60]}"
  return None


def load_network(folder, metadata):
  """An export's network, images -> {"loc", "scale"}, checked against its metadata."""
  if presets.is_named(folder):
    return GaussianEncoder.from_preset(folder).network
  gives = dict.fromkeys(("loc", "scale"), (None, metadata["latent_dim"]))
  return _load(folder, "network.keras", (None, *metadata["image_size"]), gives)


def load_head(folder, metadata, outputs):
  """An export's head, z -> [n, outputs], checked against its metadata."""
  if presets.is_named(folder):
    return presets.head(folder)
  return _load(folder, "head.keras", (None, metadata["latent_dim"]), (None, outputs))


def _load(folder, name, takes, gives):
  """Loads a Keras file of an export, whose input and outputs must have these shapes."""
  file = pathlib.Path(os.path.expanduser(folder)) / name
  if not file.is_file():
    raise errors.UserError(f"{str(folder)!r} lacks {name}: export again")
  model = foreign_models.read_keras(file, advice="")
  shapes = lambda tensors: tf.nest.map_structure(lambda tensor: tuple(tensor.shape), tensors)  # noqa: E731
  try:
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    inputs, outputs = shapes(tf.nest.flatten(model.inputs)), shapes(output)
  except (AttributeError, ValueError) as error:  # not a functional or sequential model
    raise errors.UserError(f"cannot read {str(file)!r}: {errors.reason(error)}") from error
  if (inputs, outputs) != ([takes], gives):
    raise errors.UserError(
      f"{str(file)!r} does not fit its metadata.json: it maps {inputs} to {outputs} instead of "
      f"{takes} to {gives}; export again"
    )
  return model


def load_encoder(folder):
  """Loads an exported encoder.

  Args:
    folder: a folder that `export_encoder` wrote; or one that `export_classifier` or
      `export_regressor` wrote, for its encoder; or `"preset:NAME"`, see `urkle_tf.presets`.

  Returns:
    An `ExportedEncoder`, a trainable Keras layer: images float32 [n, h, w, c] in [0, 1] -> a
    `tfp.distributions.Normal` [n, d_z].  Its `network` is the Keras model underneath.

  Raises:
    UserError: if there is no such export or preset.

  ```python
  encoder = urkle_tf.load_encoder("RUN/encoder")
  embeddings = encoder(images).loc  # float32 [n, d_z]
  network = encoder.network  # a Keras model: images -> {"loc", "scale"}
  ```
  """
  metadata = read_metadata(folder)
  network = load_network(folder, metadata)
  for layer in keras_private.layers(network):  # it may have been frozen when it was exported
    layer.trainable = True
  for layer in network.layers:
    if layer.name == "spread":  # that of loc=pooled, which no gradient reaches
      layer.trainable = False
  return ExportedEncoder(network, metadata, name="encoder")
