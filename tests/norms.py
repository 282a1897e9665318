"""Norms and sums of each example, in NumPy and TensorFlow, as tests of attacks need them."""

import numpy as np
import tensorflow as tf
from scipy import optimize

NORMS = ["linf", "l2", "l1"]
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def total(values):
  """[n, h, w, c] -> [n]."""
  return tf.reduce_sum(values, [1, 2, 3])


def recorded(objective):
  """(An objective that notes its calls, the notes: [(values, images)] as NumPy arrays)."""
  notes = []

  def noting(images):
    values = objective(images)
    notes.append((np.asarray(values), np.asarray(images)))
    return values

  return noting, notes


def linear_maximum(x, g, norm, epsilon):
  """The offset that maximises g . offset in ball and box, for one flat image."""
  room = np.where(g > 0, 1 - x, x)
  if norm == "linf":
    return np.sign(g) * np.minimum(epsilon, room)
  if norm == "l1":  # greedy: the largest gradients first, each up to its bound
    offset, budget = np.zeros_like(x), epsilon
    for i in np.argsort(-np.abs(g)):
      offset[i] = np.sign(g[i]) * min(room[i], budget)
      budget -= abs(offset[i])
    return offset
  offset = lambda t: np.sign(g) * np.minimum(t * np.abs(g), room)  # noqa: E731
  spent = lambda t: np.linalg.norm(offset(t)) - epsilon  # noqa: E731
  most = (room / np.abs(g)).max()
  return offset(most if spent(most) < 0 else optimize.brentq(spent, 0, most))


def distances(weights, bias, images, labels, norm):
  """How far each image is from the nearest boundary of a linear classifier; below 0 beyond it.

  min_j (z_y - z_j) / ||w_y - w_j||_dual, float64 [n].
  """
  found = []
  for z, y in zip(images.reshape(len(images), -1).astype(np.float64) @ weights + bias, labels):
    slopes = weights[:, [y]] - np.delete(weights, y, 1)
    gaps = z[y] - np.delete(z, y)
    found.append(np.min(gaps / np.linalg.norm(slopes, DUAL[norm], axis=0)))
  return np.array(found)


def assert_inside(points, images, norm, epsilon):
  """Points are in the ball around images up to float32's rounding, and in [0, 1] exactly."""
  points = np.asarray(points)
  assert points.dtype == np.float32
  assert 0 <= points.min() <= points.max() <= 1  # which no NaN is
  distance = norms(np.float64(points) - np.float64(images), norm)
  assert (distance <= epsilon + 1e-6 * max(1, epsilon)).all()


def norms(values, norm):
  """[n, ...] -> float64 [n]: the norm of each example."""
  values = np.asarray(values, np.float64)
  return np.linalg.norm(values.reshape(len(values), -1), ORDER[norm], axis=1)
