"""The decoder that mirrors `convnet` (Urkle paper, appendix B.2.1)."""

import keras

from urkle_tf import errors
from urkle_tf.networks import batch_norm, foreign


def decoder(latent_dim, image_shape, width=32, layers=4, momentum=0.9):
  """A dense layer, then transposed 3x3 convolutions of stride 2 with batch norm and ReLU.

  Its feature maps have the sizes and channels of `convnet(width, layers)`, in reverse.

  Args:
    latent_dim: d_z.
    image_shape: (height, width, channels) of the images to make, static.
    width: channels before the last transposed convolution.
    layers: transposed convolutions; 4 in the paper.
    momentum: of the batch norms' moving averages.

  Returns:
    A functional Keras model: float32 [n, d_z] -> float32 [n, h, w, c], logits of pixels.

  Raises:
    UserError: if `width` or `layers` is not a whole number of at least 1, or Keras's default is
      channels_first.

  ```python
  decoder = urkle_tf.networks.decoder(encoder.latent_dim, (32, 32, 3), width=8)
  logits = decoder(encoder(images).loc)  # float32 [n, 32, 32, 3]; sigmoid makes pixels of them
  ```
  """
  foreign.check_default()
  errors.whole(1, "decoder", width=width, layers=layers)
  width, layers = int(width), int(layers)  # Keras refuses NumPy's integers
  sizes = [tuple(image_shape[:2])]
  for _ in range(layers):
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
  x = z = keras.Input((latent_dim,), name="z")
  height, columns = sizes[-1]
  x = keras.layers.Dense(height * columns * width * layers, use_bias=False, name="expand")(x)
  x = keras.layers.Reshape((height, columns, width * layers), name="map")(x)
  for layer in range(layers, 0, -1):
    x = keras.layers.ReLU(name=f"relu{layer}")(batch_norm.norm(f"norm{layer}", momentum)(x))
    filters = image_shape[2] if layer == 1 else width * (layer - 1)
    options = {"padding": "same", "use_bias": layer == 1, "name": f"deconv{layer}"}
    x = keras.layers.Conv2DTranspose(filters, 3, strides=2, **options)(x)
    height, columns = sizes[layer - 1]
    if x.shape[1:3] != (height, columns):  # an odd size, which the stride rounded up
      x = keras.layers.Cropping2D(
        ((0, x.shape[1] - height), (0, x.shape[2] - columns)), name=f"crop{layer}"
      )(x)
  x = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
  return keras.Model(z, x, name="decoder")
