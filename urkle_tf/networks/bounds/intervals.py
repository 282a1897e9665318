"""Bounds by intervals through the layers of a network.

Interval arithmetic (Gowal et al., 2018, "On the effectiveness of interval bound propagation")
turns a box of inputs, with centre c and radius r >= 0, into a box that holds every output,

    linear maps W x + b        centre W c + b, radius |W| r
    monotone functions f       [f(c - r), f(c + r)]

layer by layer.  The boxes only grow, so the bound holds for every input in the ball, but is often
far above the largest value.
"""

import tensorflow as tf

from urkle_tf.networks import keras_private
from urkle_tf.networks.bounds import layers


def boxes(model, low, high):
  """Boxes that hold model(x) for every x between `low` and `high`; differentiable in the weights.

  Args:
    model: a Keras model; see `layers.run`.
    low: float32 [n, ...], the smallest inputs.
    high: float32 [n, ...], the largest.

  Returns:
    [(lowest, highest), float32 [n, ...]], of each output.

  Raises:
    UserError: for a layer without a rule.
  """
  return Intervals().boxes(model, low, high)


def followed(model, low, high, images):
  """`boxes`, and model(images), with gradients through batch statistics.

  Values are those of inference mode.  Batch norms compensate for smaller weights once their moving
  averages have adapted.  A gradient that treats the averages as constants ignores that, and shrinks
  weights without effect.  So each moving average has the gradient of the images' own statistic in
  training mode.

  Args:
    model: as above.
    low: as above.
    high: as above.
    images: float32 [n, ...].

  Returns:
    ([(lowest, highest)], [model(images)]).
  """
  rows = tf.concat([_around(low, high), images, images], 0)
  parts = [tf.split(x, 4) for x in Followed().outputs(model, rows)]
  return [_ends(*part[:2]) for part in parts], [part[2] for part in parts]


class Intervals(layers.Arithmetic):
  """The arithmetic: centres, then radii, as one batch [2 n, ...].

  Attributes:
    before: [(lowest, highest)] of the inputs of each monotone function so far, in order.
  """

  groups = 2  # of rows: after centres and radii there may be points

  def __init__(self):
    self.before = []

  def boxes(self, model, low, high):
    """See `boxes`."""
    return [_ends(*tf.split(x, 2)) for x in self.outputs(model, _around(low, high))]

  def outputs(self, model, rows):
    """The representation of each output, a list."""
    found = layers.run(model, rows, self)
    return found if isinstance(found, list | tuple) else [found]

  def linear(self, x, function, kernel, bias):
    add = lambda x: x if bias is None else x + bias  # noqa: E731
    centre, radius, *points = tf.split(x, self.groups)
    spread = function(radius, tf.abs(kernel))
    return tf.concat(
      [add(function(centre, kernel)), spread, *(add(function(x, kernel)) for x in points)], 0
    )

  def scaled(self, x, scale, offset):
    centre, radius, *points = tf.split(x, self.groups)
    points = (scale * x + offset for x in points)
    return tf.concat([scale * centre + offset, tf.abs(scale) * radius, *points], 0)

  def monotone(self, function, x):
    centre, radius, *points = tf.split(x, self.groups)
    self.before.append(_ends(centre, radius))
    return tf.concat([_around(*map(function, self.before[-1])), *map(function, points)], 0)


class Followed(Intervals):
  """With two kinds of points, images in inference mode and in training mode; see `followed`."""

  groups = 4

  def norm(self, layer, x):
    *_, seen = tf.split(x, self.groups)
    found = keras_private.moments(layer, seen)
    known = [
      m + (f - tf.stop_gradient(f)) for m, f in zip(layers.moving(layer), found, strict=True)
    ]
    scale, offset = layers.affine(layer, *found)
    *known, _ = tf.split(self.scaled(x, *layers.affine(layer, *known)), self.groups)
    return tf.concat([*known, scale * seen + offset], 0)


def _around(low, high):
  return tf.concat([(high + low) / 2, (high - low) / 2], 0)


def _ends(centre, radius):
  return centre - radius, centre + radius
