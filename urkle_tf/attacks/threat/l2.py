"""The threat model of the Euclidean length of a change."""

import math

import tensorflow as tf

from urkle_tf import distribution, loops
from urkle_tf.attacks.threat.base import (
  ThreatModel,
  axes,
  largest_of,
  like,
  masked,
  rows_of,
  shape_of,
  total_of,
  water_level,
)

_NEWTON_ITERATIONS = 10


class L2(ThreatModel):
  """The Euclidean ball; the steepest step is the normalised gradient.

  Arguments and errors are those of `ThreatModel`.

  ```python
  threat = urkle_tf.attacks.L2(epsilon=0.5)
  attack = urkle_tf.attacks.PGD(threat, steps=7)
  ```
  """

  norm = "l2"

  def check(self, images):
    diameter = (self.upper - self.lower) * math.sqrt(math.prod(images.shape[1:]))
    if not tf.is_tensor(self.epsilon) and self.epsilon > diameter / 2:
      raise self._too_large(f"is more than half of the pixel box's diameter {diameter:.3g}")

  def length(self, change):
    return tf.sqrt(tf.reduce_sum(tf.square(change), axes(change)))

  def random_start(self, images, seed, radius=1.0):
    noise = self.normalise(distribution.normal(distribution.fold(seed, 0), shape_of(images)))
    # The volume within a share r of the radius grows as r^d.
    share = distribution.uniform(distribution.fold(seed, 1), shape_of(images[..., :1]))
    share = like(rows_of(share)[:, 0], images) ** (1 / math.prod(images.shape[1:]))
    return self.project(self._reflect(images, radius * self.epsilon * share * noise), images)

  def normalise(self, gradient, adversaries=None):
    # Squares of small gradients underflow in float32: scale them up first.
    gradient = tf.math.divide_no_nan(gradient, largest_of(tf.abs(gradient)))
    return tf.math.divide_no_nan(gradient, tf.sqrt(total_of(tf.square(gradient))))

  def project(self, adversaries, images):
    """The nearest point of ball and pixel box.

    By the optimality conditions, it is clip(x + s * offset) with the largest s <= 1 that the ball
    allows.  Scaling onto the sphere and then clipping is the first of the iterations below.  That
    is feasible, but leaves budget unspent wherever a pixel is clipped, so its fixed points miss the
    maximum of a linear objective by O(step size).  The fixed points of the exact projection are
    exactly the maxima, for any step size.
    """
    offsets = adversaries - images
    # Rows of pixels: TensorFlow reduces and broadcasts those several times faster.
    squares = rows_of(tf.square(offsets))
    room = rows_of(tf.square(self._room(images, offsets)))
    budget = tf.square(tf.cast(self.epsilon, tf.float32))

    # Newton's method for f(t) = sum min(t * offset^2, room^2) = epsilon^2 with t = s^2.  f is
    # concave and increasing, so every iterate is feasible, and a few are enough.
    def newton(_, state):
      t, _ = state
      free = t * squares < room
      spent = tf.reduce_sum(masked(~free, room), 1, keepdims=True)
      slope = tf.reduce_sum(masked(free, squares), 1, keepdims=True)
      reached = tf.where(slope > 0, tf.math.divide_no_nan(budget - spent, slope), 1.0)
      reached = tf.clip_by_value(reached, t, 1.0)
      return reached, tf.reduce_any(reached > t * (1 + 1e-6))

    start = tf.zeros_like(squares[:, :1]), tf.constant(True)
    t, _ = loops.repeat(_NEWTON_ITERATIONS, newton, start, going=lambda state: state[1])
    return self._clip(images + like(tf.sqrt(t), images) * offsets)

  def _reach(self, slopes, room, gain):
    # Pixels move in proportion to their slopes, as far as they have room.
    level = water_level(tf.square(slopes), tf.math.divide_no_nan(room, slopes), gain)
    return tf.minimum(level * slopes, room)
