"""Folds batch norms into the layers before them, for networks whose weights do not change."""

import collections

import keras
import tensorflow as tf

from urkle_tf.networks import keras_private, recomputing

FOLDABLE = (
  keras.layers.Conv2D,
  keras.layers.Conv2DTranspose,
  keras.layers.Dense,
  keras.layers.DepthwiseConv2D,
)


@tf.autograph.experimental.do_not_convert
def fold(model):
  """A model in inference mode, its batch norms folded into the layers before them.

      gamma (W x + b - mean) / sqrt(variance + epsilon) + beta  =  (s W) x + s (b - mean) + beta

  with s = gamma / sqrt(variance + epsilon).  A batch norm is folded if it follows a convolution
  (also transposed or depthwise) or a dense layer that has no activation, and if nothing else reads
  that layer's output.  Nested models are folded too.  All other layers are called unchanged.  The
  folded weights are computed here, once, in float32: call `fold` outside an attack's loop, and its
  result inside.

  Args:
    model: a functional or sequential Keras model.  In any other model nothing is folded.

  Returns:
    A function of the model's inputs that returns what `model(inputs, training=False)` does, with
    the same structure and dtypes, and with the current weights.  It accepts `training=False`, so
    that it can replace the model.
  """
  graph = keras_private.functional(model)
  if graph is None:
    return lambda inputs, training=False: model(inputs, training=False)
  if graph is not model:  # sequential
    inner = fold(graph)
    convert = lambda x: model.dtype_policy.convert_input(x, model.autocast, model.input_dtype)  # noqa: E731
    return lambda inputs, training=False: inner(keras.tree.map_structure(convert, inputs))
  calls = _calls(model)

  def run(inputs, training=False):
    return recomputing.run(model, inputs, calls)

  return run


def _calls(model):
  """{id of an operation in the model's graph: the function to call instead}."""
  nodes = collections.defaultdict(list)  # of an operation: one for each time it is used
  readers = collections.defaultdict(list)  # of a tensor
  for node in keras_private.nodes(model):
    nodes[id(node.operation)].append(node)
    for tensor in node.input_tensors:
      readers[id(tensor)].append(node)
  for tensor in model.outputs:
    readers[id(tensor)].append(None)

  calls = {
    id(operation): recomputing.in_inference_mode(operation) for operation in model.operations
  }
  for operation in model.operations:
    used = nodes[id(operation)]
    if not all(map(_takes_one_argument, used)):
      continue
    if isinstance(operation, keras.Model):
      calls[id(operation)] = _of_one_argument(fold(operation))
    elif type(operation) in FOLDABLE and len(used) == 1:
      reader, *others = readers[id(used[0].outputs[0])]
      if others or reader is None or not _takes_one_argument(reader):
        continue
      norm = reader.operation
      if len(nodes[id(norm)]) == 1 and _can_be_folded(operation, norm):
        calls[id(operation)] = _of_one_argument(_folded(operation, norm))
        calls[id(norm)] = _of_one_argument(lambda x: x)
  return calls


def _of_one_argument(function):
  """Drops further arguments that Keras records: masks that are None, and `training`."""
  return lambda inputs, **_: function(inputs)


def _takes_one_argument(node):
  others = {key: value for key, value in node.arguments.kwargs.items() if key != "training"}
  return len(node.arguments.args) == 1 and all(x is None for x in keras.tree.flatten(others))


def channels_last(layer):
  """Whether a layer with channels has them on the last axis of its output."""
  axis = getattr(layer, "axis", -1)
  if axis != -1 and axis != len(layer.output.shape) - 1:
    return False
  return getattr(layer, "data_format", "channels_last") == "channels_last"


def _can_be_folded(layer, norm):
  # A subclass may do anything, so it is left alone.
  return (
    type(norm) is keras.layers.BatchNormalization
    and channels_last(norm)
    and channels_last(layer)
    and layer.activation in (None, keras.activations.linear)
    and getattr(layer, "quantization_mode", None) is None
    and layer.autocast
    and norm.autocast
  )


def _folded(layer, norm):
  """The layer and the batch norm after it as one function of the layer's input."""
  dtype = keras.backend.result_type(layer.variable_dtype, "float32")
  with keras_private.uncast():  # `fold` may be called within a layer of mixed precision
    read = lambda variable: keras.ops.cast(variable, dtype)  # noqa: E731
    scale = tf.math.rsqrt(read(norm.moving_variance) + norm.epsilon)
    if norm.scale:
      scale *= read(norm.gamma)
    bias = -read(norm.moving_mean)
    if layer.use_bias:
      bias += read(layer.bias)
    bias *= scale
    if norm.center:
      bias += read(norm.beta)
    kernel = read(layer.kernel)
  if isinstance(layer, keras.layers.Conv2DTranspose):
    scale = scale[:, None]  # its kernel is [h, w, out, in]
  elif isinstance(layer, keras.layers.DepthwiseConv2D):
    scale = tf.reshape(scale, kernel.shape[2:])  # [in, multiplier]
  kernel = tf.cast(kernel * scale, layer.compute_dtype)
  bias = tf.cast(bias, norm.compute_dtype)

  def run(inputs):
    outputs = linear(layer, tf.cast(inputs, layer.compute_dtype), kernel)
    return tf.nn.bias_add(tf.cast(outputs, norm.compute_dtype), bias)

  return run


def linear(layer, inputs, kernel):
  """Applies one of `FOLDABLE` to its inputs, with another kernel and without a bias."""
  if isinstance(layer, keras.layers.Dense):
    return keras.ops.matmul(inputs, kernel)
  names = ("strides", "padding", "data_format", "dilation_rate")
  options = {name: getattr(layer, name) for name in names}
  if isinstance(layer, keras.layers.Conv2DTranspose):
    options["output_padding"] = layer.output_padding
    return keras.ops.conv_transpose(inputs, kernel, **options)
  if isinstance(layer, keras.layers.DepthwiseConv2D):
    return keras.ops.depthwise_conv(inputs, kernel, **options)
  return keras.ops.conv(inputs, kernel, **options)
