"""Bounds of what a network can do within a ball: intervals through its layers.

Interval arithmetic (Gowal et al., 2018, "On the effectiveness of interval bound propagation"):
a box of inputs, its centre c and radius r >= 0, becomes a box that holds every output,

    linear maps W x + b        centre W c + b, radius |W| r
    monotone functions f       [f(c - r), f(c + r)]

layer by layer.  The boxes only grow, so the bound is true for every input of the ball, and often
far above what any input reaches.
"""

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import folding, keras_private, policies
from urkle_tf.networks.pooled import pooled

_UNCHANGED = (
  keras.layers.Flatten,
  keras.layers.Reshape,
  keras.layers.Permute,
  keras.layers.ZeroPadding2D,
  keras.layers.Cropping2D,
  keras.layers.AveragePooling2D,
  keras.layers.GlobalAveragePooling2D,
  keras.layers.Identity,
  keras.layers.Dropout,
)  # linear, without negative weights and without a bias: the radius goes the way of the centre
_MONOTONE = (
  keras.layers.ReLU,
  keras.layers.LeakyReLU,
  keras.layers.ELU,
  keras.layers.MaxPooling2D,
  keras.layers.GlobalMaxPooling2D,
)
_ACTIVATIONS = (
  keras.activations.relu,
  keras.activations.sigmoid,
  keras.activations.softplus,
  keras.activations.tanh,
  keras.activations.elu,
  keras.activations.linear,
)


def box(model, low, high):
  """A box that holds model(x) for every x between `low` and `high`.

  Batch norms are in inference mode.

  Args:
    model: a functional Keras model of one input and one output, of convolutions, dense layers,
      batch norms, pooling, sums and monotone activations.
    low: float32 [n, ...], the smallest inputs.
    high: float32 [n, ...], the largest.

  Returns:
    (lowest, highest), float32 [n, ...], outputs.

  Raises:
    UserError: for a layer of another kind.
  """
  # Centre and radius travel through the graph as one batch.
  whole = tf.concat(_middle(low, high), 0)
  functional = keras_private.functional(model)
  if functional is None:
    raise _unknown(model)
  calls = {
    id(layer): lambda x, layer=layer, **_: tf.concat(_through(layer, x), 0)
    for layer in functional.operations
  }
  centre, radius = tf.split(keras_private.run(functional, whole, calls), 2)
  return centre - radius, centre + radius


def _through(layer, inputs):
  """The box (centre, radius) of a layer's outputs, given those of its inputs as one batch."""
  if type(layer) is keras.layers.Add:
    return [tf.add_n(parts) for parts in zip(*(tf.split(x, 2) for x in inputs), strict=True)]
  if isinstance(inputs, list | tuple):
    raise _unknown(layer)
  centre, radius = tf.split(inputs, 2)
  if isinstance(layer, keras.Model):
    return _middle(*box(layer, centre - radius, centre + radius))
  if not folding.channels_last(layer):
    raise _unknown(layer)
  if type(layer) in folding.FOLDABLE and layer.activation in _ACTIVATIONS:
    middle = folding.linear(layer, centre, tf.convert_to_tensor(layer.kernel))
    if layer.use_bias:
      middle = tf.nn.bias_add(middle, tf.convert_to_tensor(layer.bias))
    radius = folding.linear(layer, radius, tf.abs(tf.convert_to_tensor(layer.kernel)))
    return _middle(layer.activation(middle - radius), layer.activation(middle + radius))
  if type(layer) is keras.layers.BatchNormalization:
    return layer(centre, training=False), _norm_scale(layer) * radius
  if type(layer) is keras.layers.Rescaling:
    return layer(centre), tf.abs(tf.constant(layer.scale, tf.float32)) * radius
  if type(layer) in _UNCHANGED:
    return layer(centre), layer(radius)
  if type(layer) in _MONOTONE or _is_monotone_activation(layer):
    return _middle(layer(centre - radius), layer(centre + radius))
  raise _unknown(layer)


def _middle(low, high):
  return (high + low) / 2, (high - low) / 2


def _norm_scale(layer):
  scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
  return tf.abs(scale * layer.gamma if layer.scale else scale)


def _is_monotone_activation(layer):
  return type(layer) is keras.layers.Activation and layer.activation in _ACTIVATIONS


def _unknown(layer):
  return errors.UserError(
    f"no bound goes through the layer {layer.name!r} ({type(layer).__name__}): it takes "
    "convolutions, dense layers, batch norms, pooling, sums and monotone activations, channels last"
  )


def largest_kl(clean, low, high):
  """The largest KL[p || q] in nats of a Normal p and any q in a box of locs and scales.

      sum_d log(s'/s) + (s^2 + D^2) / (2 s'^2) - 1/2

  with D the distance of p's loc to the farther end of the interval of q's.  In s' a dimension
  falls, then rises, so that it is largest at one end of the interval of s'.

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

  # At least 0, whatever rounding says.
  return tf.maximum(tf.reduce_sum(tf.maximum(at(low["scale"]), at(high["scale"])), -1), 0.0)


def kl_bound(encoder, images, epsilon):
  """An upper bound of max KL[p(z|x) || p(z|x')] over |x' - x|_inf <= epsilon, x' in [0, 1].

  Of loc and scale the heads are followed exactly as `GaussianEncoder` builds them; on a sphere
  by |u/|u| - v/|v|| <= 2 |u - v| / (|u| + |v|).  All is computed in float32, whatever the precision
  of the network's layers.

  Args:
    encoder: a `GaussianEncoder`, or a loaded one, with a functional backbone.
    images: float32 [n, h, w, c] in [0, 1].
    epsilon: the radius in pixel units.

  Returns:
    float32 [n], nats.

  Raises:
    UserError: for an encoder that holds a layer without a rule.
  """
  with policies.computing_in("float32", encoder.network):
    return _kl_bound(encoder, images, epsilon)


def _kl_bound(encoder, images, epsilon):
  network = encoder.network
  trunk = pooled(network)
  low, high = box(trunk, tf.maximum(images - epsilon, 0.0), tf.minimum(images + epsilon, 1.0))
  clean = encoder(images, training=False)
  layers = {layer.name: layer for layer in network.layers}
  if "spread" in layers:
    raise errors.UserError("no bound of the KL is known for loc=pooled: give loc=dense or a sphere")
  # softplus, tanh and the bounds rise with their input, one dimension at a time.
  raw = layers["raw_scale"]
  scale = keras.Model(raw.output, network.output["scale"])
  ends = [scale(x) for x in _ends(raw, low, high)]
  dense = [layers[name] for name in ("raw_loc", "centred") if name in layers]
  for layer in dense:
    low, high = _ends(layer, low, high)
  if type(layers["loc"]) is keras.layers.BatchNormalization:
    low, high = _ends(layers["loc"], low, high)
  else:
    u = trunk(images, training=False)
    for layer in dense:
      u = layer(u, training=False) if layer.name == "centred" else layer(u)
    return _largest_on_sphere(clean, u, low, high, ends)
  return largest_kl(clean, {"loc": low, "scale": ends[0]}, {"loc": high, "scale": ends[1]})


def _ends(layer, low, high):
  """The box of a dense layer's or a batch norm's outputs, (low, high) [n, d]."""
  centre, radius = _through(layer, tf.concat(_middle(low, high), 0))
  return centre - radius, centre + radius


def _largest_on_sphere(clean, u, low, high, scales):
  """The largest KL in nats where loc is sqrt(d) v / |v|, with v in a box around u."""
  length = lambda x: tf.norm(x, axis=-1)  # noqa: E731
  apart = length(tf.maximum(u - low, high - u))
  nearest = length(tf.maximum(tf.maximum(low, -high), 0.0))  # of the box to the origin
  chord = 2 * apart / tf.maximum(length(u) + tf.maximum(nearest, length(u) - apart), 1e-12)
  squares = u.shape[-1] * tf.square(tf.minimum(chord, 2.0))
  still = {"loc": clean.loc}
  of_scales = largest_kl(clean, still | {"scale": scales[0]}, still | {"scale": scales[1]})
  return of_scales + squares / (2 * tf.square(tf.reduce_min(scales[0], -1)))
