"""Scoring images: draws of z that no attack knows, batches of one static shape."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors, loops
from urkle_tf.data import pipeline
from urkle_tf.evaluation import calibration

# The streams of a seed: an attack must never know the noise that its result is scored with.
ATTACK_STREAM, SCORE_STREAM, REPRESENTATION_STREAM, CHOICE_STREAM = 1, 2, 3, 7


def pad(array, size):
  """Repeats the last row until there are `size` rows."""
  missing = size - len(array)
  return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, 0)])


def padded(count, batch_size):
  """The size that `count` rows are padded to: their own if they are few, else a batch."""
  return count if 2 * count <= batch_size else batch_size


def stream(source, batch_size, mask=None):
  """Images of a source in full batches, in order; reading stops after the last wanted one.

  Args:
    source: a `Source`.
    batch_size: images per batch; the last may be smaller.
    mask: bool [source.size], which are wanted; or an int, the first ones; None for all.

  Yields:
    (positions int64 [n], images float32 [n, h, w, c], labels int64 [n] or None).
  """
  if mask is None or np.ndim(mask) == 0:
    mask = np.arange(source.size) < (source.size if mask is None else mask)
  end = int(np.max(np.flatnonzero(mask), initial=-1)) + 1
  read = itertools.islice(_examples(source, batch_size), end)  # no batch beyond the last wanted one
  wanted = itertools.compress(enumerate(read), mask)
  while batch := list(itertools.islice(wanted, batch_size)):
    positions, examples = zip(*batch)
    images, labels = zip(*examples)
    yield np.array(positions), np.stack(images), None if labels[0] is None else np.array(labels)


def _examples(source, batch_size):
  """(image, label or None) of each image of a source."""
  for batch in pipeline.batches(source, batch_size):
    images = batch["image"].numpy()
    yield from zip(images, batch["label"].numpy() if "label" in batch else [None] * len(images))


def by_batch(function, size, seed):
  """A `compute` of `Context.over_first` that reads no label.

  Args:
    function: (images [size, h, w, c], seed int32 [2]) -> {name: tensor [size, ...]}.
    size: images per batch; a smaller one is padded.
    seed: int32 [2], from which each batch gets its own.
  """

  def compute(number, images, labels):
    values = function(pad(images, size), distribution.fold(seed, number))
    return {name: value.numpy()[: len(images)] for name, value in values.items()}

  return compute


def embeddings(embed, source, size=250, total=None):
  """The embeddings of the images of a source, in order.

  Args:
    embed: images float32 [n, h, w, c] -> float32 [n, d].
    source: a `Source`.
    size: images per batch, at most; a smaller last one is padded.
    total: how many images, the first ones; None for all.

  Returns:
    (float32 [total, d], labels int64 [total] or None).
  """
  compiled, size = tf.function(embed, autograph=False), min(size, source.size)
  found, labels = [], []
  for _, images, truth in stream(source, size, total):
    found.append(compiled(pad(images, size)).numpy()[: len(images)])
    labels.append(truth)
  return np.concatenate(found), None if labels[0] is None else np.concatenate(labels)


@dataclasses.dataclass(frozen=True)
class Scores:
  """A classifier's log-probabilities of images, by two sets of draws.

  Attributes:
    values: {mode: float32 [n, classes]}, log-probabilities by the scoring draws.
    choice: the same by the choosing draws; the same array without noise.
    votes: int32 [n, groups], the predictions of served calls, which together use the scoring draws;
      None without a sampled mode.
  """

  values: dict
  choice: dict
  votes: np.ndarray | None

  def arrays(self):
    """The same as {name: array}."""
    found = {f"values.{mode}": array for mode, array in self.values.items()}
    found |= {f"choice.{mode}": array for mode, array in self.choice.items()}
    return found if self.votes is None else found | {"votes": self.votes}

  @classmethod
  def join(cls, parts, modes):
    """The whole, from `arrays` of its parts in order."""
    join = lambda name: np.concatenate([part[name] for part in parts])  # noqa: E731
    values, choice = (
      {mode: join(f"{kind}.{mode}") for mode in modes} for kind in ("values", "choice")
    )
    return cls(values, choice, join("votes") if "sampled" in modes else None)


class Scorer:
  """Log-probabilities of images in every mode of a classifier.

  The draws of the sampled mode are unknown to every attack, and the same for every image and
  candidate.  With new draws for each candidate, an image near a decision boundary would be lost by
  bad luck after enough candidates.  For the same reason, there are two sets of draws: one chooses
  among the candidates, and the other scores the chosen one.

  Args:
    classifier: a `Classifier`.
    batch_size: the largest number of images in a call.
    samples: the least number of samples of z in the sampled mode, which also makes 10 served calls.
    seed: of the draws.
    modes: the wanted modes, the served one first; None for all modes of the classifier.

  Attributes:
    modes: the wanted modes.
    served: how many samples of z a served prediction averages over.
  """

  def __init__(self, classifier, batch_size, samples=200, seed=0, modes=None):
    self.modes, self._batch_size = modes or classifier.modes, batch_size
    self.served = each = classifier.samples
    groups = max(-(-samples // each), calibration.CALLS)
    seed = [seed, 0]
    self._scoring = distribution.fold(seed, SCORE_STREAM)
    self._choosing = distribution.fold(seed, CHOICE_STREAM)

    @tf.function(autograph=False, reduce_retracing=True)
    def score(images, seed):
      loc, scale = classifier.represent(images)
      scored = {}
      if "deterministic" in self.modes:
        scored["deterministic"] = tf.nn.log_softmax(classifier.head(loc, training=False))
      if "sampled" not in self.modes:
        return scored, tf.zeros([tf.shape(images)[0], 0], tf.int32)

      def more(group, state):
        total, votes = state
        new = classifier.from_shared_noise(loc, scale, distribution.fold(seed, group), each)
        votes = votes.write(group, tf.argmax(new, 1, tf.int32))
        return tf.reduce_logsumexp(tf.stack([total, new]), 0), votes

      start = tf.fill([tf.shape(images)[0], classifier.classes], -float("inf"))
      total, votes = loops.repeat(groups, more, (start, tf.TensorArray(tf.int32, groups)))
      scored["sampled"] = total - tf.math.log(float(groups))
      return scored, tf.transpose(votes.stack())

    self._score = score

  def __call__(self, images):
    """Scores images.

    Args:
      images: float32 [n, h, w, c].

    Returns:
      {mode: float32 [n, classes]}.

    Raises:
      UserError: if a value is not finite.
    """
    return self.with_votes(images)[0]

  def with_votes(self, images):
    """As a call, and the `votes` of `Scores`."""
    values, votes = self._run(images, self._scoring)
    return values, votes if "sampled" in self.modes else None

  def choosing(self, images):
    """As a call, with the choosing draws."""
    return self._run(images, self._choosing)[0]

  def both(self, images):
    """The `Scores` of images."""
    values, votes = self.with_votes(images)
    return Scores(values, self.choosing(images) if votes is not None else values, votes)

  def _run(self, images, seed):
    ends = range(self._batch_size, len(images), self._batch_size)
    parts = [self._run_batch(part, seed) for part in np.split(images, ends)]
    scored = {mode: np.concatenate([values[mode] for values, _ in parts]) for mode in self.modes}
    return scored, np.concatenate([votes for _, votes in parts])

  def _run_batch(self, images, seed):
    scored, votes = self._score(pad(images, padded(len(images), self._batch_size)), seed)
    scored = {mode: scored[mode].numpy()[: len(images)] for mode in self.modes}
    for mode, values in scored.items():
      errors.check_finite(values, f"the classifier ({mode})")
    return scored, votes.numpy()[: len(images)]
