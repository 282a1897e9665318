"""Chooses the most harmful of many candidates for an image's adversary."""

import numpy as np

from urkle_tf.evaluation import calibration


class Worst:
  """The most harmful candidate for each image.

  Candidates are chosen and scored with different draws of z.  A candidate that the scoring draws
  misclassify is worse than any that they do not, so that an image stays broken.  Next, one that the
  choosing draws misclassify is worse, and then one with a lower log p(y) by the choosing draws.

  Args:
    choice: float32 [n, classes], log-probabilities of the clean images by the choosing draws.
    labels: int [n].
    scored: the same by the scoring draws; None without noise.
    votes: int32 [n, groups], in the sampled mode: see `scoring.Scores`.

  Attributes:
    choice: as above, of the worst candidates so far.
    scored: the same.
    votes: the same.
  """

  def __init__(self, choice, labels, scored=None, votes=None):
    self.choice = choice.copy()
    self.scored = (choice if scored is None else scored).copy()
    self.votes = None if votes is None else votes.copy()
    self._labels = labels

  @property
  def right(self):
    """The images that no candidate broke, bool [n]."""
    return np.argmax(self.scored, 1) == self._labels

  @property
  def of_label(self):
    """The worst candidates' log p(y), float32 [n]."""
    return calibration.of_label(self.scored, self._labels)

  def update(self, positions, choice, scored=None, votes=None):
    """Offers candidates for the images at `positions`; returns which were taken, bool."""
    scored = choice if scored is None else scored
    labels = self._labels[positions]
    broken = np.argmax(scored, 1) != labels
    before = np.argmax(self.scored[positions], 1) != labels
    more = _hurt(choice, labels) > _hurt(self.choice[positions], labels)
    taken = (broken & ~before) | ((broken == before) & more)
    self.choice[positions[taken]] = choice[taken]
    self.scored[positions[taken]] = scored[taken]
    if votes is not None and self.votes is not None:
      self.votes[positions[taken]] = votes[taken]
    return taken

  def merge(self, other):
    """Offers another's candidates."""
    self.update(np.arange(len(self._labels)), other.choice, other.scored, other.votes)


def _hurt(log_probabilities, labels):
  wrong = np.argmax(log_probabilities, 1) != labels
  return wrong * 1e6 - calibration.of_label(log_probabilities, labels)


def choose(choice, labels, images, candidates):
  """The most harmful candidate for each image, by the choosing draws only.

  Args:
    choice: float32 [n, classes], the values to exceed.
    labels: int [n].
    images: float32 [n, h, w, c], returned where no candidate exceeds them.
    candidates: (images float32 [n, h, w, c], values float32 [n, classes]) pairs.

  Returns:
    (values, images, bool [n]: whether it is one of the candidates).
  """
  choice, images, found = choice.copy(), images.copy(), np.zeros(len(labels), bool)
  for adversaries, values in candidates:
    more = _hurt(values, labels) > _hurt(choice, labels)
    choice[more], images[more] = values[more], adversaries[more]
    found |= more
  return choice, images, found
