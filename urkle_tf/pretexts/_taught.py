"""Pretexts that learn from a frozen teacher: reading it, checking it, starting from it."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import compatibility
from urkle_tf.networks import representations
from urkle_tf.networks.policies import low_precision
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.networks.tuples import flat, folded
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
    self.start, self.fingerprint = start, self._teacher.fingerprint
    if start and self._teacher.format != embedders.OWN:
      raise errors.UserError(
        f"{name}: start=true needs a teacher that this package exported. Start from a .keras file "
        "with --encoder=FILE.keras instead"
      )

  def adopt(self, source):
    """Checks that the data's images are the teacher's."""
    size = self._teacher.size_for(source.image_shape)
    compatibility.check_images(size, source, "the teacher")

  def embed(self, batches):
    """The teacher's embeddings of many images, before `attach`: float64 [n, d].

    Args:
      batches: of images, each float32 [m, h, w, c] in [0, 1]; at least one.

    Raises:
      UserError: if images are integers, or the teacher returns no embedding, or the same one for
        all of several images.
    """
    parts: list[np.ndarray] = []
    for images in map(representations.checked, batches):
      if not parts:
        embedders.output_shape(self._teacher, images.shape[1:])
      parts += [
        foreign_models.call(self._teacher.function, images[i : i + _AT_ONCE], self._path)
        for i in range(0, len(images), _AT_ONCE)
      ]
    found = np.concatenate(parts).astype(np.float64)
    if len(found) > 1 and np.all(found == found[0]):
      raise errors.UserError(
        f"the teacher {self._path!r} returns the same embedding for all images: give another one"
      )
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
    with precision(self._teacher.network):
      self._teacher = foreign_models.freeze(self._teacher, given)
    self._output = embedders.output_shape(self._teacher, given)

  def prepare(self, views, batch):
    """The teacher's embeddings of the clean views, float32 [n, v, d]."""
    found = self._teacher.function(flat(views))
    found = tf.ensure_shape(tf.cast(found, tf.float32), [None, *self._output])
    if len(self._output) == 3:
      found = tf.reduce_mean(found, [1, 2])
    return tf.stop_gradient(folded(found, views.shape[1]))


def precision(network):
  """A context in which a teacher's backbone computes in the precision of the training."""
  policy = keras.config.dtype_policy()
  if network is None or policy.compute_dtype == "float32":
    return contextlib.nullcontext()
  return low_precision(network, policy)


def loc_kind(network):
  """The kind of loc of an encoder's network; see `distil.Distil`."""
  layers = {layer.name: layer for layer in network.layers}
  if "centred" in layers or isinstance(layers.get("loc"), keras.layers.BatchNormalization):
    return "centred"
  return "mapped" if "raw_loc" in layers else "features"
