"""The features below loc and scale: the output of an encoder's backbone."""

import keras

from urkle_tf import errors


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
  try:
    features = network.get_layer("raw_scale").input
  except ValueError:
    raise errors.UserError(
      f"the network {network.name!r} has no layer raw_scale on pooled features: give an encoder "
      "that urkle_tf exported"
    ) from None
  features = keras.layers.Identity(dtype="float32", name="pooled")(features)
  return keras.Model(network.input, features, name="pooled")
