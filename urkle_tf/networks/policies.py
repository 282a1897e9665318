"""The precision of a network's layers, for a stretch of code; weights keep theirs."""

import contextlib

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
