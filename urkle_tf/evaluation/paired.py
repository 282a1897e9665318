"""Two classifiers on the same images: a difference, its interval, and McNemar's exact test."""

import math

import numpy as np
from scipy import stats

LEVEL = 0.05  # of the test


def compare(ours, theirs):
  """Compares two classifiers by the images that only one of them gets right.

  Of n images, let b be right only in ours, and c only in theirs.  The difference is (b - c) / n,
  its standard error sqrt(b + c - (b - c)^2 / n) / n.  McNemar's exact test asks whether b of b + c
  is consistent with a fair coin.

  Args:
    ours: bool [n], the images that our classifier gets right.
    theirs: bool [n], those of the other classifier, for the same images.

  Returns:
    {"difference", "interval" (95%), fractions; "only_here", "only_there", counts; "p",
    two-sided; "shown", whether p is below 0.05}.
  """
  ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
  n, b, c = len(ours), int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
  difference = (b - c) / n
  half = stats.norm.ppf(0.975) * math.sqrt(b + c - (b - c) ** 2 / n) / n
  p = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
  return {
    "difference": difference,
    "interval": [difference - half, difference + half],
    "only_here": b,
    "only_there": c,
    "p": p,
    "shown": p < LEVEL,
  }
