"""Exports: folders with a SavedModel, stock Keras files and what they are.

A folder needs neither this package nor TensorFlow Probability to be used:

    saved_model.pb, variables/   the SavedModel; signatures below
    network.keras                images -> {"loc", "scale"}, to train on (stock Keras layers)
    head.keras                   z -> logits (classifiers) or numbers (regressors)
    metadata.json                image size, classes, threat model, data set, settings, versions
    README.md                    the model card, for people
    clean/                       of an encoder with dual batch norm: another such folder, with the
                                 batch norms of clean images
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import logging

from urkle_tf import _version, card, errors, foreign_models, spec, trust
from urkle_tf.networks import batch_norm, representations
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor

FORMAT_VERSION = 1
_KINDS = {"encoder": "an encoder", "classifier": "a classifier", "regressor": "a regressor"}
_PATHS = ("output_dir", "data_dir", "init_from", "encoder", "classifier", "regressor")
_LARGEST_METADATA = 2**24  # bytes
_NEEDED = ("format_version", "kind", "image_size", "latent_dim", "stochastic")


class ExportedEncoder(keras.layers.Layer):
  """A loaded encoder: a trainable Keras layer whose call returns the Normal.

  Attributes:
    network: the Keras model underneath, images -> {"loc", "scale"}.
    image_shape: (height, width, channels).
    latent_dim: d_z.
    metadata: what the folder says of it; "stream" where it is one of two.
    streams: {stream: network}, the one network.
  """

  def __init__(self, network, metadata=None, **kwargs):
    super().__init__(**kwargs)
    self.network, self.metadata = network, dict(metadata or {})
    self.streams = {self.metadata.get("stream", batch_norm.ADVERSARIAL): network}
    self.image_shape = tuple(network.input_shape[1:])
    self.latent_dim = int(network.output["loc"].shape[-1])
    self.stochastic = bool(self.metadata.get("stochastic", True))
    self.built = True

  def call(self, images, training=None):
    """float32 [n, h, w, c] in [0, 1] -> `tfp.distributions.Normal` of [n, d_z]."""
    outputs = self.network(representations.checked(images), training=training)
    return tfp.distributions.Normal(outputs["loc"], outputs["scale"])


def versions():
  """The versions that an export or a report was made with."""
  return {
    "urkle_tf": _version.__version__,
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "tensorflow_probability": tfp.__version__,
  }


def settings_without_paths(settings):
  """Settings that can be shown to others: no folder of this machine is in them."""
  shown = {name: value for name, value in settings.items() if name not in _PATHS}
  # In `train`, encoder names an architecture.
  if "pretext" in settings and "encoder" in settings:
    named = str(settings["encoder"])
    shown["encoder"] = pathlib.Path(named).name if named.endswith(".keras") else named
  if isinstance(shown.get("dataset"), str) and shown["dataset"].startswith("folder:"):
    shown["dataset"] = "folder:" + pathlib.Path(shown["dataset"][len("folder:") :]).name
  if "teacher=" in str(shown.get("pretext")):
    name, options = spec.parse(shown["pretext"])
    options["teacher"] = pathlib.Path(options["teacher"]).name
    shown["pretext"] = f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
  return shown


def export_encoder(encoder, folder, metadata=None, stream=None):
  """Writes an encoder's folder.

  Signatures: `serving_default(images float32 [n, h, w, c] in [0, 1]) -> {"loc", "scale"}`
  (`serve` is another name of it) and `embed(images) -> {"embedding"}`, which is loc.  All
  float32, in inference mode; differentiable in the images, and trainable through
  `keras.layers.TFSMLayer`, with batch norms that stay in inference mode (train
  `network.keras` to move them).

  Args:
    encoder: a `GaussianEncoder`, or what `load_encoder` returned.
    folder: where to write; an export that is there is replaced once the new one is whole.
    metadata: further entries of metadata.json, for example `dataset`, `norm`, `epsilon`,
      `settings` (its paths are left out) and `stochastic`: whether training used the scale
      (True unless told).
    stream: of an encoder with dual batch norm, "adversarial" or "clean": the one to write.  None
      writes the adversarial one, and into `clean/` a whole folder of the clean one.  The
      metadata says which is where ("stream").

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if the folder holds something else, the network cannot be saved, or the encoder has
      no such stream.
    OSError: if writing fails; what was in the folder is kept.
  """
  streams = encoder.streams
  if stream is not None and stream not in streams:
    raise errors.unknown("stream of this encoder", stream, streams)
  metadata = {
    "image_size": encoder.image_shape,
    "latent_dim": encoder.latent_dim,
    "stochastic": getattr(encoder, "stochastic", True),
    "stream": getattr(encoder, "metadata", {}).get("stream"),
    **(metadata or {}),
  }
  if len(streams) > 1:
    metadata["stream"] = stream or batch_norm.ADVERSARIAL

  def write(side):
    _write_encoder(side, streams[stream] if stream else encoder.network, metadata)
    if stream is None and len(streams) > 1:
      clean = side / batch_norm.CLEAN
      clean.mkdir()
      _write_encoder(clean, streams[batch_norm.CLEAN], {**metadata, "stream": batch_norm.CLEAN})

  return _replace(folder, write)


def _write_encoder(folder, network, metadata):
  network = _save_network(network, folder / "network.keras")
  images = tf.TensorSpec([None, *metadata["image_size"]], tf.float32, name="images")

  def represent(images):
    outputs = network(images, training=False)
    return {name: tf.cast(outputs[name], tf.float32) for name in ("loc", "scale")}

  # Without the head for scale, so that a TFSMLayer of it has no weight without a gradient.
  loc = keras.Model(network.input, network.output["loc"])

  def embed(images):
    return {"embedding": tf.cast(loc(images, training=False), tf.float32)}

  endpoints = {
    "serve": (represent, [images]),
    "serving_default": (represent, [images]),
    "embed": (embed, [images]),
  }
  _save_model(folder, [network], endpoints)
  _save_metadata(folder, "encoder", [network], metadata)


def export_classifier(classifier, folder, metadata=None):
  """Writes a classifier's folder.

  Signatures, all float32 and in inference mode:

  - `serving_default(images) -> {"probabilities": [n, classes]}` (also `serve`): the mean over
    `samples` fresh draws of z, or z = loc where the classifier is deterministic;
  - `sampled(images, seed int32 [2], samples int32) -> {"log_probabilities": [n, classes]}`:
    log-mean-exp over samples of z of the head's log-softmax, differentiable through loc and
    scale; z = loc whatever the seed where the classifier is deterministic;
  - `deterministic(images) -> {"logits": [n, classes]}`: z = loc;
  - `head(z float32 [n, d_z]) -> {"logits": [n, classes]}`.

  Args:
    classifier: a `Classifier`.
    folder: as in `export_encoder`.
    metadata: as in `export_encoder`.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if the folder holds something else, or a network cannot be saved.
    OSError: if writing fails; what was in the folder is kept.
  """

  def endpoints(copy, images, z, seed, samples):
    def serve(images):
      return {"probabilities": copy(images)}

    return {
      "serve": (serve, [images]),
      "serving_default": (serve, [images]),
      "sampled": (
        lambda images, seed, samples: {
          "log_probabilities": copy.log_probabilities(images, seed, samples)
        },
        [images, seed, samples],
      ),
      "deterministic": (lambda images: {"logits": copy.logits(images)}, [images]),
      "head": (lambda z: {"logits": copy.head(z, training=False)}, [z]),
    }

  fields = {
    "class_names": classifier.class_names,
    **(metadata or {}),
    "classes": classifier.classes,
  }
  return _export_predictor(classifier, folder, "classifier", endpoints, fields)


def export_regressor(regressor, folder, metadata=None):
  """Writes a regressor's folder.

  Signatures, all float32, in inference mode and in the target's units:

  - `serving_default(images) -> {"predictions": [n, outputs]}` (also `serve`): the mean over
    `samples` fresh draws of z, or z = loc where the regressor is deterministic;
  - `sampled(images, seed int32 [2], samples int32) -> {"predictions": [n, outputs]}`: that of a
    seed, differentiable through loc and scale; z = loc where the regressor is deterministic;
  - `deterministic(images) -> {"predictions": [n, outputs]}`: z = loc;
  - `head(z float32 [n, d_z]) -> {"predictions": [n, outputs]}`.

  Args:
    regressor: a `Regressor`.
    folder: as in `export_encoder`.
    metadata: as in `export_encoder`.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if the folder holds something else, or a network cannot be saved.
    OSError: if writing fails; what was in the folder is kept.
  """

  def endpoints(copy, images, z, seed, samples):
    def serve(images):
      return {"predictions": copy(images)}

    return {
      "serve": (serve, [images]),
      "serving_default": (serve, [images]),
      "sampled": (
        lambda images, seed, samples: {"predictions": copy.predictions(images, seed, samples)},
        [images, seed, samples],
      ),
      "deterministic": (lambda images: {"predictions": copy.deterministic(images)}, [images]),
      "head": (lambda z: {"predictions": copy.head(z, training=False)}, [z]),
    }

  fields = {"target": regressor.target, **(metadata or {}), "outputs": regressor.outputs}
  return _export_predictor(regressor, folder, "regressor", endpoints, fields)


def _export_predictor(model, folder, kind, endpoints, fields):
  """Writes a folder of a network and a head; `endpoints` makes the signatures of their copy."""

  def write(side):
    network = _save_network(model.network, side / "network.keras")
    head = _save_network(model.head, side / "head.keras")
    make: Any = {"classifier": Classifier, "regressor": Regressor}[kind]
    copy = make(network, head, model.stochastic, model.samples)
    images = tf.TensorSpec([None, *copy.image_shape], tf.float32, name="images")
    z = tf.TensorSpec([None, copy.latent_dim], tf.float32, name="z")
    seed = tf.TensorSpec([2], tf.int32, name="seed")
    samples = tf.TensorSpec([], tf.int32, name="samples")
    _save_model(side, [network, head], endpoints(copy, images, z, seed, samples))
    served = {
      "image_size": copy.image_shape,
      "latent_dim": copy.latent_dim,
      "stochastic": copy.stochastic,
      "samples": copy.samples,
    }
    _save_metadata(side, kind, [network, head], {**fields, **served})

  return _replace(folder, write)


def load_encoder(folder):
  """Loads an exported encoder.

  Args:
    folder: written by `export_encoder`, or by `export_classifier` or `export_regressor`, whose
      encoder is meant then.

  Returns:
    A Keras layer, trainable, whose call on images returns the `tfp.distributions.Normal`; its
    `network` is the Keras model underneath.

  Raises:
    UserError: if there is no such export.
  """
  metadata = read_metadata(folder)
  return ExportedEncoder(_load_network(folder, metadata), metadata, name="encoder")


def load_classifier(folder):
  """Loads an exported `Classifier`.

  Raises:
    UserError: if there is no such export.
  """
  metadata = read_metadata(folder, "classifier")
  classifier = Classifier(
    _load_network(folder, metadata),
    _load_head(folder, metadata, metadata.get("classes")),
    metadata["stochastic"],
    metadata.get("samples", 20),
    name="classifier",
  )
  classifier.class_names, classifier.metadata = metadata.get("class_names"), metadata
  return classifier


def load_regressor(folder):
  """Loads an exported `Regressor`.

  Raises:
    UserError: if there is no such export.
  """
  metadata = read_metadata(folder, "regressor")
  regressor = Regressor(
    _load_network(folder, metadata),
    _load_head(folder, metadata, metadata.get("outputs")),
    metadata["stochastic"],
    metadata.get("samples", 20),
    name="regressor",
  )
  regressor.target, regressor.metadata = metadata.get("target"), metadata
  return regressor


def read_metadata(folder, kind=None):
  """Reads and checks an export's metadata.json.

  Args:
    folder: the export's.
    kind: "encoder", "classifier" or "regressor"; None for any.

  Returns:
    A dict; see `docs/exports.md`.

  Raises:
    UserError: if the folder is missing, is no export, or one of another kind.
  """
  folder = pathlib.Path(folder)
  wanted = _KINDS.get(kind, "an encoder, a classifier or a regressor")
  if not folder.is_dir():
    raise errors.UserError(f"no folder {str(folder)!r}: give the folder of {wanted}")
  file = folder / "metadata.json"
  if not file.is_file():
    inner = [f.parent.name for f in sorted(folder.glob("*/metadata.json"))]
    hint = f"; did you mean {str(folder / inner[0])!r}?" if inner else ""
    raise errors.UserError(f"{str(folder)!r} holds no export of {wanted} (no metadata.json){hint}")
  try:
    if file.stat().st_size > _LARGEST_METADATA:
      raise ValueError(f"it has over {_LARGEST_METADATA >> 20} MiB")
    metadata = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in _NEEDED if name not in metadata]
  except (ValueError, TypeError, RecursionError) as error:
    raise errors.UserError(f"{str(file)!r} is damaged: {error}; export again") from error
  if missing:
    raise errors.UserError(f"{str(file)!r} lacks {missing[0]!r}: export again")
  if metadata["format_version"] != FORMAT_VERSION:
    raise errors.UserError(
      f"{str(folder)!r} has export format {str(metadata['format_version'])[:20]}, and this version "
      f"of urkle_tf reads {FORMAT_VERSION}"
    )
  _check_metadata(file, metadata)
  if kind is not None and metadata["kind"] != kind:
    raise errors.UserError(f"{str(folder)!r} holds {_KINDS.get(metadata['kind'])}, not {wanted}")
  return metadata


def _check_metadata(file, metadata):
  """Refuses metadata.json with an entry that no export could have."""
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
    **{name: text(metadata.get(name, "")) for name in ("norm", "dataset", "target", "stream")},
  }
  if wrong := [name for name, fine in right.items() if not fine]:
    value = str(metadata.get(wrong[0]))[:60]
    raise errors.UserError(f"{str(file)!r} cannot be right: {wrong[0]} is {value}; export again")


def fingerprint(models):
  """A hash of the weights: the same weights, the same hash."""
  digest = hashlib.sha256()
  for model in models:
    for variable in model.variables:
      digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
  return digest.hexdigest()[:16]


def _save_network(model, file):
  """Saves a Keras model and returns it as it was read back: what is checked is what is shipped.

  The copy also lives outside of any distribution strategy.
  """
  try:
    model.save(file)
    copy = keras.saving.load_model(file, compile=False, safe_mode=False)
  except (ValueError, TypeError, NotImplementedError) as error:
    reason = " ".join(str(error).split())[:300]
    raise errors.UserError(
      f"the model {model.name!r} cannot be saved and read back ({reason}); give its own classes "
      "get_config and register them with keras.saving.register_keras_serializable"
    ) from error
  if others := sorted({type(layer).__name__ for layer in _layers(copy) if not _stock(layer)}):
    logging.warning(
      "%s has layers that are not stock Keras (%s): loading it needs them; the SavedModel does not",
      file.name,
      ", ".join(others),
    )
  return copy


def _layers(model):
  return model._flatten_layers(include_self=False)


def _stock(layer):
  return type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)


def _load_network(folder, metadata):
  gives = dict.fromkeys(("loc", "scale"), (None, metadata["latent_dim"]))
  return _load_model(folder, "network.keras", (None, *metadata["image_size"]), gives)


def _load_head(folder, metadata, outputs):
  return _load_model(folder, "head.keras", (None, metadata["latent_dim"]), (None, outputs))


def _load_model(folder, name, takes, gives):
  """Loads a Keras file of an export, whose input and outputs must have these shapes."""
  file = pathlib.Path(folder) / name
  if not file.is_file():
    raise errors.UserError(f"{str(folder)!r} lacks {name}: export again")
  try:
    model = keras.saving.load_model(file, compile=False, safe_mode=not trust.is_granted())
    shapes = lambda tensors: tf.nest.map_structure(lambda tensor: tuple(tensor.shape), tensors)  # noqa: E731
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    inputs, outputs = shapes(tf.nest.flatten(model.inputs)), shapes(output)
  except Exception as error:  # zip, HDF5 and Keras raise many kinds for a damaged file
    if foreign_models.is_code(error):
      raise errors.UserError(
        f"{str(file)!r} holds Python code (a Lambda layer), which is not run from a file: "
        + trust.HINT
      ) from error
    raise errors.UserError(f"cannot read {str(file)!r}: {foreign_models.reason(error)}") from error
  if (inputs, outputs) != ([takes], gives):
    raise errors.UserError(
      f"{str(file)!r} does not fit its metadata.json: it maps {inputs} to {outputs}, and not "
      f"{takes} to {gives}; export again"
    )
  return model


def _guarded(function):
  """A signature that looks at its images' shape when it is called.

  TensorFlow's own do not: images of other channels would crash the process that serves them,
  and of another size they would be taken for what they are not.
  """

  @functools.wraps(function)  # the arguments' names are the signature's
  def guarded(images, *others):
    # Of a shape that is known TensorFlow would leave the question out.
    unknown = tf.raw_ops.PlaceholderWithDefault(input=images, shape=tf.TensorShape(None))
    wanted = images.shape[1:]
    message = f"images must be [n, {', '.join(map(str, wanted))}]"
    right = tf.debugging.assert_equal(tf.shape(unknown)[1:], wanted.as_list(), message=message)
    with tf.control_dependencies([right]):
      return function(tf.identity(images), *others)

  return guarded


def _save_model(folder, models, endpoints):
  archive = keras.export.ExportArchive()
  for model in models:
    archive.track(model)
  for name, (function, signature) in endpoints.items():
    if signature[0].name == "images":
      function = _guarded(function)
    archive.add_endpoint(name, function, input_signature=signature)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input
  try:
    archive.write_out(str(folder), verbose=False)
  finally:
    logging.set_verbosity(verbosity)


def _save_metadata(folder, kind, models, fields):
  fields = {name: value for name, value in fields.items() if value is not None}
  fields["settings"] = settings_without_paths(fields.get("settings", {}))
  if "encoder_settings" in fields:
    fields["encoder_settings"] = settings_without_paths(fields["encoder_settings"])
  metadata = {
    "format_version": FORMAT_VERSION,
    "kind": kind,
    "value_range": [0, 1],
    **fields,
    "fingerprint": fingerprint(models),
    "versions": versions(),
  }
  with open(folder / "metadata.json", "w", encoding="utf-8") as file:
    json.dump(metadata, file, indent=2, default=_json)
    file.write("\n")
  card.write(folder, json.loads(json.dumps(metadata, default=_json)))


def _json(value):
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  return str(value)


def _replace(folder, write):
  """Has `write` fill a side folder, and moves that into place: no half export is ever seen."""
  folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
  if folder.exists() and not folder.is_dir():
    raise errors.UserError(f"{str(folder)!r} is a file: give a folder to export to")
  if folder.is_dir() and any(folder.iterdir()) and not (folder / "metadata.json").is_file():
    raise errors.UserError(f"{str(folder)!r} holds something else: give an empty folder")
  side, old = folder.with_name(f".{folder.name}.side"), folder.with_name(f".{folder.name}.old")
  if old.is_dir() and not folder.exists():  # killed between the two moves below
    os.replace(old, folder)
  for left_over in (side, old):
    shutil.rmtree(left_over, ignore_errors=True)
  side.mkdir(parents=True)
  try:
    write(side)
    if folder.exists():
      os.replace(folder, old)
    os.replace(side, folder)
  except tf.errors.OpError as error:  # TensorFlow's writers raise these for a full disk
    raise OSError(f"cannot write {str(folder)!r}: {error.message.splitlines()[0]}") from error
  finally:
    shutil.rmtree(side, ignore_errors=True)
  shutil.rmtree(old, ignore_errors=True)
  return folder
