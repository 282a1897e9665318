"""What an evaluation keeps besides its figures: pictures and adversarial images."""

import numpy as np

_PICTURES = 6


class Recorder:
  """Watches an attack (`attacked.measure(..., observe=recorder)`).

  Args:
    log_probabilities: {mode: float32 [n, classes]} of the clean images.
    labels: int [n].
    image_shape: (height, width, channels).
    save_images: whether adversarial images are kept (in memory: n images a row).

  Attributes:
    pictures: the first images that the first row broke, dicts of "image", "adversary", "label",
      "before" and "after" (predictions).
    adversaries: {row: float32 [n, h, w, c]}, each image's most harmful candidate in the row; the
      image itself if none was harmful, and zeros if it was not attacked.
  """

  def __init__(self, log_probabilities, labels, image_shape, save_images=False):
    self._clean, self._labels = log_probabilities, labels
    self._shape, self._save = tuple(image_shape), save_images
    self.pictures, self.adversaries = [], {}
    self._pictured, self._seen = set(), {}

  def wants(self, row):
    """Whether the row's adversaries are needed."""
    return self._save or (row == 0 and len(self.pictures) < _PICTURES)

  def __call__(self, row, mode, positions, images, candidates, taken, log_probabilities):
    if self._save:
      self._keep(row, positions, images, candidates, taken)
    if row or len(self.pictures) >= _PICTURES:
      return
    before = np.argmax(self._clean[mode][positions], 1)
    after = np.argmax(log_probabilities, 1)
    labels = self._labels[positions]
    for i in np.flatnonzero(taken & (before == labels) & (after != labels)):
      if len(self.pictures) >= _PICTURES or positions[i] in self._pictured:
        continue
      self._pictured.add(positions[i])
      picture = {"image": images[i], "adversary": candidates[i], "label": int(labels[i])}
      self.pictures.append({**picture, "before": int(before[i]), "after": int(after[i])})

  def _keep(self, row, positions, images, candidates, taken):
    if row not in self.adversaries:
      self.adversaries[row] = np.zeros((len(self._labels), *self._shape), np.float32)
      self._seen[row] = np.zeros(len(self._labels), bool)
    kept, seen = self.adversaries[row], self._seen[row]
    new = positions[~seen[positions]]
    kept[new] = images[~seen[positions]]
    seen[new] = True
    kept[positions[taken]] = candidates[taken]
