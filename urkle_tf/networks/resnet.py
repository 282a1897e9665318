"""ResNet-18 and ResNet-50 (He et al., 2016), with a stem for small images.

Up to 64 pixels the stem is one 3x3 convolution without pooling (the usual CIFAR variant);
above, the usual 7x7 convolution of stride 2 and a 3x3 max-pool.
"""

import keras

from urkle_tf import errors
from urkle_tf.networks import batch_norm, foreign

_STEMS = ("small", "patch", "large")


def _norm(x, name, momentum, zero=False):
  return batch_norm.norm(name, momentum, gamma_initializer="zeros" if zero else "ones")(x)


def _conv(x, filters, size, strides, name):
  if strides > 1 and size == 1:
    # Equal to a strided convolution, whose gradient oneDNN may get wrong (`onednn`).
    x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_stride")(x)
    strides = 1
  # Padded symmetrically: "same" pads stride-2 convolutions on one side only.
  if strides > 1:
    x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
  padding = "valid" if strides > 1 else "same"
  start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
  options = {"use_bias": False, "kernel_initializer": start, "name": name}
  return keras.layers.Conv2D(filters, size, strides=strides, padding=padding, **options)(x)


def _shortcut(x, filters, strides, name, momentum):
  if strides == 1 and x.shape[-1] == filters:
    return x
  return _norm(_conv(x, filters, 1, strides, f"{name}_conv"), f"{name}_norm", momentum)


# For each convolution of a block: filters in widths, size, whether it has the block's stride.
_BASIC = (1, 3, True), (1, 3, False)
_BOTTLENECK = (1, 1, False), (1, 3, True), (4, 1, False)


def _block(x, convs, width, strides, name, momentum, zero_gamma):
  shortcut = _shortcut(x, convs[-1][0] * width, strides, f"{name}_shortcut", momentum)
  for number, (factor, size, strided) in enumerate(convs, 1):
    x = _conv(x, factor * width, size, strides if strided else 1, f"{name}_conv{number}")
    x = _norm(x, f"{name}_norm{number}", momentum, zero_gamma and number == len(convs))
    if number == len(convs):
      x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    x = keras.layers.ReLU(name=f"{name}_relu{number}")(x)
  return x


def _resnet(convs, depths, name, image_shape, width, stem, momentum, zero_gamma):
  foreign.check_default()
  height, breadth = image_shape[:2]
  if stem == "auto":
    stem = "small" if max(height, breadth) <= 64 else "large"
  errors.one_of("stem", stem, _STEMS)
  least = {"small": 8, "patch": 16, "large": 32}[stem]
  if min(height, breadth) < least:
    raise errors.UserError(
      f"{name} needs images of at least {least}x{least} pixels, got {height}x{breadth}: "
      f"give a larger --image_size, or another --encoder"
    )
  errors.whole(1, name, width=width)
  x = images = keras.Input(image_shape, name="pixels")
  size, strides = {"small": (3, 1), "patch": (3, 2), "large": (7, 2)}[stem]
  x = _norm(_conv(x, width, size, strides, "stem_conv"), "stem_norm", momentum)
  x = keras.layers.ReLU(name="stem_relu")(x)
  if stem == "large":
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # after a ReLU, 0 is the least
    x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
  for stage, depth in enumerate(depths):
    for index in range(depth):
      strides = 2 if stage and not index else 1
      block = f"stage{stage + 1}_block{index + 1}"
      x = _block(x, convs, width * 2**stage, strides, block, momentum, zero_gamma)
  x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
  return keras.Model(images, x, name=name)


def resnet18(image_shape, width=64, stem="auto", momentum=0.9, zero_gamma=True):
  """ResNet-18: 2-2-2-2 basic blocks.

  Args:
    image_shape: (height, width, channels), static.
    width: channels of the first stage (64 in the paper); the last has 8 times as many.
    stem: "small" (3x3, stride 1), "patch" (3x3, stride 2: a quarter of the work), "large"
      (7x7, stride 2, max-pool) or "auto": small up to 64 pixels, else large.
    momentum: of the batch norms' moving averages.
    zero_gamma: whether the gamma of each block's last batch norm starts at 0, so that the block
      starts as its shortcut; else at 1.

  Returns:
    A functional Keras model: float [n, h, w, c] -> float32 [n, 8 * width].

  Raises:
    UserError: if the images are too small, an argument is out of its range, or Keras's default is
      channels_first.

  ```python
  backbone = urkle_tf.networks.resnet18((32, 32, 3), width=16, stem="patch")
  features = backbone(images)  # float32 [n, 128]
  ```
  """
  options = width, stem, momentum, zero_gamma
  return _resnet(_BASIC, (2, 2, 2, 2), "resnet18", image_shape, *options)


def resnet50(image_shape, width=64, stem="auto", momentum=0.9, zero_gamma=True):
  """ResNet-50: 3-4-6-3 bottleneck blocks.

  Arguments and errors are those of `resnet18`.

  Returns:
    A functional Keras model: float [n, h, w, c] -> float32 [n, 32 * width].

  ```python
  backbone = urkle_tf.networks.resnet50((32, 32, 3), width=16)
  features = backbone(images)  # float32 [n, 512]
  ```
  """
  options = width, stem, momentum, zero_gamma
  return _resnet(_BOTTLENECK, (3, 4, 6, 3), "resnet50", image_shape, *options)
