"""Changes the precision of a network's layers within a context; weights keep theirs."""

import contextlib
import functools

import keras

from urkle_tf.networks import keras_private


@contextlib.contextmanager
def computing_in(policy, *models):
  """A context within which all layers of models have a policy; functions traced within keep it.

  Args:
    policy: a Keras dtype policy.
    *models: Keras models.
  """
  layers = [layer for model in models for layer in keras_private.layers(model)]
  kept = [layer.dtype_policy for layer in layers]
  try:
    for layer in layers:
      layer.dtype_policy = policy
    yield
  finally:
    for layer, before in zip(layers, kept, strict=True):
      layer.dtype_policy = before


def follow_precision(model):
  """Makes the float32 layers of a model compute in the precision of Keras's global policy.

  So do those of mixed_float16, whose weights are float32 too, and whose gradients need a scaled
  loss.  Weights do not change, and neither do layers with another precision.  `Rescaling` and
  `Normalization` are float32, so that pixels are centred before they are rounded to 8 bits.

  Args:
    model: a Keras model, not traced yet.
  """
  policy = keras.config.dtype_policy()
  exact = (keras.layers.Rescaling, keras.layers.Normalization)
  for layer in keras_private.layers(model):
    if layer.dtype_policy.name in ("float32", "mixed_float16"):
      layer.dtype_policy = "float32" if isinstance(layer, exact) else policy


def precise_attention(model):
  """Makes a model compute its attention in float32 from now on, whatever the precision around it.

  Queries, keys, values and the result keep that precision.  In low precision, the logits, the
  softmax and the weighted sum can overflow, or give NaN gradients.  A float32 model does not
  change.

  Args:
    model: a Keras model with layers `MultiHeadAttention`, as in KerasHub.
  """
  for layer in keras_private.layers(model):
    if isinstance(layer, keras.layers.MultiHeadAttention):
      keras_private.replace_attention(layer, functools.partial(_in_float32, layer))


def _in_float32(layer, compute, *parts, **options):
  dtype = parts[0].dtype
  if keras.backend.standardize_dtype(dtype) == "float32":
    return compute(*parts, **options)
  query, key, value, *others = parts
  inputs = (keras.ops.cast(x, "float32") for x in (query, key, value))
  with computing_in("float32", *keras_private.attention_parts(layer)):
    outputs, scores = compute(*inputs, *others, **options)
  return keras.ops.cast(outputs, dtype), scores


def low_precision(network, policy="mixed_bfloat16"):
  """A context within which a network's backbone computes in low precision.

  A network without a backbone (without a model among its layers) computes everything in it.

  Functions traced within keep it.  Weights, and the layers that make loc and scale, do not change.
  It is meant for an attack's loop, which takes most of a step's time and needs little more than the
  sign of a gradient.

  Args:
    network: the network of a `GaussianEncoder`, or any Keras model.
    policy: a Keras dtype policy.

  Returns:
    A context manager.
  """
  parts = [part for part in network.layers if isinstance(part, keras.Model)]
  return computing_in(policy, *(parts or [network]))
