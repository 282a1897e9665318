"""HopSkipJump: the nearest point beyond a decision boundary, by decisions alone."""

import math
from typing import ClassVar

import tensorflow as tf

from urkle_tf import distribution, errors, loops
from urkle_tf.attacks import _nearest, base, losses
from urkle_tf.attacks.threat.base import axes, like, shape_of

_GRIDS = (1, 2, 4, 8)  # blocks along each axis, of starts that are coarser than single pixels
_STARTS = 20  # points that are tried as a start, at most
_HALVINGS = 8  # of a jump, at most
_FIRST = 100  # decisions of the first estimate of a direction
_BEYOND = 1.02  # of the way to the nearest point, so that it is broken under other rounding too
_FINEST = 1e-5  # of a pixel: float32 does not resolve smaller changes


def evaluations(queries, pixels, norm):
  """How many decisions each estimate of a direction takes (Chen et al., 2020, sec. 4.2).

  100 sqrt(t) in iteration t.  Each iteration also needs decisions for the jump and the bisection.

  Args:
    queries: the budget.
    pixels: of an image, times channels.
    norm: "linf", "l2" or "l1".

  Returns:
    A list of ints; with all other decisions they sum to at most `queries`.  Empty if `queries` is
    too small.
  """
  bisections = _bisections(pixels, norm)
  left = queries - _STARTS - bisections - 2  # two of the result
  found: list[int] = []
  while True:
    count = round(_FIRST * math.sqrt(len(found) + 1))
    left -= count + _HALVINGS + bisections
    if left < 0:
      return found
    found.append(count)


def _bisections(pixels, norm):
  """How many halvings locate the boundary up to pixels^-2 (linf) or pixels^-1.5 (others)."""
  return min(max(math.ceil((2 if norm == "linf" else 1.5) * math.log2(pixels)), 10), 20)


class HopSkipJump(_nearest.Nearest):
  """HopSkipJumpAttack (Chen, Jordan and Wainwright, 2020): neither scores nor gradients.

  It starts at a broken point x_0, random noise that is moved to the boundary:

      g = sum_b (phi_b - mean phi) u_b,   phi_b = 1 if x_t + delta u_b is broken, else -1
      x_{t+1} = boundary(x, x_t + ||x_t - x|| / sqrt(t) * direction(g))

  with unit noise u_b and delta = ||x_t - x|| / pixels.  The direction's length is halved until the
  point is broken, and `boundary` bisects the way to the image x.  In linf this way is a clip, and
  the direction is the sign of g.  In the other norms it is a line, and the direction is g with unit
  Euclidean length.

  Only the sign of the objective is used.  The attack on an image ends once its nearest point lies
  within epsilon.

  ```python
  attack = urkle_tf.attacks.HopSkipJump(urkle_tf.attacks.L2(epsilon=0.5), queries=500)
  wrong = lambda neighbours: urkle_tf.attacks.losses.margin(logits(neighbours), labels)
  adversaries = attack(wrong, images)  # only the sign of `wrong` is used
  ```
  """

  gradients = False
  decisions = True
  settings = ("queries",)
  refused: ClassVar = {
    "training": "looks for a decision boundary with thousands of forward passes: use pgd"
  }
  loss = staticmethod(losses.margin)

  def __init__(self, threat, queries=5000, restarts=1):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      queries: forward passes per run, at most, >= 1; the first direction needs about 170.
      restarts: runs from different random points, >= 1.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    errors.whole(1, self.name, queries=queries)
    self.steps = self.queries = int(queries)

  def _attempt(self, objective, images, restart, seed):
    threat, norm = self.threat, self.threat.norm
    pixels = math.prod(images.shape[1:])
    counts = evaluations(self.queries, pixels, norm)
    way = _Way(threat, objective, images)
    start, found = way.start(distribution.fold(seed, 0))
    point = way.boundary(start)
    distance = tf.where(found, threat.distance(point, images), float("inf"))
    beyond = lambda distance: tf.math.is_finite(distance) & (distance > threat.epsilon)  # noqa: E731

    def iterate(number, state):
      point, nearest, distance = state
      left = beyond(distance)
      away = tf.where(left, threat.distance(point, images), 0.0)
      key, count = distribution.fold(seed, 1, number), tf.gather(counts, number)
      direction = way.direction(point, away, count, key)
      size = away / tf.sqrt(tf.cast(number + 1, tf.float32))
      point = base.choose(left, way.boundary(way.jump(point, direction, size)), point)
      away = threat.distance(point, images)
      nearer = left & (away < distance)
      nearest = base.choose(nearer, point, nearest)
      return point, nearest, tf.where(nearer, away, distance)

    if counts:
      going = lambda state: tf.reduce_any(beyond(state[2]))  # noqa: E731
      _, point, distance = loops.repeat(len(counts), iterate, (point, point, distance), going)
    result = threat.project(way.beyond(point), images)
    return {"result": result, "distance": distance, "zero_gradients": tf.zeros([])}


class _Way:
  """Points between an image and what lies beyond its boundary."""

  def __init__(self, threat, objective, images):
    self._threat, self._images = threat, images
    self._broken = lambda points: base.values(objective, points) > 0
    self._pixels = math.prod(images.shape[1:])
    self._size = shape_of(images)

  def _clip(self, points):
    return tf.clip_by_value(points, self._threat.lower, self._threat.upper)

  def start(self, seed):
    """The image if it is broken, else the first broken noise; and whether there is one."""
    height, width = self._images.shape[1:3]
    grids = [max(height, width), *_GRIDS]
    low, high = self._threat.lower, self._threat.upper

    def attempt(number, state):
      start, found = state
      noise = distribution.uniform(distribution.fold(seed, number), self._size, low, high)
      grid = tf.gather(grids, number % len(grids))
      blocks = lambda length: tf.range(length) // tf.maximum(length // grid, 1)  # noqa: E731
      noise = tf.gather(tf.gather(noise, blocks(height), axis=1), blocks(width), axis=2)
      broken = self._broken(noise) & ~found
      return base.choose(broken, noise, start), found | broken

    start = self._images, self._broken(self._images)
    return loops.repeat(_STARTS - 1, attempt, start, going=_some_left)

  def _between(self, point, share):
    """The point at a share, float32 [n], of the way from the image (0) to a point (1)."""
    offsets, share = point - self._images, like(share, point)
    if self._threat.norm == "linf":
      most = share * like(self._threat.distance(point, self._images), point)
      return self._clip(self._images + tf.clip_by_value(offsets, -most, most))
    return self._clip(self._images + share * offsets)

  def boundary(self, point):
    """The nearest broken point on the way to a broken point, by bisection."""
    low = tf.zeros_like(base.lowest(point))
    broken = lambda share: self._broken(self._between(point, share))  # noqa: E731
    halvings = _bisections(self._pixels, self._threat.norm)
    return self._between(point, loops.bisect(halvings, broken, low, low + 1.0))

  def beyond(self, point):
    """A point a little farther away than a broken one, if it is broken too."""
    moved = self._clip(self._images + _BEYOND * (point - self._images))
    return base.choose(self._broken(moved), moved, point)

  def direction(self, point, distance, count, seed):
    """The estimated gradient at a point of the boundary, as a step of unit size."""
    size = tf.maximum(distance / self._pixels, _FINEST * math.sqrt(self._pixels))
    size = like(size, point)
    linf = self._threat.norm == "linf"

    def decide(number, sums):
      signed, changes, signs = sums
      key = distribution.fold(seed, number)
      if linf:
        noise = distribution.uniform(key, self._size, -1.0, 1.0)
      else:
        noise = distribution.normal(key, self._size)
      change = (self._clip(point + size * _unit(noise)) - point) / size
      sign = tf.where(self._broken(point + size * change), 1.0, -1.0)
      moved = like(sign, point) * change
      return signed + moved, changes + change, signs + sign

    zeros = tf.zeros_like(point)
    signed, changes, signs = loops.repeat(count, decide, (zeros, zeros, tf.zeros_like(distance)))
    mean = signs / tf.cast(count, tf.float32)
    contrast = signed - like(mean, point) * changes
    found = base.choose(tf.abs(mean) == 1.0, signed, contrast)
    return tf.sign(found) if linf else _unit(found)

  def jump(self, point, direction, size):
    """The first broken point at this distance in a direction, at half of it, and so on.

    A point stays where it is if none is broken.
    """

    def attempt(_, state):
      jumped, size, found = state
      moved = self._clip(point + like(size, point) * direction)
      broken = self._broken(moved) & ~found
      return base.choose(broken, moved, jumped), size / 2, found | broken

    start = point, size, tf.zeros_like(size, tf.bool)
    return loops.repeat(_HALVINGS, attempt, start, going=_some_left)[0]


def _some_left(state):
  """Whether some are not found; the last of a state is which are."""
  return ~tf.reduce_all(state[-1])


def _unit(values):
  """Of unit Euclidean length; 0 where all is 0."""
  squares = tf.reduce_sum(tf.square(values), axes(values), keepdims=True)
  return tf.math.divide_no_nan(values, tf.sqrt(squares))
