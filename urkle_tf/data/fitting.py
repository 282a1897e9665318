"""Resizes images (antialiased bilinear) to cover a size, and cuts out the centre."""

import tensorflow as tf
from PIL import Image


def fit(image, image_shape):
  """Brings tensors to a size.

  Args:
    image: uint8 [..., h, w, c].
    image_shape: (height, width, channels) of the result; the channels stay the same.

  Returns:
    uint8 [..., *image_shape].
  """
  target_height, target_width, _ = image_shape
  if image.shape[-3:] == tf.TensorShape(image_shape):
    return image
  shape = tf.shape(image)
  height, width = shape[-3], shape[-2]
  scale = tf.maximum(target_height / height, target_width / width)

  def side(old, new):
    return tf.maximum(tf.cast(tf.round(tf.cast(old, tf.float64) * scale), tf.int32), new)

  new_height, new_width = side(height, target_height), side(width, target_width)
  image = tf.image.resize(image, [new_height, new_width], antialias=True)
  top, left = (new_height - target_height) // 2, (new_width - target_width) // 2
  image = image[..., top : top + target_height, left : left + target_width, :]
  image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
  return tf.ensure_shape(image, [*image.shape[:-3], *image_shape])


def fit_pillow(image, width, height):
  """As `fit`, for a Pillow image."""
  if image.size == (width, height):
    return image
  resized_height, resized_width = _covering(image.height, image.width, height, width)
  image = image.resize((resized_width, resized_height), Image.Resampling.BILINEAR)
  left, top = (resized_width - width) // 2, (resized_height - height) // 2
  return image.crop((left, top, left + width, top + height))


def _covering(height, width, target_height, target_width):
  """The smallest size of this aspect ratio that covers the target."""
  if height * target_width <= width * target_height:
    return target_height, max(target_width, round(width * target_height / height))
  return max(target_height, round(height * target_width / width)), target_width
