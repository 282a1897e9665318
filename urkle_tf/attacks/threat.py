"""Threat models: what an adversary may do to an image, as geometry only.

A threat model is a norm ball around each image intersected with the pixel box.
It draws random points of that set, says which unit step climbs a linear function
fastest, and projects onto the set.  It also says which change, of any size, is the
smallest that raises a linear function by so much.  Everything is float32, per example, and
compiles under `tf.function` and XLA.
"""

import copy
import math
import numbers

import tensorflow as tf

from urkle_tf import distribution, errors

_NEWTON_ITERATIONS = 10
_BISECTIONS = 32
_MOST_PIECES = 100  # of a piecewise linear function; about 5 are passed


def _axes(images):
  return list(range(1, len(images.shape)))


def _total(values):
  """Sums over everything but the batch, and keeps the axes."""
  return _like(tf.reduce_sum(_rows(values), 1), values)


def _largest(values):
  return _like(tf.reduce_max(_rows(values), 1), values)


def _rows(values):
  """[n, ...] as [n, pixels]."""
  return tf.reshape(values, [-1, math.prod(values.shape[1:])])


def _like(values, images):
  """One value per example, [n] or [n, 1], to be broadcast over `images`."""
  return tf.reshape(values, [-1] + [1] * (len(images.shape) - 1))


def _shape(images):
  """The shape of `images`: a list of ints where static, else a tensor."""
  return images.shape.as_list() if images.shape.is_fully_defined() else tf.shape(images)


class ThreatModel:
  """A ball of radius `epsilon` around each image, cut by the pixel bounds.

  Images must lie within the bounds themselves: the set is empty otherwise.

  Attributes:
    norm: the norm's name: "linf", "l2" or "l1".
    epsilon: the radius in pixel units (images are in [lower, upper]); a float,
      or a scalar float32 tensor (see `with_epsilon`).
    lower: the smallest pixel value.
    upper: the largest pixel value.
  """

  norm = ""

  def __init__(self, epsilon, lower=0.0, upper=1.0):
    """Builds the threat model.

    Args:
      epsilon: the radius in pixel units: a number >= 0 (0 allows the image
        alone), or a scalar tensor, which is not checked.
      lower: the smallest pixel value.
      upper: the largest pixel value.

    Raises:
      UserError: if `epsilon` is no number, is negative, or looks like 0-255
        units, or the bounds are not in order.
    """
    if not lower < upper:
      raise errors.UserError(f"pixel bounds must be in order, but lower={lower} and upper={upper}")
    self.lower, self.upper = float(lower), float(upper)
    self.epsilon = epsilon if tf.is_tensor(epsilon) else self._checked(epsilon)

  def _checked(self, epsilon):
    if isinstance(epsilon, str) or not isinstance(epsilon, numbers.Real):
      raise errors.UserError(f"epsilon must be a number such as 8/255, but is {epsilon!r}")
    if not math.isfinite(epsilon) or epsilon < 0:
      raise errors.UserError(f"epsilon must be a finite number >= 0, but is {epsilon}")
    return float(epsilon)

  def _too_large(self, why):
    return errors.UserError(
      f"{self.norm} epsilon={self.epsilon:g} {why}: it looks like 0-255 units, but pixels are in "
      f"[{self.lower:g}, {self.upper:g}]; write {self.epsilon:g}/255"
    )

  def check(self, images):
    """Refuses an `epsilon` that is absurd for images of this size.

    Half the box's diameter is refused: such a ball around mid-grey holds every
    image there is.  A tensor `epsilon` is not checked.

    Args:
      images: [n, ...] with static height, width and channels.

    Raises:
      UserError: if `epsilon` looks like 0-255 units.
    """
    del images

  def with_epsilon(self, epsilon):
    """Returns a copy with another radius.

    Args:
      epsilon: a number, which is checked, or a scalar tensor, which is not: this
        is how a compiled training step warms epsilon up.
    """
    other = copy.copy(self)
    other.epsilon = tf.cast(epsilon, tf.float32) if tf.is_tensor(epsilon) else epsilon
    return other if tf.is_tensor(epsilon) else type(self)(**other.options())

  def options(self):
    """The arguments that build this threat model again."""
    return {"epsilon": self.epsilon, "lower": self.lower, "upper": self.upper}

  def __repr__(self):
    options = ", ".join(f"{name}={value}" for name, value in self.options().items())
    return f"{type(self).__name__}({options})"

  def _clip(self, images):
    return tf.clip_by_value(images, self.lower, self.upper)

  def _reflect(self, images, offsets):
    """Adds offsets, turning each that would leave the pixel box the other way.

    A turned offset keeps its size, hence the norm, and a pixel at a bound is
    moved all the same; what fits neither way is clipped.
    """
    moved = images + offsets
    outside = (moved < self.lower) | (moved > self.upper)
    return self._clip(tf.where(outside, images - offsets, moved))

  def _room(self, images, offsets):
    """How far each pixel can go in the direction of its offset."""
    room = tf.where(offsets > 0, self.upper - images, images - self.lower)
    return tf.maximum(room, 0.0)

  def distance(self, adversaries, images):
    """The norm of the difference.

    Args:
      adversaries: float32 [n, ...].
      images: float32 [n, ...].

    Returns:
      float32 [n], pixel units.
    """
    raise NotImplementedError

  def random_start(self, images, seed, radius=1.0):
    """A random point of the set that is not the image itself.

    The noise belongs to the example of the global batch (`distribution`), so
    that one replica and many start at the same points.

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

    An all-zero gradient gives an all-zero direction: nothing moves then, which
    the attack reports as its share of zero gradients.

    Args:
      gradient: float32 [n, ...].
      adversaries: float32 [n, ...] or None: where the step starts, for norms
        whose step depends on which pixels can still move (`L1`).

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
      float32 [n, ...]: exactly within the bounds, and within `epsilon` of
      `images` up to rounding.
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
    """The smallest change within the pixel box that gains so much of a linear function.

        argmin ||d||  such that  <gradient, d> = gain,  lower <= images + d <= upper

    This is the projection onto a hyperplane and the box, whatever `epsilon`.  Where the box
    does not allow the gain, the change that gains the most.

    Args:
      images: float32 [n, ...] within the pixel bounds.
      gradient: float32 [n, ...]; where it is zero nothing changes.
      gain: float32 [n], of either sign.

    Returns:
      float32 [n, ...]: d.
    """
    largest = _largest(tf.abs(gradient))  # scaled as in `L2.normalise`
    gain = tf.math.divide_no_nan(_like(gain, images), largest)
    gradient = tf.math.divide_no_nan(gradient, largest)
    direction = tf.sign(gradient) * tf.sign(gain)
    sizes = self._reach(
      _rows(tf.abs(gradient)), _rows(self._room(images, direction)), _rows(tf.abs(gain))
    )
    return direction * tf.reshape(sizes, _shape(direction))

  def _reach(self, slopes, room, gain):
    """The d of the smallest norm with sum slopes * d = gain and 0 <= d <= room.

    All float32 >= 0: slopes and room [n, pixels], gain [n, 1].
    """
    raise NotImplementedError


def _level(weights, breaks, gain):
  """The s at which sum_i weights_i * min(s, breaks_i) = gain; the largest break if there is none.

  The left side is concave, increasing and piecewise linear in s, so that Newton's method from 0
  comes from the left and ends on the right piece, exactly: a few reductions where a sort of the
  breaks would take ten times as long.

  Args:
    weights: float32 [n, pixels] >= 0.
    breaks: float32 [n, pixels] >= 0.
    gain: float32 [n, 1] >= 0.

  Returns:
    float32 [n, 1].
  """
  full = weights * breaks
  end = tf.reduce_max(breaks, 1, keepdims=True)

  def newton(iteration, level, _):
    free = level < breaks
    held = tf.reduce_sum(tf.where(free, 0.0, full), 1, keepdims=True)
    slope = tf.reduce_sum(tf.where(free, weights, 0.0), 1, keepdims=True)
    # What no slope is left for cannot be reached.
    reached = tf.where(slope > 0, tf.math.divide_no_nan(gain - held, slope), end)
    reached = tf.where(gain > held, tf.clip_by_value(reached, level, end), level)
    return iteration + 1, reached, tf.reduce_any(reached > level * (1 + 1e-6))

  _, level, _ = tf.while_loop(
    lambda iteration, level, moving: (iteration < _MOST_PIECES) & moving,
    newton,
    (tf.constant(0), tf.zeros_like(gain), tf.constant(True)),
    parallel_iterations=1,
  )
  return level


def _steepest(slopes, gains, gain):
  """The smallest slope beyond which all gains together are not more than `gain`.

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

  def bisect(iteration, low, high):
    middle = high - (high - low) // 2  # never `low`, which is none of them
    beyond = tf.reduce_sum(tf.where(patterns > middle, gains, 0.0), 1, keepdims=True)
    fits = beyond <= gain
    return iteration + 1, tf.where(fits, low, middle), tf.where(fits, middle, high)

  high = tf.reduce_max(patterns, 1, keepdims=True)
  _, _, high = tf.while_loop(
    lambda iteration, *_: iteration < 31,
    bisect,
    (tf.constant(0), tf.fill(tf.shape(high), -1), high),
    parallel_iterations=1,
  )
  return tf.bitcast(high, tf.float32)


class Linf(ThreatModel):
  """Every pixel may change by `epsilon`; the steepest step is the sign.

  The sign of a zero gradient is 0: those pixels stay where they are.
  """

  norm = "linf"

  def _checked(self, epsilon):
    self.epsilon = super()._checked(epsilon)
    if self.epsilon > self.upper - self.lower:
      raise self._too_large("is more than the whole pixel range")
    return self.epsilon

  def distance(self, adversaries, images):
    return tf.reduce_max(tf.abs(adversaries - images), _axes(images))

  def random_start(self, images, seed, radius=1.0):
    # Uniform on ball and box together.  Clipping uniform noise instead would
    # leave half of the pixels at a bound (MNIST's background) where they are.
    low = tf.maximum(images - radius * self.epsilon, self.lower)
    high = tf.minimum(images + radius * self.epsilon, self.upper)
    noise = distribution.uniform(seed, _shape(images))
    return self.project(low + noise * (high - low), images)

  def normalise(self, gradient, adversaries=None):
    del adversaries
    return tf.sign(gradient)

  def project(self, adversaries, images):
    low = tf.maximum(images - self.epsilon, self.lower)
    high = tf.minimum(images + self.epsilon, self.upper)
    return tf.clip_by_value(adversaries, low, high)

  def _reach(self, slopes, room, gain):
    # All pixels move by the same, as far as they have room.
    return tf.minimum(_level(slopes, room, gain), room)


class L2(ThreatModel):
  """The Euclidean ball; the steepest step is the normalised gradient."""

  norm = "l2"

  def check(self, images):
    diameter = (self.upper - self.lower) * math.sqrt(math.prod(images.shape[1:]))
    if not tf.is_tensor(self.epsilon) and self.epsilon > diameter / 2:
      raise self._too_large(f"is more than half of the pixel box's diameter {diameter:.3g}")

  def distance(self, adversaries, images):
    return tf.sqrt(tf.reduce_sum(tf.square(adversaries - images), _axes(images)))

  def random_start(self, images, seed, radius=1.0):
    noise = self.normalise(distribution.normal(distribution.fold(seed, 0), _shape(images)))
    # The volume within a share r of the radius grows as r^d.
    share = distribution.uniform(distribution.fold(seed, 1), _shape(images[..., :1]))
    share = _like(_rows(share)[:, 0], images) ** (1 / math.prod(images.shape[1:]))
    return self.project(self._reflect(images, radius * self.epsilon * share * noise), images)

  def normalise(self, gradient, adversaries=None):
    del adversaries
    # Squares of small gradients underflow in float32: scale them up first.
    gradient = tf.math.divide_no_nan(gradient, _largest(tf.abs(gradient)))
    return tf.math.divide_no_nan(gradient, tf.sqrt(_total(tf.square(gradient))))

  def project(self, adversaries, images):
    """The nearest point of ball and pixel box.

    By the optimality conditions it is clip(x + s * offset) with the largest
    s <= 1 that the ball allows.  Scaling onto the sphere and then clipping is
    the first of the iterations below: it is feasible but leaves budget unspent
    wherever a pixel is clipped, so that its fixed points miss the maximum of a
    linear objective by O(step size).  The exact projection's fixed points are
    exactly the maxima, whatever the step size.
    """
    offsets = adversaries - images
    # Rows of pixels: TensorFlow reduces and broadcasts those several times faster.
    squares = _rows(tf.square(offsets))
    room = _rows(tf.square(self._room(images, offsets)))
    budget = tf.square(tf.cast(self.epsilon, tf.float32))

    # Newton's method for f(t) = sum min(t * offset^2, room^2) = epsilon^2 with
    # t = s^2.  f is concave and increasing, so that every iterate is feasible;
    # few are needed.
    def newton(iteration, t, _):
      free = t * squares < room
      spent = tf.reduce_sum(tf.where(free, 0.0, room), 1, keepdims=True)
      slope = tf.reduce_sum(tf.where(free, squares, 0.0), 1, keepdims=True)
      reached = tf.where(slope > 0, tf.math.divide_no_nan(budget - spent, slope), 1.0)
      reached = tf.clip_by_value(reached, t, 1.0)
      return iteration + 1, reached, tf.reduce_any(reached > t * (1 + 1e-6))

    _, t, _ = tf.while_loop(
      lambda iteration, t, moving: (iteration < _NEWTON_ITERATIONS) & moving,
      newton,
      (tf.constant(0), tf.zeros_like(squares[:, :1]), tf.constant(True)),
      parallel_iterations=1,
    )
    return self._clip(images + _like(tf.sqrt(t), images) * offsets)

  def _reach(self, slopes, room, gain):
    # Pixels move in proportion to their slopes, as far as they have room.
    level = _level(tf.square(slopes), tf.math.divide_no_nan(room, slopes), gain)
    return tf.minimum(level * slopes, room)


class L1(ThreatModel):
  """The ball of the sum of absolute changes, with sparse steps.

  The steepest step of unit l1 norm moves a single pixel, which needs thousands
  of steps; like SLIDE (Tramèr and Boneh, 2019) and APGD-l1 (Croce and Hein,
  2021) a step moves the share 1 - `sparsity` of the pixels whose gradients are
  largest.  Unlike theirs it moves them in proportion to their gradients, so that
  a fixed point spends the budget on the largest gradients first.
  """

  norm = "l1"

  def __init__(self, epsilon, lower=0.0, upper=1.0, sparsity=0.95):
    """Builds the threat model.

    Args:
      epsilon: the radius in pixel units: a number >= 0 or a scalar tensor.
      lower: the smallest pixel value.
      upper: the largest pixel value.
      sparsity: the share of the pixels that a step leaves alone, in [0, 1); or
        one for each example, a float32 [n] tensor, which is not checked.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(epsilon, lower, upper)
    if not tf.is_tensor(sparsity):
      if not 0 <= sparsity < 1:
        raise errors.UserError(f"sparsity must be in [0, 1), but is {sparsity}")
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

  def distance(self, adversaries, images):
    return tf.reduce_sum(tf.abs(adversaries - images), _axes(images))

  def random_start(self, images, seed, radius=1.0):
    # Exponential spacings: d of d + 1 exponentials over their sum are uniform on
    # the simplex; random signs make that the l1 ball.  The last one is drawn as
    # part of a further array because draws belong to rows of the batch.
    shape = _shape(images)
    signed = distribution.uniform(distribution.fold(seed, 0), shape, -1.0, 1.0)
    sizes = -tf.math.log(tf.maximum(tf.abs(signed), 1e-30))
    last = distribution.uniform(distribution.fold(seed, 1), _shape(images[..., :1]))
    last = -tf.math.log(tf.maximum(_like(_rows(last)[:, 0], images), 1e-30))
    share = tf.sign(signed) * sizes / (_total(sizes) + last)
    return self.project(self._reflect(images, radius * self.epsilon * share), images)

  def normalise(self, gradient, adversaries=None):
    """The sparse direction: the largest gradients, of unit l1 norm.

    Where `adversaries` are given, pixels that a bound already holds take none of
    the step's places: the unit norm counts the pixels that can move.  Held pixels
    are still pushed against their bound, or the projection would pull them off it
    (nothing else outweighs its threshold).
    """
    # Small gradients are scaled up first, as for l2.
    gradient = tf.math.divide_no_nan(gradient, _largest(tf.abs(gradient)))
    held = tf.zeros_like(gradient, tf.bool)
    if adversaries is not None:
      held = ((gradient > 0) & (adversaries >= self.upper)) | (
        (gradient < 0) & (adversaries <= self.lower)
      )
    sizes = tf.where(held, 0.0, tf.abs(gradient))
    threshold = _like(self._threshold(_rows(sizes)), gradient)
    kept = tf.where((sizes >= threshold) & ~held, gradient, 0.0)
    unit = tf.math.divide_no_nan(gradient, _total(tf.abs(kept)))
    return tf.where(held | (kept != 0), tf.clip_by_value(unit, -1.0, 1.0), 0.0)

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

    By the optimality conditions each pixel's offset is soft-thresholded by one
    theta >= 0 per example and then clipped to the box; theta, the smallest that
    the ball allows, is found by bisection.
    """
    offsets = adversaries - images
    sizes = _rows(tf.abs(offsets))
    room = _rows(self._room(images, offsets))
    epsilon = tf.cast(self.epsilon, tf.float32)

    def spent(theta):
      kept = tf.minimum(tf.maximum(sizes - theta, 0.0), room)
      return tf.reduce_sum(kept, 1, keepdims=True)

    def bisect(iteration, low, high):
      middle = 0.5 * (low + high)
      feasible = spent(middle) <= epsilon
      return iteration + 1, tf.where(feasible, low, middle), tf.where(feasible, middle, high)

    high = tf.reduce_max(sizes, 1, keepdims=True)
    _, _, theta = tf.while_loop(
      lambda iteration, *_: iteration < _BISECTIONS,
      bisect,
      (tf.constant(0), tf.zeros_like(high), high),
      parallel_iterations=1,
    )
    theta = tf.where(spent(0.0) <= epsilon, 0.0, theta)
    kept = tf.maximum(tf.abs(offsets) - _like(theta, images), 0.0)
    return self._clip(images + tf.sign(offsets) * kept)

  def _reach(self, slopes, room, gain):
    # The steepest pixels first, each as far as it has room; the last of them share what is left.
    gains = slopes * room
    last = _steepest(slopes, gains, gain)
    full = slopes > last
    missing = gain - tf.reduce_sum(tf.where(full, gains, 0.0), 1, keepdims=True)
    shared = tf.reduce_sum(tf.where(slopes == last, gains, 0.0), 1, keepdims=True)
    share = tf.clip_by_value(tf.math.divide_no_nan(missing, shared), 0.0, 1.0)
    return tf.where(full, room, tf.where(slopes == last, share * room, 0.0))


_NORMS = {"linf": Linf, "l2": L2, "l1": L1}


def from_norm(norm, epsilon, **options):
  """Builds the threat model of a norm's name.

  Args:
    norm: "linf", "l2" or "l1".
    epsilon: the radius in pixel units.
    **options: further arguments of the class.

  Raises:
    UserError: if there is no such norm, or `epsilon` is out of its range.
  """
  if norm not in _NORMS:
    raise errors.unknown("norm", norm, _NORMS)
  return _NORMS[norm](epsilon, **options)
