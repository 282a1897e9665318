"""Dual batch norm: two networks that share all weights except those of their batch norms.

Also faster batch norms for training, on one replica and on several.
"""

import functools

import keras
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import keras_private
from urkle_tf.networks.tuples import flat, folded

# The streams of images.  The first is for robust use; a network with one stream has this one.
ADVERSARIAL, CLEAN = "adversarial", "clean"


def norm(name, momentum, **options):
  """A batch norm over all replicas, as in every network of this package."""
  options = {"epsilon": 1e-5, "synchronized": True, **options}
  return keras.layers.BatchNormalization(momentum=momentum, name=name, **options)


def twin(model):
  """A second network over the same layers, with separate batch norms.

  Adversarial and clean images have different statistics (Xie et al., "Adversarial examples improve
  image recognition", 2020).  With a network for each stream of images, the images of one stream do
  not affect the moving averages, gamma and beta of the other, and all other weights learn from
  both.  Each is a stock Keras model that can be saved alone.

  Args:
    model: a functional or sequential Keras model; models nested in it are split too.

  Returns:
    A model of the same structure that shares the layers of `model`, except for its batch norms,
    which are new and start as copies.

  Raises:
    UserError: if a batch norm lies inside a layer that is not a functional or sequential model.
  """
  norms = []

  def shared_or_new(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
      norms.append((layer, type(layer).from_config(layer.get_config())))
      return norms[-1][1]
    # An operation without weights is no layer.
    inner = keras_private.layers(layer, itself=False) if isinstance(layer, keras.Layer) else []
    if any(isinstance(part, keras.layers.BatchNormalization) for part in inner):
      raise errors.UserError(
        f"dual batch norm cannot reach the batch norms inside {layer.name!r}. Build the backbone "
        "only from layers and from functional or sequential models"
      )
    return layer

  second = keras.models.clone_model(model, clone_function=shared_or_new, recursive=True)
  for norm, copy in norms:
    copy.set_weights(norm.get_weights())
  return second


def by_stream(function, members, streams):
  """Applies a function to the rows of each stream, and puts the results back in order.

  Args:
    function: (rows [n * s, ...], stream) -> a tensor, or a structure of them, of n * s rows.
    members: [n, t, ...].
    streams: the t members' streams.

  Returns:
    The result of `function` for n * t rows, example-major.  With one stream it is one call.
  """
  positions: dict[str, list[int]] = {}
  for position, stream in enumerate(streams):
    positions.setdefault(stream, []).append(position)
  if len(positions) == 1:
    (stream,) = positions
    return function(flat(members), stream)
  order = [position for chosen in positions.values() for position in chosen]
  inverse = [order.index(position) for position in range(len(order))]

  def fold(results, chosen):
    return tf.nest.map_structure(lambda values: folded(values, len(chosen)), results)

  parts = [
    fold(function(flat(tf.gather(members, chosen, axis=1)), stream), chosen)
    for stream, chosen in positions.items()
  ]
  return tf.nest.map_structure(
    lambda *values: flat(tf.gather(tf.concat(values, axis=1), inverse, axis=1)), *parts
  )


def quicken(model):
  """Makes the batch norms of a model faster in training, with the same results up to rounding.

  On one replica, batch norms of images use TensorFlow's fused operation.  On a CPU it takes a third
  of the time of stock Keras, which normalises in float32 by a sequence of operations.

  On several replicas, they exchange all their sums at once.  Stock Keras exchanges the sum, the sum
  of squares and the count one after the other, and then their gradients.  Over a network, the
  number of exchanges decides the time of a step, however small they are.  All replicas must hold
  the same number of rows.

  Args:
    model: a Keras model.
  """
  for layer in keras_private.layers(model):
    if type(layer) is keras.layers.BatchNormalization:
      layer.call = functools.partial(_call, layer)
      if layer.synchronized:
        keras_private.replace_moments(layer, functools.partial(_moments_of_all, layer))


def _call(layer, inputs, training=None, mask=None):
  """Like the layer's own `call`, fused if possible."""
  axis = layer.axis % len(inputs.shape)
  plain = mask is None and not layer.renorm and axis == 3 and len(inputs.shape) == 4
  if not (training and layer.trainable and plain) or distribution.replicas() > 1:
    return type(layer).call(layer, inputs, training=training, mask=mask)
  width = inputs.shape[-1]
  outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
    inputs,
    tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones(width),
    tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros(width),
    epsilon=layer.epsilon,
    is_training=True,
  )
  rows = tf.cast(tf.size(inputs) // width, tf.float32)
  variance *= (rows - 1.0) / rows  # the operation's is that of a sample
  for average, found in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
    average.assign(average * layer.momentum + tf.stop_gradient(found) * (1.0 - layer.momentum))
  return outputs


def _moments_of_all(layer, inputs, mask):
  """Mean and variance [channels] over all replicas: E x, and E x^2 - (E x)^2."""
  if mask is not None or distribution.replicas() == 1:
    return keras_private.stock_moments(layer, inputs, mask)
  axes = keras_private.reduction_axes(layer)
  local = tf.stack([tf.reduce_mean(inputs, axes), tf.reduce_mean(tf.square(inputs), axes)])
  mean, square = tf.unstack(distribution.mean(local))
  return mean, tf.maximum(square - tf.square(mean), 0.0)
