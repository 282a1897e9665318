"""The precision of a network's layers, for a stretch of code; weights keep theirs."""

import contextlib
import functools

import keras

from urkle_tf.networks import keras_private


@contextlib.contextmanager
def computing_in(policy, *models):
  """Within it all layers of models have a policy, and outside their own; what is traced keeps it.

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
  """From now on the float32 layers of a model compute in the precision of Keras's global policy.

  Weights stay as they are, and so do layers that have a precision of their own.  `Rescaling` and
  `Normalization` stay float32: pixels are centred before they are rounded to 8 bits.

  Args:
    model: a Keras model, not traced yet.
  """
  policy = keras.config.dtype_policy()
  exact = (keras.layers.Rescaling, keras.layers.Normalization)
  for layer in keras_private.layers(model):
    if layer.dtype_policy.name == "float32" and not isinstance(layer, exact):
      layer.dtype_policy = policy


def precise_attention(model):
  """From now on attention within a model is computed in float32, whatever the precision around it.

  Queries, keys and values come in that precision, and so does the result go out: what lies between,
  logits, softmax and the weighted sum, overflows or rounds to NaN gradients in less.  In a model of
  float32 nothing changes.

  Args:
    model: a Keras model; its layers `MultiHeadAttention`, as in KerasHub's models, are meant.
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
  """Within it a network's backbone computes in low precision, and outside as before.

  A network without a backbone, that is without a model among its layers, does so as a whole.

  What is traced within keeps it.  Weights, and the layers beside the backbone, which make loc and
  scale, are as they were.  Meant for an attack's loop, which takes most of a step's time and needs
  no more than the sign of a gradient.

  Args:
    network: a `GaussianEncoder`'s, or any Keras model.
    policy: a Keras dtype policy.

  Returns:
    A context manager.
  """
  parts = [part for part in network.layers if isinstance(part, keras.Model)]
  return computing_in(policy, *(parts or [network]))
