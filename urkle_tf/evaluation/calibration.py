"""How far predicted probabilities can be believed: NLL, ECE, Brier score."""

import numpy as np


def nll(log_probabilities, labels):
  """The mean of -log p(y), uncapped, in nats.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
  """
  return float(-np.mean(_of_label(log_probabilities, labels), dtype=np.float64))


def ece(log_probabilities, labels, bins=15):
  """The expected calibration error (Guo et al., 2017).

      sum over bins b of |b| / n * |accuracy(b) - mean confidence(b)|

  with bins of equal width over the confidence, the highest probability.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
    bins: how many.
  """
  confidence = np.exp(np.max(log_probabilities, 1).astype(np.float64))
  right = np.argmax(log_probabilities, 1) == labels
  index = np.clip((confidence * bins).astype(int), 0, bins - 1)
  gaps = np.bincount(index, right - confidence, bins)
  return float(np.abs(gaps).sum() / len(labels))


def brier(log_probabilities, labels):
  """The mean over examples of sum_k (p_k - 1[y = k])^2: 0 is best, 2 worst."""
  probabilities = np.exp(log_probabilities.astype(np.float64))
  right = np.exp(_of_label(log_probabilities, labels).astype(np.float64))
  return float(np.mean(np.sum(probabilities**2, 1) - 2 * right + 1))


def _of_label(log_probabilities, labels):
  return log_probabilities[np.arange(len(labels)), labels]
