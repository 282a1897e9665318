"""What a classifier does on images as they are."""

import math

import numpy as np

from urkle_tf.evaluation import calibration, scoring

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


def served(votes, labels, samples):
  """What one who calls a sampled classifier sees: means over few samples of z.

  Args:
    votes: int [n, groups]: predictions of independent calls, at least 10.
    labels: int [n].
    samples: of z that a call averages over.

  Returns:
    {"served_accuracy": the expected accuracy of a call, the mean over images and calls;
    "accuracy_all_draws": the share of images that are right in each of the first 10 calls;
    "served_interval" and "interval_all_draws": their 95% intervals (an image's calls depend on
    each other, and however they do, the mean's true interval is not wider);
    "served_samples": `samples`; "draws": 10}.
  """
  right = votes == np.asarray(labels)[:, None]
  expected, always = float(right.mean()), int(right[:, : scoring.CALLS].all(1).sum())
  return {
    "served_accuracy": expected,
    "served_interval": wilson(expected * len(labels), len(labels)),
    "accuracy_all_draws": always / len(labels),
    "interval_all_draws": wilson(always, len(labels)),
    "served_samples": samples,
    "draws": scoring.CALLS,
  }


def measure(log_probabilities, labels, votes=None, samples=None):
  """The report's part "clean".

  Args:
    log_probabilities: {mode: float [n, classes]}, the served mode first.
    labels: int [n].
    votes: of `served`, where the sampled mode is served.
    samples: likewise.

  Returns:
    The served mode's scores, with "mode", "examples", and the other mode's under its name.
  """
  (mode, values), *others = log_probabilities.items()
  part = {"mode": mode, "examples": len(labels), **scores(values, labels)}
  if votes is not None:
    part |= served(votes, labels, samples)
  return part | {name: scores(values, labels) for name, values in others}
