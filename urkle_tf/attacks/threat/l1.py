"""The threat model of the sum of all changes."""

import math

import tensorflow as tf

from urkle_tf import distribution, errors, loops
from urkle_tf.attacks.threat.base import (
  ThreatModel,
  axes,
  largest_of,
  like,
  masked,
  rows_of,
  shape_of,
  total_of,
)

_BISECTIONS = 32


class L1(ThreatModel):
  """The ball of the sum of absolute changes, with sparse steps.

  The steepest step of unit l1 norm moves a single pixel, so it would take thousands of steps.  As
  in SLIDE (Tramèr and Boneh, 2019) and APGD-l1 (Croce and Hein, 2021), a step moves the share 1 -
  `sparsity` of the pixels, those with the largest gradients.  Unlike theirs, it moves them in
  proportion to their gradients, so that a fixed point spends the budget on the largest gradients
  first.

  ```python
  threat = urkle_tf.attacks.L1(epsilon=12.0, sparsity=0.95)
  attack = urkle_tf.attacks.PGD(threat, steps=7)
  ```
  """

  norm = "l1"

  def __init__(self, epsilon, lower=0.0, upper=1.0, sparsity=0.95):
    """Builds the threat model.

    Args:
      epsilon: the radius in pixel units: a number >= 0 or a scalar tensor.
      lower: the smallest pixel value.
      upper: the largest pixel value.
      sparsity: the share of the pixels that a step does not move, in [0, 1); or one for each
        example, a float32 [n] tensor, which is not checked.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(epsilon, lower, upper)
    if not tf.is_tensor(sparsity):
      errors.within("[0, 1)", "l1", sparsity=sparsity)
      sparsity = float(sparsity)
    self.sparsity = sparsity

  def with_sparsity(self, sparsity):
    """Returns a copy with another sparsity: a number, or a float32 [n] tensor."""
    return L1(**{**self.options(), "sparsity": sparsity})

  def options(self):
    return {**super().options(), "sparsity": self.sparsity}

  def check(self, images):
    diameter = (self.upper - self.lower) * math.prod(images.shape[1:])
    if not tf.is_tensor(self.epsilon) and self.epsilon > diameter / 2:
      raise self._too_large(f"is more than half of the pixel box's diameter {diameter:.3g}")

  def length(self, change):
    return tf.reduce_sum(tf.abs(change), axes(change))

  def random_start(self, images, seed, radius=1.0):
    # Exponential spacings: d of d + 1 exponentials, over their sum, are uniform on the simplex, and
    # with random signs on the l1 ball.  The last one comes from a second array, since draws belong
    # to rows of the batch.
    shape = shape_of(images)
    signed = distribution.uniform(distribution.fold(seed, 0), shape, -1.0, 1.0)
    sizes = -tf.math.log(tf.maximum(tf.abs(signed), 1e-30))
    last = distribution.uniform(distribution.fold(seed, 1), shape_of(images[..., :1]))
    last = -tf.math.log(tf.maximum(like(rows_of(last)[:, 0], images), 1e-30))
    share = tf.sign(signed) * sizes / (total_of(sizes) + last)
    return self.project(self._reflect(images, radius * self.epsilon * share), images)

  def normalise(self, gradient, adversaries=None):
    """The sparse direction: the largest gradients, of unit l1 norm.

    If `adversaries` are given, pixels that are already at a bound do not count: the unit norm is
    over the pixels that can move.  Pixels at a bound are still pushed against it, or the projection
    would pull them off (nothing else outweighs its threshold).
    """
    # Small gradients are scaled up first, as for l2.
    gradient = tf.math.divide_no_nan(gradient, largest_of(tf.abs(gradient)))
    held = tf.zeros_like(gradient, tf.bool)
    if adversaries is not None:
      held = ((gradient > 0) & (adversaries >= self.upper)) | (
        (gradient < 0) & (adversaries <= self.lower)
      )
    sizes = masked(~held, tf.abs(gradient))
    threshold = like(self._threshold(rows_of(sizes)), gradient)
    kept = masked((sizes >= threshold) & ~held, gradient)
    unit = tf.math.divide_no_nan(gradient, total_of(tf.abs(kept)))
    return masked(held | (kept != 0), tf.clip_by_value(unit, -1.0, 1.0))

  def _threshold(self, sizes):
    """[n]: the smallest of the sizes [n, pixels] that a step moves."""
    pixels = sizes.shape[1]
    if not tf.is_tensor(self.sparsity):
      count = max(1, round((1 - self.sparsity) * pixels))
      return tf.math.top_k(sizes, count).values[:, -1]
    count = tf.cast(tf.round((1 - self.sparsity) * pixels), tf.int32)
    last = tf.clip_by_value(count, 1, pixels) - 1
    return tf.gather(tf.sort(sizes, 1, "DESCENDING"), last, batch_dims=1)

  def project(self, adversaries, images):
    """The nearest point of ball and pixel box.

    By the optimality conditions, each pixel's offset is soft-thresholded by one theta >= 0 per
    example, and then clipped to the box.  Bisection finds theta, the smallest that the ball allows.
    """
    offsets = adversaries - images
    sizes = rows_of(tf.abs(offsets))
    room = rows_of(self._room(images, offsets))
    epsilon = tf.cast(self.epsilon, tf.float32)

    def spent(theta):
      kept = tf.minimum(tf.maximum(sizes - theta, 0.0), room)
      return tf.reduce_sum(kept, 1, keepdims=True)

    feasible = lambda theta: spent(theta) <= epsilon  # noqa: E731
    high = tf.reduce_max(sizes, 1, keepdims=True)
    theta = loops.bisect(_BISECTIONS, feasible, tf.zeros_like(high), high)
    theta = tf.where(feasible(0.0), 0.0, theta)
    kept = tf.maximum(tf.abs(offsets) - like(theta, images), 0.0)
    return self._clip(images + tf.sign(offsets) * kept)

  def _reach(self, slopes, room, gain):
    # The steepest pixels move first, each as far as it has room.  The last of them share the rest.
    gains = slopes * room
    last = _steepest(slopes, gains, gain)
    full = slopes > last
    missing = gain - tf.reduce_sum(masked(full, gains), 1, keepdims=True)
    shared = tf.reduce_sum(masked(slopes == last, gains), 1, keepdims=True)
    share = tf.clip_by_value(tf.math.divide_no_nan(missing, shared), 0.0, 1.0)
    return masked(full, room) + masked(slopes == last, share * room)


def _steepest(slopes, gains, gain):
  """The smallest slope above which all gains together do not exceed `gain`.

  By bisection over the bit patterns of floats >= 0, whose order is that of the floats: exact, and
  several times faster than a sort.

  Args:
    slopes: float32 [n, pixels] >= 0.
    gains: float32 [n, pixels] >= 0: of each pixel.
    gain: float32 [n, 1] >= 0.

  Returns:
    float32 [n, 1]: one of the row's slopes, or 0.
  """
  patterns = tf.bitcast(slopes, tf.int32)

  def fits(pattern):
    beyond = tf.reduce_sum(masked(patterns > pattern, gains), 1, keepdims=True)
    return beyond <= gain

  high = tf.reduce_max(patterns, 1, keepdims=True)
  # The first `low` is below all patterns, and no later one is returned.
  found = loops.bisect(31, fits, tf.fill(tf.shape(high), -1), high)
  return tf.bitcast(found, tf.float32)
