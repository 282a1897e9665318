"""Bounds by intervals through the layers of a network.

Interval arithmetic (Gowal et al., 2018, "On the effectiveness of interval bound propagation"):
a box of inputs, its centre c and radius r >= 0, becomes a box that holds every output,

    linear maps W x + b        centre W c + b, radius |W| r
    monotone functions f       [f(c - r), f(c + r)]

layer by layer.  The boxes only grow, so the bound is true for every input of the ball, and often
far above what any input reaches.
"""

import tensorflow as tf

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


class Intervals:
  """The arithmetic: centres, then radii, as one batch [2 n, ...].

  Attributes:
    before: [(lowest, highest)] of what each monotone function has met so far, in order.
  """

  def __init__(self):
    self.before = []

  def boxes(self, model, low, high):
    """See `boxes`."""
    found = layers.run(model, _around(low, high), self)
    return [_ends(x) for x in (found if isinstance(found, list | tuple) else [found])]

  def linear(self, x, function, kernel, bias):
    centre, radius = tf.split(x, 2)
    centre = function(centre, kernel)
    centre = centre if bias is None else centre + bias
    return tf.concat([centre, function(radius, tf.abs(kernel))], 0)

  def scaled(self, x, scale, offset):
    centre, radius = tf.split(x, 2)
    return tf.concat([scale * centre + offset, tf.abs(scale) * radius], 0)

  def unchanged(self, layer, x):
    return layer(x)

  def monotone(self, function, x):
    self.before.append(_ends(x))
    return _around(*map(function, self.before[-1]))

  def nested(self, model, x):
    return layers.run(model, x, self)


def _around(low, high):
  return tf.concat([(high + low) / 2, (high - low) / 2], 0)


def _ends(x):
  centre, radius = tf.split(x, 2)
  return centre - radius, centre + radius
