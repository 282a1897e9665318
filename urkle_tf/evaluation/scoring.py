"""Scoring images: draws of z that no attack knows, batches of one static shape."""

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import pipeline

_CHUNK = 25  # samples of z that are in memory at once

# The streams of a seed: an attack must never know the noise that its result is scored with.
ATTACK_STREAM, SCORE_STREAM, REPRESENTATION_STREAM = 1, 2, 3


def modes(classifier):
  """The classifiers that a classifier is, the served one first."""
  return classifier.modes


def pad(array, size):
  """Repeats the last row until there are `size`."""
  missing = size - len(array)
  return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, 0)])


def stream(source, batch_size, mask=None):
  """Images of a source in full batches, in order.

  Args:
    source: a `Source`.
    batch_size: images a batch; the last may be smaller.
    mask: bool [source.size]: which are wanted; None for all.

  Yields:
    (positions int64 [n], images float32 [n, h, w, c], labels int64 [n] or None).
  """
  position = 0
  held: list[tuple] = []
  for batch in pipeline.batches(source, batch_size):
    images = batch["image"].numpy()
    positions = np.arange(position, position + len(images))
    position += len(images)
    kept = slice(None) if mask is None else mask[positions]
    labels = batch["label"].numpy()[kept] if "label" in batch else None
    held.append((positions[kept], images[kept], labels))
    while sum(len(part[0]) for part in held) >= batch_size:
      whole = _join(held)
      yield tuple(None if part is None else part[:batch_size] for part in whole)
      held = [tuple(None if part is None else part[batch_size:] for part in whole)]
  if sum(len(part[0]) for part in held):
    yield _join(held)


def _join(parts):
  return tuple(
    None if columns[0] is None else np.concatenate(columns) for columns in zip(*parts, strict=True)
  )


class Scorer:
  """Log-probabilities of images in every mode of a classifier.

  The draws of the sampled mode are unknown to every attack, and the same for every image and
  candidate: with new ones for each candidate, an image near a decision boundary would be lost
  by bad luck alone once it has had enough candidates.

  Args:
    classifier: a `Classifier`.
    batch_size: the most images of a call.
    samples: samples of z in the sampled mode, at least.
    seed: of the draws.
  """

  def __init__(self, classifier, batch_size, samples=200, seed=0):
    self._modes, self._batch_size = modes(classifier), batch_size
    seed = distribution.fold([seed, 0], SCORE_STREAM)
    chunks = -(-samples // _CHUNK)
    each = -(-samples // chunks)

    @tf.function
    def score(images):
      loc, scale = classifier.represent(images)
      scored = {}
      if "deterministic" in self._modes:
        scored["deterministic"] = tf.nn.log_softmax(classifier.head(loc, training=False))
      if "sampled" in self._modes:

        def more(chunk, total):
          new = classifier.from_shared_noise(loc, scale, distribution.fold(seed, chunk), each)
          return chunk + 1, tf.reduce_logsumexp(tf.stack([total, new]), 0)

        start = tf.fill([tf.shape(images)[0], classifier.classes], -float("inf"))
        _, total = tf.while_loop(
          lambda chunk, _: chunk < chunks, more, (0, start), parallel_iterations=1
        )
        scored["sampled"] = total - tf.math.log(float(chunks))
      return scored

    self._score = score

  def __call__(self, images):
    """Scores images.

    Args:
      images: float32 [n, h, w, c], n at most `batch_size`.

    Returns:
      {mode: float32 [n, classes]}.

    Raises:
      UserError: if a value is not finite.
    """
    scored = self._score(pad(images, self._batch_size))
    scored = {mode: scored[mode].numpy()[: len(images)] for mode in self._modes}
    for mode, values in scored.items():
      if not np.all(np.isfinite(values)):
        raise errors.UserError(
          f"the classifier ({mode}) returns NaN or infinite values: it cannot be evaluated"
        )
    return scored
