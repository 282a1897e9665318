"""How far predicted probabilities can be believed: NLL, ECE, Brier score."""

import numpy as np

BINS = 15


def nll(log_probabilities, labels):
  """The mean of -log p(y), uncapped, in nats.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
  """
  return float(-np.mean(_of_label(log_probabilities, labels), dtype=np.float64))


def ece(log_probabilities, labels, bins=BINS):
  """The expected calibration error (Guo et al., 2017).

      sum over bins b of |b| / n * |accuracy(b) - mean confidence(b)|

  with bins of equal width over the confidence, the highest probability.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
    bins: how many.
  """
  return ece_of(binned(log_probabilities, labels, bins))


def binned(log_probabilities, labels, bins=BINS):
  """What the calibration error and the reliability diagram need; adds up over batches.

  Args:
    log_probabilities: float [n, classes].
    labels: int [n].
    bins: how many, of equal width over the confidence.

  Returns:
    float64 [3, bins]: of each bin the number of examples, the sum of their confidences, and
    how many were classified rightly.
  """
  confidence = np.exp(np.max(log_probabilities, 1).astype(np.float64))
  right = np.argmax(log_probabilities, 1) == labels
  index = np.clip((confidence * bins).astype(int), 0, bins - 1)
  return np.stack(
    [np.bincount(index, weights, bins) for weights in (np.ones(len(index)), confidence, right)]
  )


def ece_of(sums):
  """`ece`, of what `binned` returns."""
  count, confidence, right = sums
  return float(np.abs(right - confidence).sum() / count.sum())


def reliability(sums):
  """A reliability diagram's data (Niculescu-Mizil and Caruana, 2005).

  Args:
    sums: float64 [3, bins], from `binned`.

  Returns:
    {"count", "confidence", "accuracy"}: lists, an entry a bin; the means of an empty bin are 0.
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
  right = np.exp(_of_label(log_probabilities, labels).astype(np.float64))
  return float(np.mean(np.sum(probabilities**2, 1) - 2 * right + 1))


def _of_label(log_probabilities, labels):
  return log_probabilities[np.arange(len(labels)), labels]
