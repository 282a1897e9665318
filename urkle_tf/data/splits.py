"""Reads splits such as `"train[:90%]+test"`."""

import itertools
import re

import numpy as np

from urkle_tf import errors


def select(dataset, text, sizes, examples=None):
  """The parts of a split such as `"train[:90%]+test"`.

  Args:
    dataset: the name of the data set, for messages.
    text: the split.
    sizes: `{name: number of examples}` of the splits that exist.
    examples: keep only this many examples, the first ones; None for all.

  Returns:
    A list of `(name, start, stop)`, none of them an empty range.

  Raises:
    UserError: if there is no such split or slice, or it holds too few examples.
  """
  known = {**sizes, "all": sum(sizes.values())} if "all" not in sizes else sizes
  pieces = []
  for part in str(text).split("+"):
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", part)
    if not match:
      raise errors.UserError(
        f"cannot read split {part!r}: write a name, or a slice such as train[:90%] or train[1000:]"
      )
    name = match[1]
    errors.one_of(f"split of {dataset!r}", name, known)
    start = _boundary(match[2], known[name], 0, part)
    stop = _boundary(match[3], known[name], known[name], part)
    if start >= stop:
      raise errors.UserError(
        f"split {part!r} of {dataset!r} is empty: {name} has {known[name]} examples"
      )
    if name in sizes:
      pieces.append((name, start, stop))
      continue
    for inner, size in sizes.items():
      if max(start, 0) < min(stop, size):
        pieces.append((inner, max(start, 0), min(stop, size)))
      start, stop = start - size, stop - size
  return pieces if examples is None else _first(pieces, examples, f"{text!r} of {dataset!r}")


def _boundary(text, size, default, part):
  if not text:
    return default
  if text.endswith("%"):
    value = int(text[:-1])
    if abs(value) > 100:
      raise errors.UserError(f"split {part!r} has more than 100%: give at most 100%")
    value = round(value * size / 100)
  else:
    value = int(text)
  if value < 0:
    value += size
  if not 0 <= value <= size:
    raise errors.UserError(f"split {part!r} goes beyond its {size} examples: give a smaller range")
  return value


def _first(pieces, examples, what):
  """Cuts pieces down to the first `examples`."""
  errors.whole(1, None, examples=examples)
  size = sum(stop - start for _, start, stop in pieces)
  if examples > size:
    raise errors.UserError(f"--examples={examples}, but {what} has only {size}: give fewer")
  kept = []
  for name, start, stop in pieces:
    stop = min(stop, start + examples)
    if start < stop:
      kept.append((name, start, stop))
    examples -= stop - start
  return kept


def origins(pieces, sizes):
  """What number each example of `pieces` has in the whole data set, int64 [n].

  Args:
    pieces: as `select` returns them.
    sizes: as in `select`; the data set is these splits, one after the other.
  """
  first = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
  ranges = [np.arange(first[name] + start, first[name] + stop) for name, start, stop in pieces]
  return np.concatenate(ranges)


def holds_test_images(text):
  """Whether a split such as `"train[:90%]+test"` names test images; folders say `Testing`, too."""
  names = {part.split("[")[0].strip().lower() for part in str(text).split("+")}
  return not names.isdisjoint({"test", "testing", "all"})
