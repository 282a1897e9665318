"""Exports and loads classifiers and regressors."""

import dataclasses
from typing import Any

import tensorflow as tf

from urkle_tf.export import description, folders, keras_files, signatures
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor
from urkle_tf.networks.saved import exports


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A kind of predictor, and the names of its parts.

  Attributes:
    name: the kind's name in metadata.json.
    model: its class.
    size: the attribute that counts the head's outputs.
    served: the name of the served output.
    sampled: the output for a seed and a number of samples, and its method.
    at_loc: (output, method) for z = loc; also the output of the head.
  """

  name: str
  model: Any
  size: str
  served: str
  sampled: str
  at_loc: tuple[str, str]


_CLASSIFIER = _Kind(
  name="classifier",
  model=Classifier,
  size="classes",
  served="probabilities",
  sampled="log_probabilities",
  at_loc=("logits", "logits"),
)
_REGRESSOR = _Kind(
  name="regressor",
  model=Regressor,
  size="outputs",
  served="predictions",
  sampled="predictions",
  at_loc=("predictions", "deterministic"),
)


def export_classifier(classifier, folder, metadata=None):
  """Writes a classifier's folder.

  Signatures, all float32 and in inference mode:

  - `serving_default(images) -> {"probabilities": [n, classes]}` (also `serve`): the mean over
    `samples` fresh draws of z, or z = loc if the classifier is deterministic;
  - `sampled(images, seed int32 [2], samples int32) -> {"log_probabilities": [n, classes]}`:
    log-mean-exp over samples of z of the head's log-softmax, differentiable through loc and scale;
    z = loc for any seed if the classifier is deterministic;
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
    OSError: if writing fails; the folder then keeps its content.

  ```python
  from urkle_tf.networks.classifier import Classifier

  head = urkle_tf.networks.mlp(encoder.latent_dim, [10], "head")  # z -> logits
  classifier = Classifier(encoder.network, head)
  urkle_tf.export_classifier(classifier, "classifier", {"dataset": "cifar10"})
  ```
  """
  return _export(_CLASSIFIER, classifier, folder, metadata)


def export_regressor(regressor, folder, metadata=None):
  """Writes a regressor's folder.

  Signatures, all float32, in inference mode and in the target's units:

  - `serving_default(images) -> {"predictions": [n, outputs]}` (also `serve`): the mean over
    `samples` fresh draws of z, or z = loc if the regressor is deterministic;
  - `sampled(images, seed int32 [2], samples int32) -> {"predictions": [n, outputs]}`: the same for
    a given seed, differentiable through loc and scale; z = loc if the regressor is deterministic;
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
    OSError: if writing fails; the folder then keeps its content.

  ```python
  from urkle_tf.networks.regressor import Regressor

  head = urkle_tf.networks.mlp(encoder.latent_dim, [1], "head")  # z -> one number
  urkle_tf.export_regressor(Regressor(encoder.network, head), "regressor")
  ```
  """
  return _export(_REGRESSOR, regressor, folder, metadata)


def load_classifier(folder):
  """Loads an exported classifier.

  Args:
    folder: a folder that `export_classifier` wrote, or `"preset:NAME"`, see `urkle_tf.presets`.

  Returns:
    A `Classifier`, a Keras model: images float32 [n, h, w, c] in [0, 1] -> probabilities float32
    [n, classes].  It also has `logits(images)` at z = loc, and `log_probabilities(images, seed,
    samples)`.

  Raises:
    UserError: if there is no such export or preset.

  ```python
  classifier = urkle_tf.load_classifier("RUN/classifier")
  probabilities = classifier(images)  # float32 [n, classes], the mean over samples of z
  logits = classifier.logits(images)  # float32 [n, classes], at z = loc
  ```
  """
  return _load(_CLASSIFIER, folder)


def load_regressor(folder):
  """Loads an exported regressor.

  Args:
    folder: a folder that `export_regressor` wrote.

  Returns:
    A `Regressor`, a Keras model: images float32 [n, h, w, c] in [0, 1] -> predictions float32
    [n, outputs].  It also has `deterministic(images)` at z = loc, and `predictions(images, seed,
    samples)`.

  Raises:
    UserError: if there is no such export.

  ```python
  regressor = urkle_tf.load_regressor("RUN/regressor")
  predicted = regressor(images)  # float32 [n, outputs], in the units of regressor.target
  ```
  """
  return _load(_REGRESSOR, folder)


def _export(kind, model, folder, metadata):
  """Writes a folder of a network and a head."""

  def write(side):
    network = keras_files.save(model.network, side / "network.keras")
    head = keras_files.save(model.head, side / "head.keras")
    copy = kind.model(network, head, model.stochastic, model.samples)
    signatures.save(side, [network, head], _endpoints(kind, copy))
    fields = {
      model.LABEL: getattr(model, model.LABEL),
      **(metadata or {}),
      kind.size: model.outputs,
      "image_size": copy.image_shape,
      **{name: getattr(copy, name) for name in ("latent_dim", "stochastic", "samples")},
    }
    description.write(side, kind.name, [network, head], fields)

  return folders.replace(folder, write)


def _endpoints(kind, model):
  """The signatures of a predictor, as `signatures.save` takes them."""
  images = tf.TensorSpec([None, *model.image_shape], tf.float32, name="images")
  z = tf.TensorSpec([None, model.latent_dim], tf.float32, name="z")
  seed = tf.TensorSpec([2], tf.int32, name="seed")
  samples = tf.TensorSpec([], tf.int32, name="samples")
  point, at_loc = kind.at_loc

  def serve(images):
    return {kind.served: model(images)}

  def sampled(images, seed, samples):
    return {kind.sampled: getattr(model, kind.sampled)(images, seed, samples)}

  def deterministic(images):
    return {point: getattr(model, at_loc)(images)}

  def head(z):
    return {point: model.head(z, training=False)}

  return {
    "serve": (serve, [images]),
    "serving_default": (serve, [images]),
    "sampled": (sampled, [images, seed, samples]),
    "deterministic": (deterministic, [images]),
    "head": (head, [z]),
  }


def _load(kind, folder):
  metadata = exports.read_metadata(folder, kind.name)
  network = exports.load_network(folder, metadata)
  head = exports.load_head(folder, metadata, metadata.get(kind.size))
  served = metadata["stochastic"], metadata.get("samples", 20)
  model = kind.model(network, head, *served, name=kind.name)
  setattr(model, model.LABEL, metadata.get(model.LABEL))
  model.metadata = metadata
  return model
