"""The online probe: nearest-neighbour accuracy of an encoder during training."""

import keras
import numpy as np
import tensorflow as tf
from sklearn import neighbors

from urkle_tf import errors
from urkle_tf.data import pipeline
from urkle_tf.networks.kl import kl_objective

_VOTERS = 20  # nearest neighbours


class NearestNeighbours(keras.callbacks.Callback):
  """An online probe: k-nearest-neighbour accuracy of loc on held-out labelled images.

  It measures the encoder that would be exported, which may be a moving average.  It reads labels,
  and never changes the encoder.  Half of the images are the neighbours, and the other half are
  classified.  With an attack, adversaries of the first 256 of these are classified too.  They
  maximise KL[p(z|x) || p(z|x')], without labels.

  Args:
    images: float32 [n, h, w, c].
    labels: int [n].
    recorder: the `Recorder` of the run: the figures join its next row.
    attack: finds the adversaries; None for none.
  """

  def __init__(self, images, labels, recorder, attack=None):
    super().__init__()
    self._images, self._labels = images, np.asarray(labels)
    self._recorder, self._attack = recorder, attack
    self._encode = tf.function(
      lambda x: self.model.encoder.network(x, training=False)["loc"], autograph=False
    )
    self._attacked = tf.function(self._encode_adversaries, autograph=False)

  def _encode_adversaries(self, images):
    encoder = self.model.encoder
    seed = tf.constant([self.model.seed & 0x7FFFFFFF, 4])
    return self._encode(self._attack(kl_objective(encoder, images), images, seed))

  def _accuracies(self):
    """[clean], or [clean, attacked]."""
    parts = np.array_split(self._images, max(1, len(self._images) // 250))
    loc = np.concatenate([self._encode(part).numpy() for part in parts])
    half = len(loc) // 2
    model = neighbors.KNeighborsClassifier(min(_VOTERS, half), metric="cosine")
    model.fit(loc[:half], self._labels[:half])
    found = [model.score(loc[half:], self._labels[half:])]
    if self._attack is not None:
      some = slice(half, half + 256)
      adversaries = self._attacked(tf.constant(self._images[some])).numpy()
      found.append(model.score(adversaries, self._labels[some]))
    return found

  def on_epoch_end(self, epoch, logs=None):
    """Adds the accuracies to the epoch's row of metrics."""
    with self._recorder.paused(), self.model.averaged():
      found = self._accuracies()
    names = ("knn_accuracy", "knn_robust_accuracy")
    self._recorder.extra |= {n: round(float(v), 5) for n, v in zip(names, found, strict=False)}


def of(source, examples, recorder, attack):
  """The probe on the first `examples` images of a source; see `NearestNeighbours`.

  Raises:
    UserError: if the source has no classes, or there are fewer than two images.
  """
  if source.class_names is None:
    raise errors.UserError(
      f"--probe_split needs classes, but {source.name!r} has none: leave --probe_split out"
    )
  if min(examples, source.size) < 2:
    raise errors.UserError(
      f"the probe needs at least 2 images, and --probe_examples={examples} of "
      f"--probe_split={source.split} are fewer: give more"
    )
  images, labels = pipeline.first(source, examples)
  order = np.random.default_rng(0).permutation(len(labels))  # a split may be sorted by class
  return NearestNeighbours(images[order], labels[order], recorder, attack=attack)
