"""The threat model of the largest change of a pixel."""

import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.attacks.threat.base import ThreatModel, axes, shape_of, water_level


class Linf(ThreatModel):
  """Every pixel may change by `epsilon`; the steepest step is the sign.

  The sign of a zero gradient is 0: these pixels do not move.  Arguments and errors are those of
  `ThreatModel`; epsilon is at most the pixel range.

  ```python
  threat = urkle_tf.attacks.Linf(epsilon=8 / 255)
  attack = urkle_tf.attacks.PGD(threat, steps=7)
  ```
  """

  norm = "linf"

  def _checked(self, epsilon):
    self.epsilon = super()._checked(epsilon)
    if self.epsilon > self.upper - self.lower:
      raise self._too_large("is more than the whole pixel range")
    return self.epsilon

  def length(self, change):
    return tf.reduce_max(tf.abs(change), axes(change))

  def random_start(self, images, seed, radius=1.0):
    # Uniform on the intersection of ball and box.  Clipping uniform noise instead would leave half
    # of the pixels at a bound (MNIST's background) where they are.
    low = tf.maximum(images - radius * self.epsilon, self.lower)
    high = tf.minimum(images + radius * self.epsilon, self.upper)
    noise = distribution.uniform(seed, shape_of(images))
    return self.project(low + noise * (high - low), images)

  def normalise(self, gradient, adversaries=None):
    return tf.sign(gradient)

  def project(self, adversaries, images):
    low = tf.maximum(images - self.epsilon, self.lower)
    high = tf.minimum(images + self.epsilon, self.upper)
    return tf.clip_by_value(adversaries, low, high)

  def _reach(self, slopes, room, gain):
    # All pixels move by the same amount, as far as they have room.
    return tf.minimum(water_level(slopes, room, gain), room)
