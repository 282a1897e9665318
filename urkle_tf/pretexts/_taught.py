"""Pretexts that learn from a frozen teacher: reading it, checking it, starting from it."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import compatibility
from urkle_tf.networks.policies import low_precision
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.pretexts.base import Pretext

_TARGETS = ("loc", "pooled")
_AT_ONCE = 128  # images


class Taught(Pretext):
  """A pretext with a frozen teacher, whose embeddings of the clean views `prepare` returns.

  `distil.Distil` says what a teacher may be, what it sees and what is refused.

  Args:
    teacher: a path, or `preset:NAME`.
    start: whether the student's encoder starts from the teacher's weights.
    targets: "loc" or "pooled".
  """

  positives = True

  def __init__(self, teacher, start=False, targets="loc"):
    name = type(self).__name__.lower()
    super().__init__(name=name)
    errors.one_of(f"targets of {name}", targets, _TARGETS)
    self._path = str(teacher)
    self._pooled = targets == "pooled"
    self._teacher = foreign_models.outside_strategies(embedders.read, self._path, self._pooled)
    self.start = start
    if start and self._teacher.format != embedders.OWN:
      raise errors.UserError(
        f"{name}: start=true needs a teacher that this package exported. Start from a .keras file "
        "with --encoder=FILE.keras instead"
      )

  def adopt(self, source):
    """Checks that the data's images are the teacher's."""
    size = self._teacher.size_for(source.image_shape)
    compatibility.check_images(size, source, "the teacher")

  def embed(self, images):
    """The teacher's embeddings of many images, before `attach`: float64 [n, d].

    Args:
      images: float32 [n, h, w, c] in [0, 1].
    """
    parts = [
      foreign_models.call(self._teacher.function, images[i : i + _AT_ONCE], self._path)
      for i in range(0, len(images), _AT_ONCE)
    ]
    found = np.concatenate(parts).astype(np.float64)
    return found.mean((1, 2)) if found.ndim == 4 else found

  def attach(self, encoder):
    """Checks the teacher, and starts the encoder from it if `start` is set."""
    size, given = self._teacher.size_for(encoder.image_shape), tuple(encoder.image_shape)
    if size != given:
      raise errors.UserError(
        f"the teacher {self._path!r} takes images of {'x'.join(map(str, size))}, but the encoder "
        f"takes {'x'.join(map(str, given))}: give both the same size"
      )
    if self.start:
      encoder.start_from(self._teacher.network, f"the teacher {self._path!r}")
    own_loc = self._teacher.format == embedders.OWN and not self._pooled
    self._kind = loc_kind(self._teacher.network) if own_loc else "features"
    with _precision(self._teacher.network):
      self._teacher = foreign_models.freeze(self._teacher, given)
    self._output = output_shape(self._teacher, given)

  def thaw(self):
    """Turns the teacher's weights from constants of the step into variables.

    For programs whose teacher is trained after they are compiled (tools/accelerator).  Call it
    after the trainer has been made.

    Returns:
      The Keras variables of the teacher's network, in order; they are not in checkpoints either.

    Raises:
      UserError: if this package did not export the teacher.
    """
    if self._teacher.format != embedders.OWN:
      raise errors.UserError(
        f"thaw needs a teacher that this package exported, and {self._path!r} is not one: give the "
        "folder of an encoder"
      )
    teacher = foreign_models.outside_strategies(embedders.read, self._path, self._pooled)

    def function(images):
      with _precision(teacher.network):
        return teacher.function(images)

    self._teacher = dataclasses.replace(teacher, function=function)
    return teacher.network.weights

  def prepare(self, views, batch):
    """The teacher's embeddings of the clean views, float32 [n, v, d]."""
    found = self._teacher.function(tf.reshape(views, [-1, *views.shape[2:]]))
    found = tf.ensure_shape(tf.cast(found, tf.float32), [None, *self._output])
    if len(self._output) == 3:
      found = tf.reduce_mean(found, [1, 2])
    return tf.stop_gradient(tf.reshape(found, [-1, views.shape[1], self._output[-1]]))


def _precision(network):
  """A context in which a teacher's backbone computes in the precision of the training."""
  policy = keras.config.dtype_policy()
  if network is None or policy.compute_dtype == "float32":
    return contextlib.nullcontext()
  return low_precision(network, policy)


def loc_kind(network):
  """The kind of loc of an encoder's network; see `distil.Distil`."""
  layers = {layer.name: layer for layer in network.layers}
  if "centred" in layers or isinstance(layers["loc"], keras.layers.BatchNormalization):
    return "centred"
  return "mapped" if "raw_loc" in layers else "features"


def output_shape(teacher, image_shape):
  """The shape of a teacher's output for one image, found by calling it.

  Args:
    teacher: a `foreign_models.Loaded`.
    image_shape: (height, width, channels).

  Returns:
    (d,), or (height, width, d) of feature maps.

  Raises:
    UserError: if that is not an embedding.
  """
  images = np.random.default_rng(0).uniform(size=(4, *image_shape)).astype(np.float32)
  found = foreign_models.call(teacher.function, images, teacher.path)
  shape, said = found.shape[1:], None
  if not np.all(np.isfinite(found)):
    raise errors.UserError(f"the teacher {teacher.path!r} returns NaN or infinite values")
  if found.ndim not in (2, 4) or shape[-1] < 2:
    said = f"{'x'.join(map(str, shape)) or 'a single number'} per image"
  elif found.ndim == 2 and found.min() >= 0 and np.allclose(found.sum(1), 1, atol=1e-3):
    said = "probabilities"
  if said:
    raise errors.UserError(
      f"the teacher {teacher.path!r} returns {said}, not an embedding [n, d]: leave out its last "
      "layers, keras.Model(model.input, model.layers[-2].output)"
    )
  return shape
