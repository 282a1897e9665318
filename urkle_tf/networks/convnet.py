"""The paper's convolutional net for MNIST (appendix B.2.1)."""

import keras

from urkle_tf import errors
from urkle_tf.networks import batch_norm, foreign


def convnet(image_shape, width=48, layers=4, momentum=0.9, convs=1):
  """3x3 convolutions of stride 2 with batch norm and ReLU, then average pooling.

  The paper specifies four 3x3 convolutions and the pooling.  Strides, widths and normalisation are
  our choice.  The channels are width, 2 width, 3 width, ..., so the last of four convolutions has 4
  width.  With `convs` of more than 1, convolutions of stride 1 follow each of these.

  Args:
    image_shape: (height, width, channels), static.
    width: channels of the first convolution.
    layers: convolutions of stride 2; 4 in the paper.
    momentum: of the batch norms' moving averages, in [0, 1).
    convs: convolutions of each width; 1 in the paper.  The first of them has the stride.

  Returns:
    A functional Keras model: float [n, h, w, c] -> float32 [n, layers * width].

  Raises:
    UserError: if the images are too small, `width`, `layers` or `convs` is not a whole number of at
      least 1, or Keras's default is channels_first.

  ```python
  backbone = urkle_tf.networks.convnet((32, 32, 3), width=16)
  features = backbone(images)  # float32 [n, 64]
  ```
  """
  foreign.check_default()
  errors.whole(1, "convnet", width=width, layers=layers, convs=convs)
  least = 2 ** (layers - 1)
  if min(image_shape[:2]) < least:
    raise errors.UserError(
      f"convnet with {layers} layers needs images of at least {least}x{least} pixels, got "
      f"{image_shape[0]}x{image_shape[1]}. Give a larger --image_size or fewer layers"
    )
  x = images = keras.Input(image_shape, name="pixels")
  for layer in range(1, layers + 1):
    for conv in range(1, convs + 1):
      number, strides = (layer, 2) if conv == 1 else (f"{layer}_{conv}", 1)
      x = keras.layers.Conv2D(
        width * layer, 3, strides, padding="same", use_bias=False, name=f"conv{number}"
      )(x)
      x = batch_norm.norm(f"norm{number}", momentum)(x)
      x = keras.layers.ReLU(name=f"relu{number}")(x)
  x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
  return keras.Model(images, x, name="convnet")
