"""The layers through which bounds can be propagated, for every arithmetic of bounds.

An arithmetic represents a box of inputs by a tensor, and defines its image under these functions:

    linear(x, function, kernel, bias)   function(x, kernel) + bias; function is linear in the kernel
    scaled(x, scale, offset)            scale x + offset, channel by channel
    norm(layer, x)                      a batch norm in inference mode
    unchanged(layer, x)                 a linear layer without negative weights and without a bias
    monotone(function, x)               a function that rises with each of its inputs
    nested(model, x)                    a model within the model
"""

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import folding, keras_private

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
)
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


class Arithmetic:
  """What arithmetics share."""

  def scaled(self, x, scale, offset):
    raise NotImplementedError

  def norm(self, layer, x):
    return self.scaled(x, *affine(layer, *moving(layer)))

  def unchanged(self, layer, x):
    return layer(x)

  def nested(self, model, x):
    return run(model, x, self)


def run(model, inputs, arithmetic):
  """Propagates bounds through a model, with batch norms in inference mode.

  Args:
    model: a functional or sequential Keras model of one input, of convolutions, dense layers,
      batch norms, pooling, sums and monotone activations.
    inputs: the representation of the box of its inputs.
    arithmetic: see above.

  Returns:
    The representation of the outputs: a list if the model has several.

  Raises:
    UserError: for any other layer.
  """
  functional = keras_private.functional(model)
  if functional is None:
    raise _unknown(model)
  calls = {
    # An operation such as + takes several arguments, and has no rule.
    id(layer): lambda x, *_, layer=layer, **__: _through(layer, x, arithmetic)
    for layer in functional.operations
  }
  return keras_private.run(functional, inputs, calls)


def _through(layer, x, arithmetic):
  """The representation of a layer's outputs, given that of its inputs."""
  if type(layer) is keras.layers.Add:
    return arithmetic.unchanged(layer, x)
  if isinstance(x, list | tuple):
    raise _unknown(layer)
  if isinstance(layer, keras.Model):
    return arithmetic.nested(layer, x)
  if not folding.channels_last(layer):
    raise _unknown(layer)
  if type(layer) in folding.FOLDABLE and layer.activation in _ACTIVATIONS:
    bias = tf.convert_to_tensor(layer.bias) if layer.use_bias else None
    kernel = tf.convert_to_tensor(layer.kernel)
    x = arithmetic.linear(x, lambda x, kernel: folding.linear(layer, x, kernel), kernel, bias)
    return _activated(layer.activation, x, arithmetic)
  if type(layer) is keras.layers.BatchNormalization:
    return arithmetic.norm(layer, x)
  if type(layer) is keras.layers.Rescaling:
    return arithmetic.scaled(x, *(tf.constant(n, tf.float32) for n in (layer.scale, layer.offset)))
  if type(layer) in _UNCHANGED:
    return arithmetic.unchanged(layer, x)
  falls = type(layer) is keras.layers.ELU and layer.alpha < 0
  if type(layer) in _MONOTONE and not falls:
    return arithmetic.monotone(layer, x)
  if type(layer) is keras.layers.Activation and layer.activation in _ACTIVATIONS:
    return _activated(layer.activation, x, arithmetic)
  raise _unknown(layer)


def _activated(function, x, arithmetic):
  return x if function is keras.activations.linear else arithmetic.monotone(function, x)


def moving(norm):
  """The (mean, variance) that a batch norm has in inference mode."""
  return tuple(map(tf.convert_to_tensor, (norm.moving_mean, norm.moving_variance)))


def affine(norm, mean, variance):
  """(scale, offset) of a batch norm with some moments."""
  scale = tf.math.rsqrt(variance + norm.epsilon)
  scale = scale * norm.gamma if norm.scale else scale
  offset = -scale * mean
  return scale, offset + norm.beta if norm.center else offset


def _unknown(layer):
  return errors.UserError(
    f"no bound is known for the layer {layer.name!r} ({type(layer).__name__}). Use convolutions, "
    "dense layers, batch norms, pooling, the layer Add and monotone activations, channels last"
  )
