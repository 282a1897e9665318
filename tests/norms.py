"""Norms and sums of each example, in NumPy and TensorFlow, as tests of attacks need them."""

import numpy as np
import tensorflow as tf

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def total(values):
  """[n, h, w, c] -> [n]."""
  return tf.reduce_sum(values, [1, 2, 3])


def norms(values, norm):
  """[n, ...] -> float64 [n]: the norm of each example."""
  values = np.asarray(values, np.float64)
  return np.linalg.norm(values.reshape(len(values), -1), ORDER[norm], axis=1)
