"""Chooses the labels to use: stratified subsets."""

import numpy as np

from urkle_tf import errors

_QUANTILES = 10  # for stratifying numbers


def choose(labels, amount, seed):
  """Draws a class-stratified subset.

  Each class gets its share of the data (largest remainders), and at least one example.  Numbers
  are stratified by their deciles.

  Args:
    labels: int [n] of classes, or float [n] of numbers.
    amount: the number of examples: a count, or a fraction below 1; None for all of them.
    seed: an int.

  Returns:
    int64 [m], ascending positions.

  Raises:
    UserError: if there are too few examples, or `amount` is less than one per class.
  """
  labels = np.asarray(labels)
  if amount is None:
    return np.arange(len(labels), dtype=np.int64)
  if not amount > 0 or (amount >= 1 and amount % 1):
    raise errors.UserError(f"--labels must be a count or a fraction below 1, got {amount}")
  count = int(amount) if amount >= 1 else round(amount * len(labels))
  if count > len(labels):
    raise errors.UserError(
      f"--labels={count}, but there are only {len(labels)} labelled images: give fewer"
    )
  if labels.dtype.kind == "f":
    labels = _quantiles(labels, min(_QUANTILES, count))
  classes, sizes = np.unique(labels, return_counts=True)
  if count < len(classes):
    raise errors.UserError(
      f"--labels={amount} is {count} labels for {len(classes)} classes: give at least one per class"
    )
  # One for each class, and the others in proportion to what is left of each, by largest remainders.
  ideal = (count - len(classes)) * (sizes - 1) / max((sizes - 1).sum(), 1)
  taken = 1 + np.floor(ideal).astype(np.int64)
  order = np.argsort(-(ideal - np.floor(ideal)), kind="stable")
  taken[order[: count - taken.sum()]] += 1
  rng = np.random.default_rng(seed)
  positions = [
    rng.permutation(np.flatnonzero(labels == label))[:number]
    for label, number in zip(classes, taken, strict=True)
  ]
  return np.sort(np.concatenate(positions)).astype(np.int64)


def _quantiles(numbers, parts):
  """The quantile of each number, int [n]; equal numbers have the same quantile."""
  inner = np.linspace(0, 1, max(parts, 1) + 1)[1:-1]
  return np.searchsorted(np.quantile(numbers, inner), numbers, side="right")
