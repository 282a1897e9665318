"""The features below loc and scale: the output of an encoder's backbone."""

import keras

from urkle_tf import errors
from urkle_tf.networks import keras_private


def pooled(network):
  """The pooled features of an encoder, for every kind of loc.

  They are the input of the layer `raw_scale`: the output of the backbone, averaged over space if it
  is a feature map.  Weights are shared with `network`.

  Args:
    network: the `network` of a `GaussianEncoder` or of a loaded encoder, images float32 [n, h, w,
      c] in [0, 1] -> {"loc", "scale"}.

  Returns:
    A functional Keras model, images as above -> float32 [n, f].

  Raises:
    UserError: if the network has no such layer.

  ```python
  features = urkle_tf.networks.pooled(encoder.network)  # a Keras model
  found = features(images)  # float32 [n, f]
  ```
  """
  features = below_heads(network)
  taken = any(layer.name == "pooled" for layer in network.layers)  # as a backbone may be
  name = "pooled_features" if taken else "pooled"
  features = keras.layers.Identity(dtype="float32", name=name)(features)
  return keras.Model(network.input, features, name="pooled")


def below_heads(network):
  """The tensor of this network's graph that `raw_scale` reads; streams share that layer."""
  for node in keras_private.nodes(network):
    if getattr(node.operation, "name", "") == "raw_scale":
      return node.input_tensors[0]
  raise errors.UserError(
    f"the network {network.name!r} has no layer raw_scale on pooled features: give an encoder "
    "that urkle_tf exported"
  )
