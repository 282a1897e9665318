"""The bundled data set: scikit-learn's 1,797 handwritten digits."""

import numpy as np

from urkle_tf.data import fitting, splits

CLASS_NAMES = [str(digit) for digit in range(10)]
_TEST_SIZE = 360


def read(split, image_size=None, examples=None):
  """Reads a split; `train` and `test` are a fixed stratified cut.

  Args:
    split: as in `splits.select`.
    image_size: height and width in pixels; None for 8.
    examples: take only this many examples, the first ones; None for all.

  Returns:
    `(images, labels, origin)`: uint8 [n, h, w, 1], int64 [n], and int64 [n], the numbers of the
    images in the whole data set.
  """
  from sklearn import datasets

  bundle = datasets.load_digits()
  images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = bundle.target.astype(np.int64)
  test = _stratified(labels, _TEST_SIZE)
  indices = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
  sizes = {name: len(found) for name, found in indices.items()}
  pieces = splits.select("digits", split, sizes, examples)
  chosen = np.concatenate([indices[name][start:stop] for name, start, stop in pieces])
  images = images[chosen]
  if image_size:
    images = np.asarray(fitting.fit(images, (image_size, image_size, 1)))
  return images, labels[chosen], chosen


def _stratified(labels, size):
  """Chooses `size` of `labels`, each class in proportion: a bool mask, always the same."""
  counts = np.bincount(labels)
  share = counts * size / len(labels)
  take = np.floor(share).astype(int)
  largest = np.argsort(take - share, kind="stable")
  take[largest[: size - take.sum()]] += 1
  random = np.random.RandomState(0)  # NumPy guarantees its numbers, but not those of `default_rng`
  mask = np.zeros(len(labels), bool)
  for label, count in enumerate(take):
    mask[random.permutation(np.flatnonzero(labels == label))[:count]] = True
  return mask
