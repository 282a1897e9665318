"""AugMix (Hendrycks et al., ICLR 2020): mixtures of chains of simple operations on images.

    m x + (1 - m) sum_k w_k chain_k(x),   w ~ Dirichlet(1, ..., 1),  m ~ Beta(1, 1)

Each chain applies one or more of nine operations, drawn with equal probability.  These are the
paper's operations on 8-bit images.  Colour, contrast, brightness and sharpness are left out,
because they are among the common corruptions that robustness is measured on.

An operation is applied at once to all images of a batch that get it, so an image costs only its own
operations.  This makes shapes depend on the draws, so the recipe does not run on accelerators.
"""

import math

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import augment

# Operations take images uint8 [n, h, w, c], a level in (0, 10] and a sign of 1 or -1, both
# float32 [n], and return uint8 [n, h, w, c].  Each channel is treated as a separate image.


def _autocontrast(images, level, sign):
  """Stretches the values to the full range."""
  values = tf.cast(images, tf.float32)
  low = tf.reduce_min(values, [1, 2], keepdims=True)
  spread = tf.reduce_max(values, [1, 2], keepdims=True) - low
  stretched = (values - low) * 255 / tf.maximum(spread, 1.0)
  return tf.cast(tf.where(spread > 0, stretched, values), tf.uint8)


def _equalize(images, level, sign):
  """Gives every value about the same share of the pixels, by a table of the 256 values."""
  _, height, width, channels = images.shape
  flat = tf.transpose(tf.cast(images, tf.int32), [0, 3, 1, 2])
  flat = tf.reshape(flat, [-1, height * width])  # a row for each channel of each image
  counts = tf.math.bincount(flat, minlength=256, maxlength=256, axis=-1)
  below = tf.cumsum(counts, axis=1, exclusive=True)
  brightest = tf.gather(counts, tf.reduce_max(flat, 1), batch_dims=1)
  step = (height * width - brightest)[:, None] // 255
  table = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
  table = tf.where(step > 0, table, tf.range(256))
  flat = tf.gather(tf.cast(table, tf.uint8), flat, batch_dims=1)
  return tf.transpose(tf.reshape(flat, [-1, channels, height, width]), [0, 2, 3, 1])


def _posterize(images, level, sign):
  """Keeps the highest 4 bits, or fewer from level 2.5 on."""
  low = 4 + tf.cast(_whole(level, 4), tf.uint8)  # bits that are cleared
  mask = tf.bitwise.invert(tf.bitwise.left_shift(tf.constant(1, tf.uint8), low) - 1)
  return tf.bitwise.bitwise_and(images, _column(mask))


def _solarize(images, level, sign):
  """Inverts the values above a threshold: 256 minus 25.6 per level."""
  last = tf.cast(255 - tf.minimum(_whole(level, 256), 255), tf.uint8)  # the largest value kept
  return tf.where(images <= _column(last), images, 255 - images)


def _rotate(images, level, sign):
  """Rotates about the centre by whole degrees, 3 per level."""
  angle = sign * tf.cast(_whole(level, 30), tf.float32) * (math.pi / 180)
  sine, cosine = tf.sin(angle), tf.cos(angle)
  y, x = ((side - 1) / 2 for side in images.shape[1:3])
  across = cosine, -sine, x - cosine * x + sine * y
  return _warp(images, across, (sine, cosine, y - sine * x - cosine * y))


def _shear_x(images, level, sign):
  """Shifts each row by 0.03 of its distance from the top, per level."""
  slope = 0.03 * sign * level
  return _warp(images, (1, slope, slope / 2), (0, 1, 0))


def _shear_y(images, level, sign):
  """Shifts each column by 0.03 of its distance from the left, per level."""
  slope = 0.03 * sign * level
  return _warp(images, (1, 0, 0), (slope, 1, slope / 2))


def _translate_x(images, level, sign):
  """Shifts by whole pixels, a thirtieth of the width per level."""
  shift = sign * tf.cast(_whole(level, images.shape[2] / 3), tf.float32)
  return _warp(images, (1, 0, shift), (0, 1, 0))


def _translate_y(images, level, sign):
  """Shifts by whole pixels, a thirtieth of the height per level."""
  shift = sign * tf.cast(_whole(level, images.shape[1] / 3), tf.float32)
  return _warp(images, (1, 0, 0), (0, 1, shift))


OPERATIONS = {
  operation.__name__.removeprefix("_"): operation
  for operation in (
    *(_autocontrast, _equalize, _posterize, _solarize, _rotate),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
  )
}


def _whole(level, most):
  """The whole part of `level` tenths of `most`, int32."""
  return tf.cast(level * most / 10, tf.int32)


def _column(values):
  """[n] as [n, 1, 1, 1], to broadcast over images."""
  return values[:, None, None, None]


def _warp(images, across, down):
  """Moves pixels by an affine map (bilinear, black outside).

  Args:
    images: uint8 [n, h, w, c].
    across: (a, b, c), numbers or float32 [n]: the pixel (x, y) comes from a x + b y + c.
    down: the same for y.
  """
  count = tf.shape(images)[:1]
  entries = [tf.broadcast_to(tf.cast(value, tf.float32), count) for value in (*across, *down, 0, 0)]
  return augment.warp(images, entries)


class AugMix(augment.Recipe):
  """Mixes an image with chains of operations on it, after another recipe.

  Args:
    severity: operations draw their level from U(0.1, severity); 0.1 to 10.
    width: the number of chains that are mixed.
    depth: the largest number of operations in a chain; each has 1 to `depth`.
    base: spec of the recipe whose images are mixed, `crop` in the paper, in quotes if it has
      options: `base="simclr(strength=0.5)"`; None for the images themselves.

  Raises:
    UserError: for an option out of its range.
  """

  on_device = False

  def __init__(self, severity=3, width=3, depth=3, base="crop"):
    errors.within("[0.1, 10]", "augmix", severity=severity)
    errors.whole(1, "augmix", width=width, depth=depth)
    self.severity, self.width, self.depth = severity, width, depth
    self.base = augment.from_spec(base or "none")
    # For each chain, its depth and three numbers per operation; then m, and the cuts for weights.
    self._chain = 1 + 3 * depth
    self.noise_size = self.base.noise_size + width * self._chain + width

  def __call__(self, images, noise, size=None):
    images = self.base(images, noise[:, : self.base.noise_size], size)
    noise = noise[:, self.base.noise_size :]
    cuts, share = tf.sort(noise[:, : self.width - 1], axis=1), noise[:, self.width - 1]
    chains = tf.reshape(noise[:, self.width :], [-1, self._chain])
    # The pieces of [0, 1] cut at uniform places are distributed as Dirichlet(1, ..., 1).
    weights = tf.pad(cuts, [[0, 0], [0, 1]], constant_values=1.0) - tf.pad(cuts, [[0, 0], [1, 0]])
    levels = tf.cast(tf.round(images * 255), tf.uint8)
    mixed = self._chains(tf.repeat(levels, self.width, 0), chains)
    mixed = tf.reshape(tf.cast(mixed, tf.float32), [-1, self.width, *images.shape[1:]])
    mixed = tf.einsum("nk,nkhwc->nhwc", weights / 255, mixed)
    mixed = images + _column(share) * (mixed - images)
    return tf.clip_by_value(tf.ensure_shape(mixed, images.shape), 0.0, 1.0)

  def _chains(self, images, noise):
    """Each image through its own chain: uint8 [m, h, w, c], float32 [m, 1 + 3 depth]."""
    shape, none = images.shape, len(OPERATIONS)
    depth = 1 + tf.cast(noise[:, 0] * self.depth, tf.int32)
    for step in range(self.depth):
      which, level, sign = tf.unstack(noise[:, 1 + 3 * step : 4 + 3 * step], axis=1)
      which = tf.where(step < depth, tf.cast(which * none, tf.int32), none)
      level = 0.1 + (self.severity - 0.1) * level
      sign = tf.where(sign < 0.5, 1.0, -1.0)
      parts = [
        tf.dynamic_partition(values, which, none + 1)
        for values in (tf.range(tf.shape(images)[0]), images, level, sign)
      ]
      places, unchanged = parts[0], parts[1][none]
      results = [
        operation(tf.ensure_shape(rows, [None, *shape[1:]]), *options)
        for operation, rows, *options in zip(OPERATIONS.values(), *parts[1:])
      ]
      images = tf.ensure_shape(tf.dynamic_stitch(places, [*results, unchanged]), shape)
    return images


augment.RECIPES["augmix"] = AugMix
