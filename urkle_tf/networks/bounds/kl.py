"""An upper bound of the worst KL within an l_inf ball."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import errors
from urkle_tf.networks import policies
from urkle_tf.networks.bounds import intervals, lines
from urkle_tf.networks.pooled import pooled

BOUNDS = {"interval": intervals.boxes, "linear": lines.boxes}


def largest_kl(clean, low, high):
  """The largest KL[p || q] in nats between a Normal p and any q in a box of locs and scales.

      sum_d log(s'/s) + (s^2 + D^2) / (2 s'^2) - 1/2

  with D the distance from p's loc to the farther end of the interval of q's loc.  As a function of
  s', each summand falls, then rises.  So it is largest at one end of the interval of s'.

  Args:
    clean: `tfp.distributions.Normal` [n, d].
    low: {"loc", "scale"} of [n, d], the least.
    high: the same, the greatest.

  Returns:
    float32 [n].
  """
  farthest = tf.maximum(clean.loc - low["loc"], high["loc"] - clean.loc)
  squares = tf.square(clean.scale) + tf.square(farthest)

  def at(scale):
    return tf.math.log(scale / clean.scale) + squares / (2 * tf.square(scale)) - 0.5

  # At least 0, despite rounding.
  return tf.maximum(tf.reduce_sum(tf.maximum(at(low["scale"]), at(high["scale"])), -1), 0.0)


def kl_bound(encoder, images, epsilon, bounds="interval", training=False):
  """An upper bound of max KL[p(z|x) || p(z|x')] over |x' - x|_inf <= epsilon, x' in [0, 1].

  It passes through the heads of loc and scale as `GaussianEncoder` builds them.  On a sphere it
  uses |u/|u| - v/|v|| <= 2 |u - v| / (|u| + |v|).  It is computed in float32, for any precision of
  the network's layers, and holds up to rounding.

  Args:
    encoder: a `GaussianEncoder`, or a loaded encoder, with a functional backbone.
    images: float32 [n, h, w, c] in [0, 1].
    epsilon: the radius in pixel units, a number or a float32 scalar.
    bounds: "interval", which is fast and differentiable in the weights; or "linear", which is never
      larger, but takes a pass for each value of each layer: call it in a `tf.function`.
    training: whether gradients pass through batch statistics, see `intervals.followed`; the value
      does not change.

  Returns:
    float32 [n], nats.

  Raises:
    UserError: for an encoder that contains a layer without a rule.
  """
  errors.one_of("kind of bounds", bounds, BOUNDS)
  with policies.computing_in("float32", encoder.network):
    return _kl_bound(encoder.network, images, epsilon, BOUNDS[bounds], training)


def _kl_bound(network, images, epsilon, boxes, training):
  heads, on_sphere = _heads(network)
  cut = tf.maximum(images - epsilon, 0.0), tf.minimum(images + epsilon, 1.0)
  if training:
    ((low, high), raw), clean = intervals.followed(heads, *cut, images)
  else:
    ((low, high), raw), clean = boxes(heads, *cut), heads(images, training=False)
  # softplus, tanh and the bounds rise with their input, one dimension at a time.
  scale = keras.Model(network.get_layer("raw_scale").output, network.output["scale"])
  scales = [scale(end) for end in raw]
  clean = tfp.distributions.Normal(clean[0], scale(clean[1]))
  if on_sphere:
    return _largest_on_sphere(clean, low, high, scales)
  return largest_kl(clean, {"loc": low, "scale": scales[0]}, {"loc": high, "scale": scales[1]})


def _heads(network):
  """(a model from images to the inputs of loc and scale, whether loc is a direction)."""
  names = {layer.name for layer in network.layers}
  if "spread" in names:
    raise errors.UserError("there is no bound of the KL for loc=pooled: give loc=dense or a sphere")
  trunk = pooled(network)
  value = trunk.output
  for name in ("raw_loc", "centred"):
    value = network.get_layer(name)(value) if name in names else value
  norm = network.get_layer("loc")
  normed = type(norm) is keras.layers.BatchNormalization
  value = norm(value) if normed else value
  raw = network.get_layer("raw_scale")(trunk.output)
  return keras.Model(trunk.input, [value, raw]), not normed


def _largest_on_sphere(clean, low, high, scales):
  """The largest KL in nats where loc is sqrt(d) v / |v|, with v in a box around u = clean.loc."""
  u = clean.loc
  # No gradient of |x| at 0.
  length = lambda x: tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x), -1), 1e-24))  # noqa: E731
  apart = length(tf.maximum(u - low, high - u))
  nearest = length(tf.maximum(tf.maximum(low, -high), 0.0))  # of the box to the origin
  chord = 2 * apart / (length(u) + nearest)
  squares = u.shape[-1] * tf.square(tf.minimum(chord, 2.0))
  still = {"loc": u}
  of_scales = largest_kl(clean, still | {"scale": scales[0]}, still | {"scale": scales[1]})
  return of_scales + squares / (2 * tf.square(tf.reduce_min(scales[0], -1)))
