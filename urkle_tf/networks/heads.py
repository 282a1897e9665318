"""Small networks on top of a representation: projectors and classifier heads."""

import keras

from urkle_tf.networks import batch_norm


def mlp(features, widths, name, last_norm=False, momentum=0.9, norm=True):
  """Dense layers, with batch norm and ReLU in between.

  Args:
    features: the width of the input.
    widths: the widths of the layers; the last is the output's.
    name: the model's name.
    last_norm: whether the output has a batch norm too.
    momentum: of the batch norms' moving averages.
    norm: whether there are batch norms in between.

  Returns:
    A functional Keras model, float32 [n, features] -> float32 [n, widths[-1]].

  ```python
  head = urkle_tf.networks.mlp(encoder.latent_dim, [256, 10], "head")
  logits = head(encoder(images).loc)  # float32 [n, 10]
  ```
  """
  x = inputs = keras.Input((features,), name="z")
  for index, width in enumerate(map(int, widths)):  # Keras refuses NumPy's integers
    last = index == len(widths) - 1
    normed = last_norm if last else norm
    x = keras.layers.Dense(width, use_bias=not normed, dtype="float32", name=f"dense{index + 1}")(x)
    if normed:
      x = batch_norm.norm(f"norm{index + 1}", momentum, dtype="float32")(x)
    if not last:
      x = keras.layers.ReLU(dtype="float32", name=f"relu{index + 1}")(x)
  return keras.Model(inputs, x, name=name)
