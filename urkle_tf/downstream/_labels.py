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
  # A class with a share below 1 gets one, and the others share the rest, by largest remainders.
  share, whole = np.zeros(len(classes)), np.ones(len(classes), bool)
  while share.min() < 1:
    share = np.where(whole, (count - np.sum(~whole)) * sizes / sizes[whole].sum(), 1.0)
    whole &= share >= 1
  taken = np.floor(share).astype(np.int64)
  order = np.argsort(-(share - taken), kind="stable")
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
