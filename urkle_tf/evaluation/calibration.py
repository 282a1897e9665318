"""Accuracy, and how reliable predicted probabilities are: NLL, ECE, Brier score."""

import math

import numpy as np

BINS = 15
CALLS = 10  # calls of a served classifier that must all be right
_NORMAL_QUANTILE = 1.959963984540054  # of 97.5%


def wilson(right, total):
  """The 95% confidence interval of a share (Wilson, 1927).

  Args:
    right: the number of successes.
    total: the number of trials, at least 1.

  Returns:
    [low, high], fractions.
  """
  square, share = _NORMAL_QUANTILE**2, right / total
  centre = (share + square / (2 * total)) / (1 + square / total)
  spread = share * (1 - share) / total + square / (4 * total**2)
  half = _NORMAL_QUANTILE * math.sqrt(spread) / (1 + square / total)
  return [max(centre - half, 0.0), min(centre + half, 1.0)]


def scores(log_probabilities, labels):
  """Accuracy with its interval, NLL, ECE, Brier score and the data of a reliability diagram.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].

  Returns:
    {"accuracy", "interval", "nll", "ece", "brier", "reliability"}.
  """
  right = int(np.sum(np.argmax(log_probabilities, 1) == labels))
  sums = binned(log_probabilities, labels)
  return {
    "accuracy": right / len(labels),
    "interval": wilson(right, len(labels)),
    "nll": nll(log_probabilities, labels),
    "ece": ece_of(sums),
    "brier": brier(log_probabilities, labels),
    "reliability": reliability(sums),
  }


def served(votes, labels, samples):
  """What a caller of a sampled classifier sees: means over few samples of z.

  Args:
    votes: int [n, groups]: predictions of independent calls, at least 10.
    labels: int [n].
    samples: the samples of z that a call averages over.

  Returns:
    {"served_accuracy": the expected accuracy of a call, the mean over images and calls;
    "accuracy_all_draws": the share of images that are right in each of the first 10 calls;
    "served_interval" and "interval_all_draws": their 95% intervals (an image's calls are dependent,
    but the mean's true interval is never wider); "served_samples": `samples`; "draws": 10}.
  """
  right = votes == np.asarray(labels)[:, None]
  expected, always = float(right.mean()), int(right[:, :CALLS].all(1).sum())
  interval = lambda count: wilson(count, len(labels))  # noqa: E731
  return {
    "served_accuracy": expected,
    "served_interval": interval(expected * len(labels)),
    "accuracy_all_draws": always / len(labels),
    "interval_all_draws": interval(always),
    "served_samples": samples,
    "draws": CALLS,
  }


def nll(log_probabilities, labels):
  """The mean of -log p(y), uncapped, in nats.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
  """
  return float(-np.mean(of_label(log_probabilities, labels), dtype=np.float64))


def binned(log_probabilities, labels):
  """Sums for the calibration error and the reliability diagram, which add up over batches.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].

  Returns:
    float64 [3, BINS]: for each bin the number of examples, the sum of their confidences, and the
    number classified correctly.  The bins have equal width over the confidence, the highest
    probability.
  """
  confidence = np.exp(np.max(log_probabilities, 1).astype(np.float64))
  right = np.argmax(log_probabilities, 1) == labels
  index = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
  return np.stack(
    [np.bincount(index, weights, BINS) for weights in (np.ones(len(index)), confidence, right)]
  )


def ece_of(sums):
  """The expected calibration error (Guo et al., 2017).

      sum over bins b of |b| / n * |accuracy(b) - mean confidence(b)|

  Args:
    sums: float64 [3, BINS], from `binned`.
  """
  count, confidence, right = sums
  return float(np.abs(right - confidence).sum() / count.sum())


def reliability(sums):
  """A reliability diagram's data (Niculescu-Mizil and Caruana, 2005).

  Args:
    sums: float64 [3, BINS], from `binned`.

  Returns:
    {"count", "confidence", "accuracy"}: lists with one entry per bin, 0 for an empty bin.
  """
  count, confidence, right = sums
  filled = np.maximum(count, 1)
  return {
    "count": count.astype(int).tolist(),
    "confidence": (confidence / filled).tolist(),
    "accuracy": (right / filled).tolist(),
  }


def brier(log_probabilities, labels):
  """The mean over examples of sum_k (p_k - 1[y = k])^2: 0 is best, 2 worst."""
  probabilities = np.exp(log_probabilities.astype(np.float64))
  right = np.exp(of_label(log_probabilities, labels).astype(np.float64))
  return float(np.mean(np.sum(probabilities**2, 1) - 2 * right + 1))


def of_label(log_probabilities, labels):
  """The log p(y) of each example, [n], from [n, classes]."""
  return log_probabilities[np.arange(len(labels)), labels]
