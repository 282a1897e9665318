"""Bounds by lines around the activations of a network, propagated backwards to its inputs.

Within the interval [l, h] of its input an activation lies between two lines (CROWN: Zhang et al.,
2018, "Efficient neural network robustness certification with general activation functions").
Of ReLU and LeakyReLU f, with the slope a below 0,

    above      the chord from f(l) to f(h)
    below      x where h > -l, else a x

of other monotone functions the constants f(h) and f(l).  A value g z, with z an activation's
output, is at most g times the upper line if g > 0, and g times the lower one otherwise.  So a value
is propagated back to the pixels like its gradient, with these slopes instead of the derivatives.
The result is a linear function above the value, whose maximum over a box is known:

    A x + b  <=  A c + |A| r + b

The intervals of the activations' inputs are found in the same way, from first to last.  No bound
here is above that of `intervals`.
"""

import keras
import tensorflow as tf

from urkle_tf.networks.bounds import intervals, layers

_TOGETHER = 32  # values that are bounded at once
_MOST = 2**23  # values of a layer times pixels, above which it keeps its intervals


def boxes(model, low, high):
  """As `intervals.boxes`, but never wider; slow outside a `tf.function`."""
  known = intervals.Intervals()
  ends = known.boxes(model, low, high)
  centre, radius = (_rows(x) for x in ((high + low) / 2, (high - low) / 2))
  lines = Lines(tuple(low.shape[1:]))

  def bounded(position, box):
    """The box of the network's values at a position; the old one if there are too many values."""
    count = box[0].shape[1:].num_elements()
    if count * centre.shape[1] > _MOST:
      return box
    values = lambda flat: _rows(lines.values(model, flat)[position])  # noqa: E731
    found = _largest(values, count, centre, radius)
    high, low = (tf.reshape(x, tf.shape(box[0])) for x in (found[0], -found[1]))
    low = tf.minimum(tf.maximum(low, box[0]), box[1])
    return low, tf.maximum(tf.minimum(high, box[1]), low)  # in this order, despite rounding

  for position, box in enumerate(known.before):
    lines.known.append(bounded(position, box))
  return [bounded(len(known.before) + number, box) for number, box in enumerate(ends)]


def _largest(values, count, centre, radius):
  """Upper bounds of values and of their negatives over a box, float32 [2, n, count].

  Args:
    values: a function of [n, pixels + 1], the pixels and the factor of all offsets, to [n, count],
      whose gradient is that of lines.
    count: how many.
    centre: float32 [n, pixels].
    radius: the same.
  """
  flat = tf.concat([centre, tf.ones_like(centre[:, :1])], 1)

  def some(numbers):
    with tf.GradientTape() as tape:
      tape.watch(flat)
      chosen = tf.gather(values(flat), numbers, axis=1)
      both = tf.concat([chosen, -chosen], 1)
    slopes = tape.batch_jacobian(both, flat)
    slope, offset = slopes[..., :-1], slopes[..., -1]
    moved = tf.linalg.matvec(slope, centre) + tf.linalg.matvec(tf.abs(slope), radius)
    return tf.stack(tf.split(moved + offset, 2, axis=1))

  size = min(_TOGETHER, count)
  numbers = tf.minimum(tf.reshape(tf.range(-(-count // size) * size), [-1, size]), count - 1)
  found = tf.map_fn(some, numbers, fn_output_signature=tf.float32, parallel_iterations=1)
  found = tf.transpose(found, [1, 2, 0, 3])  # from [parts, 2, n, size]
  return tf.reshape(found, [2, tf.shape(centre)[0], -1])[..., :count]


def _rows(x):
  return tf.reshape(x, [-1, x.shape[1:].num_elements()])


class Lines(layers.Arithmetic):
  """The arithmetic: values whose gradients are those of lines, and offsets times a variable.

  Args:
    shape: of an input.

  Attributes:
    known: [(lowest, highest)] of the inputs of the first monotone functions, in order.
  """

  def __init__(self, shape):
    self._shape, self.known = shape, []

  def values(self, model, flat):
    """A list of the inputs of each monotone function of a model, and then its outputs.

    Args:
      model: see `layers.run`.
      flat: float32 [n, pixels + 1]; the last one is 1, and all offsets are multiplied by it.
    """
    self._one = flat[:, -1]
    self._met: list[tf.Tensor] = []
    found = layers.run(model, tf.reshape(flat[:, :-1], [-1, *self._shape]), self)
    return [*self._met, *(found if isinstance(found, list | tuple) else [found])]

  def linear(self, x, function, kernel, bias):
    x = function(x, kernel)
    return x if bias is None else x + self._offset(bias, x)

  def scaled(self, x, scale, offset):
    return scale * x + self._offset(offset, x)

  def monotone(self, function, x):
    self._met.append(x)
    if len(self._met) > len(self.known):  # its result is not used
      return function(x)
    low, high = self.known[len(self._met) - 1]
    return _between(function, low, high, x, self._one)

  def _offset(self, offset, x):
    return offset * tf.reshape(self._one, [-1] + [1] * (len(x.shape) - 1))


def _between(function, low, high, x, one):
  """function(x), with a gradient that is the lines' around it on [low, high]."""
  least, most = function(low), function(high)
  slope = _slope(function)
  if slope is None:
    below, above = (0.0, least), (0.0, most)
  else:
    chord = (most - least) / tf.maximum(high - low, 1e-12)
    below = tf.where(high > -low, 1.0, slope), 0.0
    above = chord, least - chord * low

  @tf.custom_gradient
  def through(x, one):
    def back(gradient):
      take = lambda up, down: gradient * tf.where(gradient > 0, up, down)  # noqa: E731
      slopes = tf.zeros_like(x) if slope is None else take(above[0], below[0])
      offsets = take(above[1], below[1])
      return slopes, tf.reduce_sum(offsets, range(1, len(offsets.shape)))

    return function(x), back

  return through(x, one)


def _slope(function):
  """The slope below 0, at most 1, of a function that is x above 0; None for any other function."""
  if function is keras.activations.relu:
    return 0.0
  if type(function) not in (keras.layers.ReLU, keras.layers.LeakyReLU):
    return None
  leaky = type(function) is keras.layers.LeakyReLU
  plain = leaky or (function.max_value is None and not function.threshold)
  return float(function.negative_slope) if plain and 0 <= function.negative_slope <= 1 else None
