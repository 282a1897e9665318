"""The corruptions themselves: (images float32 [n, h, w, c], draws, *constants) -> images."""

import functools
import io
import math

import numpy as np
from PIL import Image

# Noise.


def gaussian_noise(images, draws, deviation):
  return images + np.float32(deviation) * draws.normal(images.shape[1:])


def shot_noise(images, draws, photons):
  return draws.poisson(images * np.float32(photons)) / np.float32(photons)


def impulse_noise(images, draws, amount):
  place = draws.uniform(images.shape[1:])
  noisy = np.where(place < amount / 2, np.float32(0), images)
  return np.where(place >= 1 - amount / 2, np.float32(1), noisy)


# Blur.


def separable(images, rows, columns):
  """Applies a matrix [h', h] to the columns of images, and a matrix [w', w] to their rows."""
  planes = rows @ (np.moveaxis(images, 3, 1) @ columns.T)
  return np.moveaxis(planes, 1, 3)


@functools.cache
def smoothing(size, sigma, truncate=4.0, mode="edge"):
  """The matrix [size, size] of a Gaussian blur in one dimension; `mode` as in `np.pad`."""
  radius = int(truncate * sigma + 0.5)
  if radius == 0:
    return np.eye(size, dtype=np.float32)
  weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  sources = np.pad(np.arange(size), radius, mode)
  matrix = np.zeros((size, size))
  for shift, weight in enumerate(weights / weights.sum()):
    matrix[np.arange(size), sources[shift : shift + size]] += weight
  return matrix.astype(np.float32)


def smooth(images, sigma, **options):
  height, width = images.shape[1:3]
  return separable(images, smoothing(height, sigma, **options), smoothing(width, sigma, **options))


@functools.cache
def disk(radius, sigma):
  """A disk with a radius in pixels and a smooth edge; float32 [k, k], k odd, with the sum 1."""
  reach = 1 if radius <= 8 else 2  # of the smoothing
  half = math.floor(radius) + reach
  squares = np.arange(-half, half + 1) ** 2
  disk = (squares[:, None] + squares <= radius**2).astype(np.float64)
  taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
  taps /= taps.sum()
  for axis in (0, 1):
    disk = np.apply_along_axis(np.convolve, axis, disk, taps, "same")
  return (disk / disk.sum()).astype(np.float32)


def defocus_blur(images, draws, radius, sigma):
  kernel = disk(radius, sigma)
  half = len(kernel) // 2
  height, width = images.shape[1:3]
  padded = np.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), "reflect")
  if np.count_nonzero(kernel) <= 32:  # fewer operations than a Fourier transform's
    result = np.zeros_like(images)
    for row, column in zip(*np.nonzero(kernel), strict=True):
      part = padded[:, row : row + height, column : column + width]
      result += kernel[row, column] * part
    return result
  # The product of spectra is a cyclic convolution: what wraps around falls on the padding.
  shape = padded.shape[1:3]
  spectrum = np.fft.rfft2(padded, axes=(1, 2)) * np.fft.rfft2(kernel, shape)[None, :, :, None]
  blurred = np.fft.irfft2(spectrum, shape, axes=(1, 2))
  return blurred[:, 2 * half :, 2 * half :]


def glass_blur(images, draws, sigma, reach, passes):
  count, height, width, channels = images.shape
  blurred = np.array(smooth(images, sigma), order="C")
  pixels = blurred.reshape(count, height * width, channels)
  rows = np.arange(height - reach, reach, -1)
  columns = np.arange(width - reach, reach, -1)
  targets = (rows[:, None] * width + columns).ravel()
  everyone = np.arange(count)
  for _ in range(passes):
    offsets = draws.integers([len(targets), 2], -reach, reach)
    sources = targets + offsets[..., 0] * width + offsets[..., 1]
    # A pixel takes the value of one nearby, which keeps its own: in the published code, NumPy's
    # views turn a swap into that.
    if reach == 1:  # above or to the left, which this order of pixels has not reached yet
      pixels[:, targets] = np.take_along_axis(pixels, sources[..., None], 1)
    else:
      for target, source in zip(targets, sources.T, strict=True):
        pixels[:, target] = pixels[everyone, source]
  return smooth(blurred, sigma)


def streak(images, radius, sigma, angles):
  """Blurs each image along a ray: half a Gaussian, in whole pixels, as ImageMagick does it."""
  count = 2 * radius + 1
  weights = np.exp(-0.5 * (np.arange(count) / sigma) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  height, width = images.shape[1:3]
  padding = ((0, 0), (count, count), (count, count), (0, 0))
  padded = np.pad(images, padding, "edge")
  result = np.zeros_like(images)
  for picture, target, angle in zip(padded, result, np.deg2rad(angles), strict=True):
    downs = count + np.ceil(np.arange(count) * np.sin(angle) - 0.5).astype(int)
    rights = count + np.ceil(np.arange(count) * np.cos(angle) - 0.5).astype(int)
    for weight, down, right in zip(weights, downs, rights, strict=True):
      if weight < 1e-7:
        break
      target += weight * picture[down : down + height, right : right + width]
  return result


def motion_blur(images, draws, radius, sigma):
  return streak(images, radius, sigma, draws.uniform([], -45, 45))


@functools.cache
def zooming(size, factor):
  """The matrix [size, size] that enlarges the middle of a line, linearly interpolated."""
  cut = math.ceil(size / factor)
  large = round(cut * factor)
  places = np.arange(size) + (large - size) // 2
  places = (size - cut) // 2 + places * (cut - 1) / max(large - 1, 1)
  low = np.minimum(np.floor(places).astype(int), size - 2)
  matrix = np.zeros((size, size), np.float32)
  matrix[np.arange(size), low] = 1 - (places - low)
  matrix[np.arange(size), low + 1] = places - low
  return matrix


def zoom_blur(images, draws, stop, step):
  factors = np.arange(1, stop, step)
  height, width = images.shape[1:3]
  planes = np.ascontiguousarray(np.moveaxis(images, 3, 1))
  total = planes.copy()
  for factor in factors:
    total += zooming(height, float(factor)) @ (planes @ zooming(width, float(factor)).T)
  return np.moveaxis(total / np.float32(len(factors) + 1), 1, 3)


# Weather.


def grey(images):
  if images.shape[-1] == 1:
    return images
  return images @ np.array([[0.299], [0.587], [0.114]], np.float32)


def snow(images, draws, *constants):
  mean, deviation, zoom, threshold, radius, sigma, share = constants
  height, width = images.shape[1:3]
  layer = mean + deviation * draws.normal([height, width, 1])
  layer = separable(layer, zooming(height, zoom), zooming(width, zoom))
  layer = np.clip(np.where(layer < threshold, np.float32(0), layer), 0, 1)
  layer = streak(layer, radius, sigma, draws.uniform([], -135, -45))
  white = np.maximum(images, 1.5 * grey(images) + 0.5)
  return share * images + (1 - share) * white + layer + layer[:, ::-1, ::-1]


@functools.cache
def crystals(side):
  """Five textures of ice crystals for images of a size, float32 [5, 3 side, 3 side, 3].

  Needles are the ridges of noise that is stretched along three directions, 60 degrees apart.  Noise
  of a larger scale sets their thickness.
  """
  size = 3 * side
  across = np.fft.fftfreq(size)[:, None] * side  # in cycles per image
  along = np.fft.rfftfreq(size)[None] * side
  textures = []
  for number in range(5):
    generator = np.random.RandomState(number)

    def noise(weight):
      field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((size, size))) * weight)  # noqa: B023
      return field / field.std()

    turn = generator.uniform(0, np.pi)
    needles = np.zeros((size, size))
    for angle in turn + np.arange(3) * np.pi / 3:
      u = across * np.cos(angle) + along * np.sin(angle)
      v = along * np.cos(angle) - across * np.sin(angle)
      weight = np.exp(-0.5 * ((u / 5) ** 2 + (v / 0.8) ** 2))
      needles = np.maximum(needles, 1 - np.minimum(np.abs(noise(weight)), 1))
    thickness = 1 / (1 + np.exp(-1.5 * noise(np.exp(-0.5 * (across**2 + along**2)))))
    textures.append(0.25 + 0.75 * thickness * (0.4 + 0.6 * needles**2))
  return (np.stack(textures)[..., None] * [0.88, 0.95, 1.0]).astype(np.float32)


def frost(images, draws, share, ice):
  height, width, channels = images.shape[1:]
  textures = crystals(max(height, width))
  which = draws.integers([], 0, len(textures))
  room = np.array(textures.shape[1:3]) - [height, width]
  corners = (draws.uniform([2]) * room).astype(int)
  crops = np.stack(
    [
      textures[number, top : top + height, left : left + width]
      for number, (top, left) in zip(which, corners, strict=True)
    ]
  )
  return share * images + ice * (grey(crops) if channels == 1 else crops)


def plasma(draws, size, decay):
  """Fractal noise in [0, 1] by the diamond-square algorithm on a torus; float32 [n, size, size].

  Args:
    draws: of n images.
    size: a power of two.
    decay: its square divides the height of the noise at each halving of the scale.
  """
  noise = draws.uniform([size * size], -1, 1).astype(np.float64)
  field = np.zeros((len(noise), size, size))
  step, height, used = size, 100.0, 0

  def middle(total):
    nonlocal used
    count = total[0].size
    drawn = noise[:, used : used + count].reshape(total.shape)
    used += count
    return total / 4 + height**2 * drawn

  while step >= 2:
    half = step // 2
    corners = field[:, ::step, ::step]
    pairs = corners + np.roll(corners, -1, 1)
    field[:, half::step, half::step] = middle(pairs + np.roll(pairs, -1, 2))
    centres, corners = field[:, half::step, half::step], field[:, ::step, ::step]
    field[:, ::step, half::step] = middle(
      centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 2)
    )
    field[:, half::step, ::step] = middle(
      centres + np.roll(centres, 1, 2) + corners + np.roll(corners, -1, 1)
    )
    step, height = half, height / decay
  field -= field.min((1, 2), keepdims=True)
  return (field / field.max((1, 2), keepdims=True)).astype(np.float32)


def fog(images, draws, thickness, decay):
  height, width = images.shape[1:3]
  size = 2 ** math.ceil(math.log2(max(height, width)))
  veil = plasma(draws, size, decay)[:, :height, :width, None]
  brightest = images.max((1, 2, 3), keepdims=True)
  return (images + thickness * veil) * brightest / (brightest + thickness)


def brightness(images, draws, amount):
  # At a constant hue and saturation the channels keep their ratios; black turns grey.
  value = images.max(-1, keepdims=True)
  brighter = np.minimum(value + np.float32(amount), 1)
  return np.where(value > 0, images * (brighter / np.maximum(value, 1e-12)), brighter)


# Digital.


def contrast(images, draws, factor):
  means = images.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
  return (images - means) * np.float32(factor) + means


def sample(images, rows, columns):
  """Reads images at places between pixels, linearly interpolated.

  Args:
    images: float32 [n, h, w, c].
    rows: float [n, h', w'] within [0, h - 1].
    columns: float [n, h', w'] within [0, w - 1].

  Returns:
    float32 [n, h', w', c].
  """
  count, height, width, channels = images.shape
  flat = images.reshape(-1, channels)
  top = np.minimum(rows.astype(np.int64), height - 2)
  left = np.minimum(columns.astype(np.int64), width - 2)
  down = (rows - top).astype(np.float32)[..., None]
  right = (columns - left).astype(np.float32)[..., None]
  first = (np.arange(count)[:, None, None] * height + top) * width + left
  upper = flat[first] * (1 - right) + flat[first + 1] * right
  lower = flat[first + width] * (1 - right) + flat[first + width + 1] * right
  return upper * (1 - down) + lower * down


def mirror(places, size):
  """Folds places back at the first and the last pixel's centre."""
  places = np.mod(places, 2 * (size - 1))
  return np.minimum(places, 2 * (size - 1) - places)


def reflect(places, size):
  """Folds places back at the outer edges of the first and the last pixel."""
  places = np.mod(places + 0.5, 2 * size)
  return np.clip(np.minimum(places, 2 * size - places) - 0.5, 0, size - 1)


def elastic_transform(images, draws, waves, sigma, shift):
  height, width = images.shape[1:3]
  side = min(height, width)
  row, column = np.mgrid[:height, :width].astype(np.float64)
  # An affine map: three points around the centre, (x, y), are moved.
  x, y = width // 2, height // 2
  arm = side // 3
  before = np.array([[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]], np.float64)
  after = before + shift * side * draws.uniform([3, 2], -1, 1)
  ones = np.ones((len(images), 3, 1))
  # The map from a pixel of the result to its source: after -> before.
  solved = np.linalg.solve(np.concatenate([after, ones], 2), np.broadcast_to(before, after.shape))
  grid = np.stack([column, row, np.ones_like(row)], -1)
  places = np.einsum("hwi,nij->nhwj", grid, solved)
  moved = sample(images, mirror(places[..., 1], height), mirror(places[..., 0], width))
  if not waves:
    return moved
  fields = draws.uniform([height, width, 2], -1, 1)
  fields = waves * side * smooth(fields, sigma * side, truncate=3.0, mode="symmetric")
  return sample(
    moved, reflect(row + fields[..., 1], height), reflect(column + fields[..., 0], width)
  )


@functools.cache
def boxes(size, result):
  """The matrix [result, size] of a resize: each pixel is the mean of the pixels that it covers.

  Where it covers a half of one, rounding decides: these are Pillow's operations in their order.
  """
  scale = size / result
  width = max(scale, 1)
  pixels, centres = np.arange(size), (np.arange(result)[:, None] + 0.5) * scale
  distance = (pixels - centres + 0.5) * (1 / width)
  first, end = np.floor(centres - width / 2 + 0.5), np.floor(centres + width / 2 + 0.5)
  covered = (pixels >= first) & (pixels < end) & (distance > -0.5) & (distance <= 0.5)
  matrix = covered.astype(np.float32)
  return matrix / matrix.sum(1, keepdims=True)


def pixelate(images, draws, share):
  rows, columns = (
    boxes(int(size * share), size) @ boxes(size, int(size * share)) for size in images.shape[1:3]
  )
  return separable(images, rows, columns)


def jpeg_compression(images, draws, quality):
  pixels = np.rint(images * 255).astype(np.uint8)
  pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
  result = []
  for picture in pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    result.append(np.asarray(Image.open(file)))
  return np.stack(result).reshape(images.shape) / np.float32(255)
