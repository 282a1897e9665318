"""Augmentations: pure functions of a batch of images and uniform noise.

A recipe is called as `recipe(images, noise)`, with one row of noise for each image, and draws no
random numbers itself.  So the same function runs in the input pipeline and inside the compiled
training step, and the result for an example depends only on its own row.  The recipes here and in
`augmix` process a whole batch at once; `keras_cv_recipes` processes one image at a time.

```python
from urkle_tf.data import augment

recipe = augment.from_spec("simclr(strength=0.5)")  # a Recipe, here augment.SimCLR
noise = np.random.default_rng(0).uniform(size=(len(images), recipe.noise_size))
view = recipe(images, noise.astype("float32"))  # float32, of the images' shape
others = [augment.Identity(), augment.Crop(padding=4), augment.Affine(rotation=10.0)]
pair = augment.Each([recipe, augment.Identity()])  # one recipe a view
```
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors, spec

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in `tf.image.rgb_to_grayscale`.


class Recipe:
  """An augmentation.

  Attributes:
    noise_size: how many uniform numbers it needs for an image.
    on_device: whether the recipe may run inside a compiled step.
    base: the `Recipe` that is applied before, or None.
  """

  noise_size = 0
  on_device = True
  base: Any = None

  def check(self, views):
    """Raises `UserError` if the recipe does not make this number of views of an image."""
    if self.base is not None:
      self.base.check(views)

  def __call__(self, images, noise, size=None):
    """Augments a batch.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      noise: float32 [n, noise_size], uniform in [0, 1).
      size: (height, width) of the result; None for that of `images`.

    Returns:
      float32 [n, *size, c] in [0, 1].
    """
    raise NotImplementedError


class Identity(Recipe):
  """Leaves images as they are."""

  def __call__(self, images, noise, size=None):
    return resize(images, size)


class Crop(Recipe):
  """Zero-pads, cuts out a random window of the old size, and flips.

  Args:
    padding: pixels on each side.
    flip: whether half of the images are mirrored left to right.
  """

  noise_size = 3

  def __init__(self, padding=4, flip=True):
    errors.whole(0, "crop", padding=padding)
    self.padding, self.flip = padding, flip

  def __call__(self, images, noise, size=None):
    images = resize(images, size)
    _, height, width, _ = images.shape
    offsets = tf.cast(tf.floor(noise[:, :2] * (2 * self.padding + 1)), tf.int32)
    padded = tf.pad(images, [[0, 0], [self.padding] * 2, [self.padding] * 2, [0, 0]])
    columns = tf.range(width)[None]
    if self.flip:
      columns = tf.where(noise[:, 2:3] < 0.5, width - 1 - columns, columns)
    padded = tf.gather(padded, tf.range(height)[None] + offsets[:, :1], batch_dims=1)
    return tf.gather(padded, columns + offsets[:, 1:], axis=2, batch_dims=1)


class Affine(Recipe):
  """Rotates, resizes and shifts about the centre (bilinear), with black outside.

  Args:
    rotation: the largest angle, in degrees in either direction.
    scale: the largest relative change of size: with 0.1 the content becomes 0.9 to 1.1 times as
      large, by the same factor along both axes.
    shift: the largest shift along each axis, in pixels in either direction, not rounded.
  """

  noise_size = 4

  def __init__(self, rotation=10.0, scale=0.1, shift=1.0):
    errors.within("[0, 180]", "affine", rotation=rotation)
    errors.within("[0, 1)", "affine", scale=scale)
    errors.at_least(0, "affine", shift=shift)
    self.rotation, self.scale, self.shift = rotation, scale, shift

  def __call__(self, images, noise, size=None):
    images = resize(images, size)
    _, height, width, channels = images.shape
    signed = 2 * tf.cast(noise, tf.float32) - 1
    angle = signed[:, 0] * (self.rotation * math.pi / 180)
    extent = 1 + signed[:, 1] * self.scale
    down, right = signed[:, 2] * self.shift, signed[:, 3] * self.shift
    # The place that each pixel of the result comes from: shifted, rotated and resized back.
    y = (tf.range(height, dtype=tf.float32) - (height - 1) / 2)[None, :, None]
    x = (tf.range(width, dtype=tf.float32) - (width - 1) / 2)[None, None, :]
    y, x = y - down[:, None, None], x - right[:, None, None]
    cosine = (tf.cos(angle) / extent)[:, None, None]
    sine = (tf.sin(angle) / extent)[:, None, None]
    source_y = cosine * y - sine * x + (height - 1) / 2
    source_x = sine * y + cosine * x + (width - 1) / 2
    top, left = tf.floor(source_y), tf.floor(source_x)
    flat = tf.reshape(images, [-1, height * width, channels])
    result = tf.zeros_like(images)
    for row, weight_y in ((top, top + 1 - source_y), (top + 1, source_y - top)):
      for column, weight_x in ((left, left + 1 - source_x), (left + 1, source_x - left)):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        weight = tf.where(inside, weight_y * weight_x, 0.0)
        place = tf.where(inside, row * width + column, 0.0)
        place = tf.reshape(tf.cast(place, tf.int32), [-1, height * width])
        pixels = tf.reshape(tf.gather(flat, place, batch_dims=1), tf.shape(images))
        result += weight[..., None] * pixels
    return tf.clip_by_value(result, 0.0, 1.0)


class SimCLR(Recipe):
  """Random resized crop, flip, colour jitter and grey.

  Chen et al., "A simple framework for contrastive learning", appendix A, as
  contrastive adversarial training uses it at 32 pixels.  In this order:

  - a box of area U(min_scale, 1) of the image and log ratio U(log 3/4, log 4/3),
    rounded to whole pixels and cut to the image, is resized (antialiased
    bilinear) to the whole;
  - with probability 1/2 the image is mirrored left to right;
  - with probability 0.8: brightness * U(1 ± 0.4), contrast U(1 ± 0.4) around
    the image's mean grey, saturation U(1 ± 0.4) around each pixel's grey, hue
    turned by U(±0.1) of the circle (in YIQ, so that luma stays);
  - with probability 0.2 the image becomes grey.

  `strength` s scales everything except the flip: the smallest area is 1 - s (1 - min_scale), the
  log ratio is U(±s log 4/3) plus (1 - s) times the image's own, the four jitters are multiplied by
  s, and the probabilities are 0.8 s and 0.2 s.  So 1 is the recipe above, and 0 only flips (and
  resizes).  Above 1, areas and probabilities stay within their bounds.

  Args:
    strength: a number of at least 0, or a float tensor or variable that is read at every call.
    min_scale: smallest share of the image's area, in (0, 1].
    flip: whether half of the images are mirrored left to right.
    color: a factor on the four jitters only (2 is SimCLR's ImageNet setting; 0 turns them off).
    grey: the probability of grey at strength 1.
  """

  noise_size = 11

  def __init__(self, strength=1.0, min_scale=0.08, flip=True, color=1.0, grey=0.2):
    if not tf.is_tensor(strength) and not isinstance(strength, tf.Variable):
      errors.at_least(0, "simclr", strength=strength)
    errors.within("(0, 1]", "simclr", min_scale=min_scale)
    errors.within("[0, 1]", "simclr", grey=grey)
    errors.at_least(0, "simclr", color=color)
    self.strength, self.min_scale, self.flip = strength, min_scale, flip
    self.color, self.grey = color, grey

  def __call__(self, images, noise, size=None, strength=None):
    strength = tf.cast(self.strength if strength is None else strength, tf.float32)
    noise = tf.unstack(noise, self.noise_size, axis=1)
    box = self._box(noise[:4], images.shape[1:3], strength)
    flip = noise[4] < 0.5 if self.flip else None
    images = crop_and_resize(images, box, size or images.shape[1:3], flip)
    return tf.clip_by_value(self._jitter(images, noise[5:], strength), 0.0, 1.0)

  def _box(self, noise, shape, strength):
    height, width = (float(side) for side in shape)
    most = tf.minimum(strength, 1.0)
    area = height * width * (1 - most * (1 - self.min_scale) * (1 - noise[0]))
    root_ratio = tf.exp(most * math.log(4 / 3) * (noise[1] - 0.5))
    root_ratio *= (width / height) ** ((1 - most) / 2)
    box_height = tf.clip_by_value(tf.round(tf.sqrt(area) / root_ratio), 1.0, height)
    box_width = tf.clip_by_value(tf.round(tf.sqrt(area) * root_ratio), 1.0, width)
    top = tf.floor(noise[2] * (height - box_height + 1))
    left = tf.floor(noise[3] * (width - box_width + 1))
    return top, left, box_height, box_width

  def _jitter(self, images, noise, strength):
    on = tf.cast(noise[0] < 0.8 * strength, tf.float32)

    def uniform(u, most):
      return on * strength * (self.color * most) * (2 * u - 1)

    brightness = tf.maximum(1 + uniform(noise[1], 0.4), 0.0)
    contrast = tf.maximum(1 + uniform(noise[2], 0.4), 0.0)
    if images.shape[-1] != 3:
      return adjust(images, contrast, brightness[:, None, None] * tf.eye(images.shape[-1]))
    saturation = tf.maximum(1 + uniform(noise[3], 0.4), 0.0)
    grey = tf.cast(noise[5] < self.grey * strength, tf.float32)
    matrix = saturation_matrix((1 - grey) * saturation) @ hue_matrix(uniform(noise[4], 0.1))
    return adjust(images, contrast, brightness[:, None, None] * matrix)


class Each(Recipe):
  """A different recipe for each view, for example AugMix for all but the first one.

  The rows of a batch are the views of the first image, then those of the next.

  Args:
    recipes: a list with one recipe for each view.
  """

  def __init__(self, recipes):
    self.recipes = list(recipes)
    self.noise_size = max(recipe.noise_size for recipe in self.recipes)
    self.on_device = all(recipe.on_device for recipe in self.recipes)

  def check(self, views):
    if views != len(self.recipes):
      raise errors.UserError(
        f"--augment lists {len(self.recipes)} recipes, but the number of views is {views}: "
        "give one recipe for all views, or one for each"
      )
    for recipe in self.recipes:
      recipe.check(1)

  def __call__(self, images, noise, size=None):
    in_turn = lambda rows: tf.reshape(rows, [-1, len(self.recipes), *rows.shape[1:]])  # noqa: E731
    each = (tf.unstack(in_turn(rows), axis=1) for rows in (images, noise))
    views = [
      recipe(image, rows[:, : recipe.noise_size], size)
      for recipe, image, rows in zip(self.recipes, *each, strict=True)
    ]
    views = tf.stack(views, axis=1)
    return tf.reshape(views, [-1, *views.shape[2:]])


def resize(images, size):
  """Resizes [n, h, w, c] to `size` (antialiased bilinear), if it differs."""
  if size is None or tuple(images.shape[1:3]) == tuple(size):
    return images
  return tf.clip_by_value(tf.image.resize(images, size, antialias=True), 0.0, 1.0)


def warp(images, transforms):
  """Moves pixels by a projective map (bilinear, with black outside).

  Args:
    images: uint8 [n, h, w, c].
    transforms: eight float32 [n], from the pixels of the result to those of the image, as
      `keras.ops.image.affine_transform` takes them.

  Returns:
    uint8 [n, h, w, c].
  """
  moved = keras.ops.image.affine_transform(
    tf.cast(images, tf.float32), tf.stack(transforms, 1), data_format="channels_last"
  )
  return tf.ensure_shape(tf.cast(tf.round(moved), tf.uint8), images.shape)


def crop_and_resize(images, box, size, flip=None):
  """Crops a box from each image, and resizes it (antialiased bilinear).

  It computes `tf.image.resize(images[i, top:..., left:...], size, antialias=True)` for each image,
  as two matrix products.

  Args:
    images: float32 [n, h, w, c].
    box: (top, left, height, width), each float32 [n] of whole pixels inside
      the image.
    size: (height, width) of the result.
    flip: bool [n], which images to mirror left to right; or None.

  Returns:
    float32 [n, *size, c].
  """
  top, left, height, width = box
  n, rows, columns, channels = images.shape
  n = tf.shape(images)[0] if n is None else n
  y = _interpolation(top, height, rows, size[0])
  x = _interpolation(left, width, columns, size[1], flip)
  images = tf.matmul(y, tf.reshape(images, [n, rows, columns * channels]))
  images = tf.reshape(images, [n, size[0], columns, channels])
  return tf.einsum("nxw,nywc->nyxc", x, images)


def _interpolation(start, extent, old, new, flip=None):
  """Interpolation weights [n, new, old], from the pixels of a box to those of the result."""
  positions = tf.range(new, dtype=tf.float32)[None, :]
  if flip is not None:
    positions = tf.where(flip[:, None], new - 1 - positions, positions)
  step = extent[:, None] / new
  centres = start[:, None] + (positions + 0.5) * step - 0.5
  pixels = tf.range(old, dtype=tf.float32)
  distance = tf.abs(pixels - centres[:, :, None]) / tf.maximum(step, 1.0)[:, :, None]
  first, end = start[:, None, None], (start + extent)[:, None, None]
  inside = tf.logical_and(pixels >= first, pixels < end)
  weights = tf.where(inside, tf.maximum(1 - distance, 0.0), 0.0)
  return weights / tf.reduce_sum(weights, axis=2, keepdims=True)


def adjust(images, contrast, matrix):
  """Transforms colours by a matrix, then scales the contrast around the mean grey.

  Args:
    images: float32 [n, h, w, c].
    contrast: float32 [n].
    matrix: float32 [n, c, c]: new colour = matrix @ old colour.

  Returns:
    float32 [n, h, w, c], not clipped: contrast * y + (1 - contrast) * mean
    over the image of the luma of y, with y = matrix @ x.
  """
  channels = images.shape[-1]
  luma = tf.constant(LUMA if channels == 3 else [1 / channels] * channels)
  mean = tf.linalg.matvec(matrix, tf.reduce_mean(images, axis=[1, 2]))
  grey = tf.reduce_sum(mean * luma, axis=-1)
  shape = tf.shape(images)
  flat = tf.reshape(images, [shape[0], images.shape[1] * images.shape[2], channels])
  flat = tf.matmul(flat, contrast[:, None, None] * matrix, transpose_b=True)
  flat += ((1 - contrast) * grey)[:, None, None]
  return tf.reshape(flat, [shape[0], *images.shape[1:]])


def saturation_matrix(factor):
  """[n, 3, 3]: blends each pixel with its luma; 0 is grey, 1 leaves it."""
  grey = tf.constant([LUMA] * 3)
  return factor[:, None, None] * (tf.eye(3) - grey) + grey


# Rows: luma, and two axes of chroma, on which grey is 0.
_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_FROM_YIQ = np.linalg.inv(_YIQ)


def hue_matrix(turn):
  """[n, 3, 3]: rotates the chroma of YIQ by `turn` full turns; luma stays."""
  cosine, sine = tf.cos(2 * math.pi * turn), tf.sin(2 * math.pi * turn)
  one, zero = tf.ones_like(turn), tf.zeros_like(turn)
  rows = [one, zero, zero], [zero, cosine, -sine], [zero, sine, cosine]
  rotation = tf.stack([tf.stack(row, -1) for row in rows], -2)
  return tf.constant(_FROM_YIQ, tf.float32) @ rotation @ tf.constant(_YIQ, tf.float32)


RECIPES = {"simclr": SimCLR, "crop": Crop, "affine": Affine, "none": Identity}


def from_spec(text):
  """Makes a recipe from a spec such as `"simclr(strength=0.5)"`.

  Args:
    text: the spec; or one spec for each view, separated by commas, for an `Each`.

  Returns:
    A `Recipe`.

  Raises:
    UserError: if there is no such recipe or option.
  """
  if len(each := spec.split(text)) > 1:
    return Each(map(from_spec, each))
  return spec.call(RECIPES, text, "augmentation")
