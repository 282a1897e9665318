"""The 15 standard corruptions of Hendrycks and Dietterich (2019), at five severities.

They follow the paper, with the constants of its published data sets.  These are in pixels, so they
depend on the image size: CIFAR-10-C (32 pixels), Tiny-ImageNet-C (64) and ImageNet-C (224).  The
set whose size is nearest, by ratio, to an image's shorter side is used.

There are two differences from the published data:
- frost is made of procedural ice crystals instead of photographs, so its figures cannot be compared
  with published ones;
- results stay float32; only JPEG rounds to 8 bits.

An image's noise is a function of (seed, corruption, severity, position in the split), from a
generator whose stream is frozen.  It does not depend on the batch size or the release of NumPy.
"""

import math
import zlib

import numpy as np

from urkle_tf import errors
from urkle_tf.evaluation.corruptions import _functions
from urkle_tf.evaluation.corruptions._constants import CONSTANTS, SIZES

SEVERITIES = (1, 2, 3, 4, 5)

_CHUNK = 2**23  # numbers that are corrupted together: 32 MiB

NAMES = tuple(CONSTANTS)


def constants(image_shape):
  """The published data set whose constants are used for images of a size.

  Args:
    image_shape: (height, width, channels).

  Returns:
    `"CIFAR-10-C"`, `"Tiny-ImageNet-C"` or `"ImageNet-C"`.
  """
  side = min(image_shape[:2])
  return min(SIZES, key=lambda name: abs(math.log(SIZES[name] / side)))


def check(image_shape):
  """Raises `UserError` if images of a shape cannot be corrupted.

  Args:
    image_shape: (height, width, channels).
  """
  height, width, channels = image_shape
  if channels not in (1, 3) or min(height, width) < 6:
    raise errors.UserError(
      f"corruptions need grey or RGB images of at least 6x6 pixels, got {height}x{width}x{channels}"
    )


def corrupt(images, name, severity, positions, seed=0):
  """Corrupts images.

  Args:
    images: float32 [n, h, w, c] in [0, 1], c 1 or 3.
    name: one of `NAMES`.
    severity: 1 to 5.
    positions: int [n], the images' positions in their split, which decide their noise.
    seed: an int.

  Returns:
    float32 [n, h, w, c] in [0, 1].

  Raises:
    UserError: for an unknown name or severity, or images of a shape that cannot be corrupted.
  """
  errors.one_of("corruption", name, NAMES)
  if severity not in SEVERITIES:
    raise errors.UserError(f"severity must be a whole number from 1 to 5, got {severity}")
  check(images.shape[1:])
  chosen = CONSTANTS[name][constants(images.shape[1:])][severity - 1]
  chosen = chosen if isinstance(chosen, tuple) else (chosen,)
  stream = (zlib.crc32(name.encode()), severity)
  chunk = max(_CHUNK // images[0].size, 1)
  parts = []
  for start in range(0, len(images), chunk):
    rows = slice(start, start + chunk)
    draws = _Draws(seed, stream, positions[rows])
    found = getattr(_functions, name)(images[rows].astype(np.float32), draws, *chosen)
    parts.append(np.clip(found, 0, 1, dtype=np.float32, order="C"))
  return np.concatenate(parts)


class _Draws:
  """Random numbers, float32 [n, *shape], from a separate stream for each image."""

  def __init__(self, seed, stream, positions):
    word = 2**32 - 1
    self._key = (seed & word, seed >> 32 & word, *stream)
    self._positions, self._calls = positions, 0
    # NumPy froze the stream of `RandomState`; that of newer generators may change.
    self._generator = np.random.RandomState(0)

  def _stack(self, draw, *arguments):
    self._calls += 1
    drawn = []
    for place, *values in zip(self._positions, *arguments, strict=True):
      self._generator.seed([*self._key, self._calls, int(place)])
      drawn.append(draw(self._generator, *values))
    return np.stack(drawn)

  def normal(self, shape):
    return self._stack(lambda generator: generator.standard_normal(shape).astype(np.float32))

  def uniform(self, shape, low=0.0, high=1.0):
    return self._stack(lambda generator: generator.uniform(low, high, shape)).astype(np.float32)

  def integers(self, shape, low, high):
    return self._stack(lambda generator: generator.randint(low, high, shape))

  def poisson(self, means):
    return self._stack(lambda generator, mean: generator.poisson(mean), means).astype(np.float32)
