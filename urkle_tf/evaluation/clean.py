"""What a classifier does on images as they are."""

import math

import numpy as np

from urkle_tf.evaluation import calibration

_NORMAL_QUANTILE = 1.959963984540054  # of 97.5%


def wilson(right, total):
  """The 95% confidence interval of a share (Wilson, 1927).

  Args:
    right: how many succeeded.
    total: out of how many, at least 1.

  Returns:
    [low, high], fractions.
  """
  square, share = _NORMAL_QUANTILE**2, right / total
  centre = (share + square / (2 * total)) / (1 + square / total)
  spread = share * (1 - share) / total + square / (4 * total**2)
  half = _NORMAL_QUANTILE * math.sqrt(spread) / (1 + square / total)
  return [max(centre - half, 0.0), min(centre + half, 1.0)]


def scores(log_probabilities, labels):
  """Accuracy with its interval, NLL, ECE, Brier score and what a reliability diagram shows.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].

  Returns:
    {"accuracy", "interval", "nll", "ece", "brier", "reliability"}.
  """
  right = int(np.sum(np.argmax(log_probabilities, 1) == labels))
  sums = calibration.binned(log_probabilities, labels)
  return {
    "accuracy": right / len(labels),
    "interval": wilson(right, len(labels)),
    "nll": calibration.nll(log_probabilities, labels),
    "ece": calibration.ece_of(sums),
    "brier": calibration.brier(log_probabilities, labels),
    "reliability": calibration.reliability(sums),
  }


def measure(log_probabilities, labels):
  """The report's part "clean".

  Args:
    log_probabilities: {mode: float [n, classes]}, the served mode first.
    labels: int [n].

  Returns:
    The served mode's scores, with "mode", "examples", and the other mode's under its name.
  """
  (served, values), *others = log_probabilities.items()
  part = {"mode": served, "examples": len(labels), **scores(values, labels)}
  return part | {mode: scores(values, labels) for mode, values in others}
