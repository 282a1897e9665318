"""Low precision for a stretch of code, in networks whose weights and heads keep theirs."""

import contextlib

import keras

from urkle_tf.networks import keras_private


@contextlib.contextmanager
def low_precision(network, policy="mixed_bfloat16"):
  """Within it a network's backbone computes in low precision, and outside as before.

  A network without a backbone, that is without a model among its layers, does so as a whole.

  What is traced within keeps it.  Weights, and the layers beside the backbone, which make loc and
  scale, are as they were.  Meant for an attack's loop, which takes most of a step's time and needs
  no more than the sign of a gradient.

  Args:
    network: a `GaussianEncoder`'s, or any Keras model.
    policy: a Keras dtype policy.
  """
  parts = [part for part in network.layers if isinstance(part, keras.Model)] or [network]
  layers = [layer for part in parts for layer in keras_private.layers(part)]
  kept = [layer.dtype_policy for layer in layers]
  try:
    for layer in layers:
      layer.dtype_policy = policy
    yield
  finally:
    for layer, before in zip(layers, kept, strict=True):
      layer.dtype_policy = before
