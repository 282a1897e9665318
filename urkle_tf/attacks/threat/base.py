"""What the norms share: the ball cut by the pixel bounds, and sums over pixels."""

import copy
import math
import numbers

import tensorflow as tf

from urkle_tf import errors, loops

_MOST_PIECES = 100  # of a piecewise linear function; about 5 are passed


class ThreatModel:
  """A ball of radius `epsilon` around each image, cut by the pixel bounds.

  Images must lie within the bounds themselves: the set is empty otherwise.

  Attributes:
    norm: the norm's name: "linf", "l2" or "l1".
    epsilon: the radius in pixel units (images are in [lower, upper]): a float, or a scalar float32
      tensor (see `with_epsilon`).
    lower: the smallest pixel value.
    upper: the largest pixel value.

  ```python
  threat = urkle_tf.attacks.Linf(epsilon=8 / 255)  # a ThreatModel
  pixels = tf.constant(images)  # a threat model takes tensors, not arrays
  neighbours = threat.random_start(pixels, seed=[0, 0])  # of their shape
  distances = threat.distance(neighbours, pixels)  # float32 [n], at most 8/255
  ```
  """

  norm = ""

  def __init__(self, epsilon, lower=0.0, upper=1.0):
    """Builds the threat model.

    Args:
      epsilon: the radius in pixel units: a number >= 0 (0 allows only the image itself), or a
        scalar tensor, which is not checked.
      lower: the smallest pixel value.
      upper: the largest pixel value.

    Raises:
      UserError: if `epsilon` is not a number, is negative, or looks like 0-255 units, or if `lower`
        is not below `upper`.
    """
    if not lower < upper:
      raise errors.UserError(f"lower must be below upper, got lower={lower} and upper={upper}")
    self.lower, self.upper = float(lower), float(upper)
    self.epsilon = epsilon if tf.is_tensor(epsilon) else self._checked(epsilon)

  def _checked(self, epsilon):
    if isinstance(epsilon, str) or not isinstance(epsilon, numbers.Real):
      raise errors.UserError(f"epsilon must be a number such as 8/255, got {epsilon!r}")
    if not math.isfinite(epsilon) or epsilon < 0:
      raise errors.UserError(f"epsilon must be a finite number of at least 0, got {epsilon}")
    return float(epsilon)

  def _too_large(self, why):
    return errors.UserError(
      f"{self.norm} epsilon={self.epsilon:g} {why}: it looks like 0-255 units, but pixels are in "
      f"[{self.lower:g}, {self.upper:g}]; write {self.epsilon:g}/255"
    )

  def check(self, images):
    """Refuses an `epsilon` that is too large for images of this size.

    That is a radius of more than half the box's diameter: such a ball around mid-grey holds every
    image.  A tensor `epsilon` is not checked.

    Args:
      images: [n, ...] with static height, width and channels.

    Raises:
      UserError: if `epsilon` looks like 0-255 units.
    """
    return  # AutoGraph warns of a body that is only a docstring

  def with_epsilon(self, epsilon):
    """Returns a copy with another radius.

    Args:
      epsilon: a number, which is checked; or a scalar tensor, which is not, for a compiled training
        step that warms epsilon up.
    """
    if not tf.is_tensor(epsilon):
      return type(self)(**{**self.options(), "epsilon": epsilon})
    other = copy.copy(self)
    other.epsilon = tf.cast(epsilon, tf.float32)
    return other

  def options(self):
    """The arguments that build this threat model again."""
    return {"epsilon": self.epsilon, "lower": self.lower, "upper": self.upper}

  def __repr__(self):
    options = ", ".join(f"{name}={value}" for name, value in self.options().items())
    return f"{type(self).__name__}({options})"

  def _clip(self, images):
    return tf.clip_by_value(images, self.lower, self.upper)

  def _reflect(self, images, offsets):
    """Adds offsets, and flips the sign of those that would leave the pixel box.

    A flipped offset keeps its size, so the norm stays, and a pixel at a bound still moves.  Offsets
    that fit in neither direction are clipped.
    """
    moved = images + offsets
    outside = (moved < self.lower) | (moved > self.upper)
    return self._clip(masked(outside, images - offsets) + masked(~outside, moved))

  def _room(self, images, offsets):
    """How far each pixel can go in the direction of its offset."""
    up = tf.cast(offsets > 0, images.dtype)
    return tf.maximum(up * (self.upper - images) + (1 - up) * (images - self.lower), 0.0)

  def length(self, change):
    """The norm of a change.

    Args:
      change: float32 [n, ...].

    Returns:
      float32 [n], pixel units.
    """
    raise NotImplementedError

  def distance(self, adversaries, images):
    """The norm of the difference.

    Args:
      adversaries: float32 [n, ...].
      images: float32 [n, ...].

    Returns:
      float32 [n], pixel units.
    """
    return self.length(adversaries - images)

  def random_start(self, images, seed, radius=1.0):
    """A random point of the set that is not the image itself.

    The noise is keyed by the example of the global batch (`distribution`), so the points do not
    depend on the number of replicas.

    Args:
      images: float32 [n, ...] within the pixel bounds: this replica's rows.
      seed: int32 [2].
      radius: the share of `epsilon` that the start may use, in (0, 1].

    Returns:
      float32 [n, ...].
    """
    raise NotImplementedError

  def normalise(self, gradient, adversaries=None):
    """The direction of unit norm along which a linear function grows fastest.

    An all-zero gradient gives an all-zero direction.  Nothing moves then, and the attack reports a
    share of zero gradients.

    Args:
      gradient: float32 [n, ...].
      adversaries: float32 [n, ...] or None: where the step starts, for norms whose step depends on
        which pixels can still move (`L1`).

    Returns:
      float32 [n, ...].
    """
    raise NotImplementedError

  def project(self, adversaries, images):
    """The nearest point of ball and pixel box.

    Args:
      adversaries: float32 [n, ...].
      images: float32 [n, ...] within the pixel bounds.

    Returns:
      float32 [n, ...]: exactly within the bounds, and within `epsilon` of `images` up to rounding.
    """
    raise NotImplementedError

  def step(self, adversaries, gradient, images, size):
    """One step of projected steepest ascent.

    Args:
      adversaries: float32 [n, ...]: where the step starts.
      gradient: float32 [n, ...]: the objective's gradient there.
      images: float32 [n, ...]: the centres of the balls.
      size: the step's norm in pixel units.

    Returns:
      float32 [n, ...] inside the threat model.
    """
    return self.project(adversaries + size * self.normalise(gradient, adversaries), images)

  def reach(self, images, gradient, gain):
    """The smallest change within the pixel box that raises a linear function by a given amount.

        argmin ||d||  such that  <gradient, d> = gain,  lower <= images + d <= upper

    This is the projection onto a hyperplane and the box, whatever `epsilon` is.  If the box does
    not allow the gain, it is the change that gains the most.

    Args:
      images: float32 [n, ...] within the pixel bounds.
      gradient: float32 [n, ...]; nothing changes where it is zero.
      gain: float32 [n], of either sign.

    Returns:
      float32 [n, ...]: d.
    """
    largest = largest_of(tf.abs(gradient))  # scaled as in `L2.normalise`
    gain = tf.math.divide_no_nan(like(gain, images), largest)
    gradient = tf.math.divide_no_nan(gradient, largest)
    direction = tf.sign(gradient) * tf.sign(gain)
    sizes = self._reach(
      rows_of(tf.abs(gradient)), rows_of(self._room(images, direction)), rows_of(tf.abs(gain))
    )
    return direction * tf.reshape(sizes, shape_of(direction))

  def _reach(self, slopes, room, gain):
    """The d of the smallest norm with sum slopes * d = gain and 0 <= d <= room.

    All float32 >= 0: slopes and room [n, pixels], gain [n, 1].
    """
    raise NotImplementedError


def axes(images):
  """All axes except the batch."""
  return list(range(1, len(images.shape)))


def total_of(values):
  """The sum over all axes except the batch; the axes stay."""
  return like(tf.reduce_sum(rows_of(values), 1), values)


def largest_of(values):
  """The maximum over all axes except the batch; the axes stay."""
  return like(tf.reduce_max(rows_of(values), 1), values)


def rows_of(values):
  """[n, ...] as [n, pixels]."""
  return tf.reshape(values, [-1, math.prod(values.shape[1:])])


def like(values, images):
  """One value per example, [n] or [n, 1], to be broadcast over `images`."""
  return tf.reshape(values, [-1] + [1] * (len(images.shape) - 1))


def shape_of(images):
  """The shape of `images`: a list of ints where static, else a tensor."""
  return images.shape.as_list() if images.shape.is_fully_defined() else tf.shape(images)


def masked(mask, values):
  """Finite values where the mask, bool of their shape, is true, and 0 elsewhere.

  `tf.where` takes four times as long for a mask of pixels on a CPU.
  """
  return values * tf.cast(mask, values.dtype)


def water_level(weights, breaks, gain):
  """The s at which sum_i weights_i * min(s, breaks_i) = gain; the largest break if there is none.

  The left side is concave, increasing and piecewise linear in s.  So Newton's method from 0
  approaches from the left and ends exactly, on the right piece.  That takes a few reductions.
  Sorting the breaks would take ten times as long.

  Args:
    weights: float32 [n, pixels] >= 0.
    breaks: float32 [n, pixels] >= 0.
    gain: float32 [n, 1] >= 0.

  Returns:
    float32 [n, 1].
  """
  full = weights * breaks
  end = tf.reduce_max(breaks, 1, keepdims=True)

  def newton(_, state):
    level, _ = state
    free = level < breaks
    held = tf.reduce_sum(masked(~free, full), 1, keepdims=True)
    slope = tf.reduce_sum(masked(free, weights), 1, keepdims=True)
    # Without a slope, the gain cannot be reached.
    reached = tf.where(slope > 0, tf.math.divide_no_nan(gain - held, slope), end)
    reached = tf.where(gain > held, tf.clip_by_value(reached, level, end), level)
    return reached, tf.reduce_any(reached > level * (1 + 1e-6))

  start = tf.zeros_like(gain), tf.constant(True)
  return loops.repeat(_MOST_PIECES, newton, start, going=lambda state: state[1])[0]
