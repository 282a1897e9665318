"""Corruptions against closed forms, plain loops, SciPy and Pillow."""

import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from PIL import Image
from scipy import ndimage
from small_models import digits

from urkle_tf.evaluation import corruptions
from urkle_tf.evaluation.corruptions import _constants, _functions


def smooth_images(rng, n=6, side=32, channels=3):
  """Blurred noise that fills [0, 1]: has edges and flat parts, as photographs have."""
  images = ndimage.gaussian_filter(rng.normal(size=(n, side, side, channels)), (0, 2, 2, 0))
  images -= images.min((1, 2, 3), keepdims=True)
  return (images / images.max((1, 2, 3), keepdims=True)).astype(np.float32)


def corrupt(images, name, severity, seed=0):
  return corruptions.corrupt(images, name, severity, np.arange(len(images)), seed)


def grey(level, n=4, side=32, channels=1):
  return np.full((n, side, side, channels), level, np.float32)


class Given:
  """Stands in for random draws."""

  def __init__(self, *values):
    self._values, self.asked = list(values), []

  def _next(self, *given):
    self.asked.append(given)
    return self._values.pop(0)

  uniform = normal = integers = _next


def draws(n, seed=0):
  return corruptions._Draws(seed, (1, 2), np.arange(n))


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_every_corruption_of_every_kind_of_image(rng, name):
  small, _ = digits()
  for images in (
    smooth_images(rng, 5),
    smooth_images(rng, 5, 28, 1),
    small[:5],  # 8x8
    rng.uniform(size=(5, 11, 20, 3)).astype(np.float32),
  ):
    for severity in (1, 5):
      before = images.copy()
      found = corrupt(images, name, severity)
      assert found.dtype == np.float32
      assert found.shape == images.shape
      assert 0 <= found.min() <= found.max() <= 1
      # 1.06 times 8 pixels are 8 pixels.
      same = (name, severity, images.shape[1]) == ("zoom_blur", 1, 8)
      assert np.allclose(found, images, atol=1e-3) == same
      np.testing.assert_array_equal(images, before)
      # Neither the batch nor the call is in the result, only the position.
      again = corruptions.corrupt(images[[3, 1]], name, severity, np.array([3, 1]), 0)
      np.testing.assert_allclose(again, found[[3, 1]], atol=1e-6)


def test_chunks_do_not_show(rng, monkeypatch):
  images = smooth_images(rng, 5, 12)
  whole = corrupt(images, "fog", 3)
  monkeypatch.setattr(corruptions, "_CHUNK", 2 * 12 * 12 * 3)
  np.testing.assert_array_equal(corrupt(images, "fog", 3), whole)


def test_noise_differs_between_seeds_severities_and_positions():
  images = grey(0.5, n=2, side=8)
  found = [corrupt(images, "gaussian_noise", s, seed)[i] for s, seed, i in [(4, 0, 0), (4, 0, 1)]]
  found += [corrupt(images, "gaussian_noise", 4, 1)[0], corrupt(images, "gaussian_noise", 4, -1)[0]]
  found += [corrupt(images, "gaussian_noise", 4, 2**32)[0]]
  found += [0.5 + (corrupt(images, "gaussian_noise", 5)[0] - 0.5) * 0.9]
  for i, one in enumerate(found):
    assert all(np.abs(one - other).max() > 0.05 for other in found[:i])


def test_noise_is_that_of_every_release():
  # Figures of one release must be comparable with those of the next.
  images = grey(0.5, n=1, side=32)
  found = corruptions.corrupt(images, "gaussian_noise", 5, np.array([7]), 3)
  np.testing.assert_allclose(found[0, 0, :3, 0], [0.537104, 0.411171, 0.565593], atol=1e-6)


def test_severities_get_worse(rng):
  # Not all of the published ones do, by the distance from the image.
  allowed = {("glass_blur", 3), ("glass_blur", 5)}  # sharper at 4 than at 3
  allowed.add(("motion_blur", 4))  # as 3, but for the radius, which sigma makes idle
  allowed |= {("frost", 4), ("frost", 5)}  # the image's own weight falls
  allowed |= {("elastic_transform", severity) for severity in (2, 3, 4, 5)}  # waves, not shifts
  images = smooth_images(rng, 40)
  for name in corruptions.NAMES:
    far = [np.sqrt(np.mean((corrupt(images, name, s) - images) ** 2)) for s in range(1, 6)]
    for severity in range(2, 6):
      worse = far[severity - 1] > far[severity - 2] * 0.99
      assert worse or (name, severity) in allowed, (name, far)
  large = 224 * np.array(_constants.CONSTANTS["elastic_transform"]["ImageNet-C"])
  np.testing.assert_allclose(large[:2], [[488, 170.8, 24.4], [488, 19.52, 48.8]])  # in pixels
  waves = [1, 2, 3, 4]  # of elastic_transform: how strongly neighbours move apart
  shares = _constants.CONSTANTS["elastic_transform"]["CIFAR-10-C"]
  steep = [shares[s][0] / shares[s][1] for s in waves]
  assert steep == sorted(steep)


@pytest.mark.parametrize(
  "side, name",
  [
    *((side, "CIFAR-10-C") for side in (8, 28, 32, 45)),
    *((side, "Tiny-ImageNet-C") for side in (46, 64, 96)),
    *((side, "ImageNet-C") for side in (128, 224, 299)),
  ],
)
def test_constants_go_with_the_size(side, name):
  assert corruptions.constants((side, 2 * side, 3)) == name


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"name": "fogg"}, "unknown corruption 'fogg'; did you mean 'fog'"),
    ({"severity": 6}, "severity must be a whole number from 1 to 5, got 6"),
    ({"severity": 0}, "severity must be a whole number from 1 to 5"),
    ({"images": np.zeros((1, 32, 32, 4), np.float32)}, "grey or RGB"),
    ({"images": np.zeros((1, 4, 32, 3), np.float32)}, "at least 6x6 pixels, got 4x32x3"),
  ],
)
def test_mistakes_are_one_line(changes, message):
  arguments = {"images": grey(0.5, 1), "name": "fog", "severity": 1, "positions": [0]}
  refuses(message, corruptions.corrupt, **arguments | changes)


# Noise.


def test_gaussian_noise_has_its_deviation():
  images = grey(0.5, n=20)
  noise = corrupt(images, "gaussian_noise", 3) - images
  assert noise.std() == pytest.approx(0.08, rel=0.02)  # 20,480 draws: 0.5% is one deviation
  assert abs(noise.mean()) < 0.0025


def test_shot_noise_counts_photons():
  images = grey(0.3, n=20)
  counts = corrupt(images, "shot_noise", 3) * 100
  np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
  assert counts.mean() == pytest.approx(30, rel=0.01)
  assert counts.var() == pytest.approx(30, rel=0.05)


def test_impulse_noise_turns_its_share_black_or_white():
  images = grey(0.4, n=20, channels=3)
  found = corrupt(images, "impulse_noise", 5)
  assert np.mean(found == 0) == pytest.approx(0.035, rel=0.1)
  assert np.mean(found == 1) == pytest.approx(0.035, rel=0.1)
  assert np.mean(found == images) == pytest.approx(0.93, rel=0.01)


# Blur.


@pytest.mark.parametrize("radius, sigma", [(0.3, 0.4), (1.5, 0.1), (4, 0.5), (10, 0.5)])
def test_defocus_blur_is_scipys_correlation(rng, radius, sigma):
  # Small kernels are summed, large ones go through a Fourier transform.
  images = rng.uniform(size=(2, 27, 31, 3)).astype(np.float32)
  kernel = _functions.disk(radius, sigma)
  assert kernel.sum() == pytest.approx(1, abs=1e-6)
  np.testing.assert_allclose(kernel, kernel.T, atol=1e-7)
  np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
  found = _functions.defocus_blur(images, None, radius, sigma)
  wanted = ndimage.correlate(images, kernel[None, :, :, None], mode="mirror")
  np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_the_disk_is_a_disk():
  kernel = _functions.disk(4, 0.1) * np.pi * 16  # that sigma smooths nothing
  assert kernel.shape == (11, 11)
  inside = np.hypot(*np.mgrid[-5:6, -5:6]) <= 4
  assert np.ptp(kernel[inside]) < 1e-5
  assert kernel[~inside].max() < 1e-5
  assert [len(_functions.disk(radius, 0.5)) for radius in (8, 10)] == [19, 25]
  assert kernel[5, 5] == pytest.approx(1, abs=0.05)  # 49 pixels, and the area is 50.3


def test_motion_blur_is_half_a_gaussian_along_a_line(rng):
  images = rng.uniform(size=(3, 20, 20, 3)).astype(np.float32)
  found = _functions.streak(images, 2, 1.0, [0, 90, 45])
  weights = np.exp(-(np.arange(5) ** 2) / 2)
  weights /= weights.sum()
  lines = {0: (0, 1), 1: (1, 0), 2: (2**-0.5, 2**-0.5)}
  for number, (down, right) in lines.items():
    for y, x in [(3, 4), (10, 10), (18, 19)]:
      wanted = 0
      for i, weight in enumerate(weights):
        row, column = min(y + round(i * down), 19), min(x + round(i * right), 19)
        wanted += weight * images[number, row, column]
      np.testing.assert_allclose(found[number, y, x], wanted, atol=1e-6)


def test_motion_goes_to_the_right_within_45_degrees(rng):
  images = rng.uniform(size=(9, 12, 12, 1)).astype(np.float32)
  found = _functions.motion_blur(images, draws(9), 3, 2)
  wanted = _functions.streak(images, 3, 2, draws(9).uniform([], -45, 45))
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  "sigma, reach, passes", [(0.05, 1, 1), (0.05, 1, 2), (0.05, 3, 2), (1, 1, 1)]
)
def test_glass_blur_is_the_published_loop(rng, sigma, reach, passes):
  """Blurred before and after it; a sigma of 0.05 blurs nothing."""
  blur = lambda x: ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4)  # noqa: E731
  images = rng.uniform(size=(2, 9, 10, 3)).astype(np.float32)
  found = _functions.glass_blur(images, draws(2), sigma, reach, passes)
  same = draws(2)
  wanted = blur(images)
  rows, columns = (range(length - reach, reach, -1) for length in (9, 10))
  targets = list(itertools.product(rows, columns))
  for _ in range(passes):
    offsets = same.integers([len(targets), 2], -reach, reach)
    for x, moves in zip(wanted, offsets, strict=True):
      for (h, w), (dy, dx) in zip(targets, moves, strict=True):
        x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
  np.testing.assert_allclose(found, blur(wanted), atol=1e-6)
  assert np.mean(found != images) > 0.1


def test_gaussian_smoothing_is_scipys(rng):
  images = rng.uniform(size=(2, 12, 15, 2)).astype(np.float32)
  found = _functions.smooth(images, 1.3)
  wanted = ndimage.gaussian_filter(images, (0, 1.3, 1.3, 0), mode="nearest", truncate=4)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  found = _functions.smooth(images, 7.0, truncate=3.0, mode="symmetric")
  wanted = ndimage.gaussian_filter(images, (0, 7, 7, 0), mode="reflect", truncate=3)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def zoomed(image, factor):
  """The middle of an image of 32 x 32, enlarged by SciPy."""
  cut = int(np.ceil(32 / factor))
  top = (32 - cut) // 2
  middle = image[top : top + cut, top : top + cut]
  large = ndimage.zoom(middle, (factor, factor, 1), order=1)
  start = (large.shape[0] - 32) // 2
  return large[start : start + 32, start : start + 32]


def test_zoom_blur_is_a_mean_of_scipys_zooms(rng):
  images = rng.uniform(size=(2, 32, 32, 3)).astype(np.float32)
  factors = np.arange(1, 1.16, 0.01)  # severity 3
  wanted = [np.mean([x, *(zoomed(x, f) for f in factors)], axis=0) for x in images]
  np.testing.assert_allclose(corrupt(images, "zoom_blur", 3), wanted, atol=1e-5)


# Weather.


def test_snow_only_whitens(rng):
  images = smooth_images(rng)
  for severity in (1, 5):
    found = corrupt(images, "snow", severity)
    assert np.all(found >= images - 1e-6)
  # White where it is thickest, in the whole height of the image, and turned by half a turn.
  black = corrupt(grey(0.0), "snow", 5)[..., 0]
  flakes = black - black.min()
  np.testing.assert_allclose(flakes, flakes[:, ::-1, ::-1], atol=1e-6)
  # What is not flake is 0.8 black and 0.2 of max(x, 1.5 x + 0.5).
  assert corrupt(grey(0.0), "snow", 1).min() == pytest.approx(0.05 * 0.5, abs=1e-6)


def test_snow_is_the_published_sum(rng):
  """Flakes from enlarged noise above a threshold, moved downwards, and again turned around."""
  images, same = rng.uniform(0, 0.5, size=(2, 32, 32, 3)).astype(np.float32), draws(2)
  layer = 0.25 + 0.3 * same.normal([32, 32, 1])
  layer = np.stack([zoomed(one, 2.25) for one in layer])
  layer[layer < 0.6] = 0
  angles = same.uniform([], -135, -45)
  layer = _functions.streak(np.clip(layer, 0, 1), 12, 6, angles)
  grey = images @ np.float32([0.299, 0.587, 0.114])
  white = np.maximum(images, 1.5 * grey[..., None] + 0.5)
  wanted = 0.85 * images + 0.15 * white + layer + np.rot90(layer, 2, (1, 2))
  found = _functions.snow(images, draws(2), 0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_frost_is_a_weighted_sum_with_ice(rng):
  one, other = grey(0.1, 8, channels=3), grey(0.2, 8, channels=3)
  light, dark = corrupt(other, "frost", 5), corrupt(one, "frost", 5)
  np.testing.assert_allclose(light - dark, 0.075, atol=1e-5)
  ice = (dark - 0.075) / 0.45
  assert -1e-5 < ice.min() <= ice.max() < 1 + 1e-5
  # Bluish crystals: contrasts within each image, and every image has some of its own.
  assert np.all(ice[..., 2] > ice[..., 0])
  assert np.all(ice.std((1, 2)) > 0.03)
  assert all(np.abs(ice[0] - others).mean() > 0.02 for others in ice[1:])


@pytest.mark.parametrize("channels", [1, 3])
def test_ice_is_a_random_part_of_one_of_five_textures(channels):
  textures, same = _functions.crystals(12), draws(20)
  assert textures.shape == (5, 36, 36, 3)
  assert all(np.abs(a - b).mean() > 0.02 for a, b in itertools.combinations(textures, 2))
  found = _functions.frost(np.zeros((20, 10, 12, channels)), draws(20), 1, 1)
  which = same.integers([], 0, 5)
  places = (same.uniform([2]) * [26, 24]).astype(int)
  for image, number, (top, left) in zip(found, which, places, strict=True):
    wanted = textures[number, top : top + 10, left : left + 12]
    wanted = wanted if channels == 3 else wanted @ np.float32([[0.299], [0.587], [0.114]])
    np.testing.assert_allclose(image, wanted, atol=1e-6)


def test_fog_is_the_closed_form(rng):
  images = smooth_images(rng, 3, 32) * 0.8
  fog = _functions.fog(images, draws(3), 1.5, 1.75)
  veil = _functions.plasma(draws(3), 32, 1.75)[..., None]
  assert veil.min((1, 2, 3)) == pytest.approx(0, abs=1e-5)
  assert veil.max((1, 2, 3)) == pytest.approx(1, abs=1e-5)
  wanted = (images + 1.5 * veil) * 0.8 / 2.3
  np.testing.assert_allclose(fog, wanted, atol=1e-5)


def test_plasma_is_diamonds_and_squares_in_loops():
  size, decay = 8, 1.75
  numbers = draws(1).uniform([size * size], -1, 1)[0].astype(np.float64)
  numbers = iter(numbers)
  field = np.zeros((size, size))
  step, height = size, 100.0
  while step >= 2:
    half = step // 2
    around = lambda y, x, moves, half=half: sum(  # noqa: E731
      field[(y + dy * half) % size, (x + dx * half) % size] for dy, dx in moves
    )
    corners, cross = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
    for moves, top, left in [(corners, half, half), (cross, 0, half), (cross, half, 0)]:
      for y in range(top, size, step):
        for x in range(left, size, step):
          field[y, x] = around(y, x, moves) / 4 + height**2 * next(numbers)
    step, height = half, height / decay
  field = (field - field.min()) / (field.max() - field.min())
  found = _functions.plasma(draws(1), size, decay)[0]
  np.testing.assert_allclose(found, field, atol=1e-6)
  assert len(list(numbers)) == 1  # of 64 all but the corner's


def test_brightness_is_the_standard_librarys_hsv(rng):
  images = rng.uniform(size=(1, 8, 8, 3)).astype(np.float32)
  images[0, 0, 0] = 0
  found = corrupt(images, "brightness", 5)[0]
  for y, x in np.ndindex(8, 8):
    h, s, v = colorsys.rgb_to_hsv(*images[0, y, x])
    np.testing.assert_allclose(found[y, x], colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1)), atol=1e-5)
  np.testing.assert_allclose(corrupt(grey(0.4), "brightness", 2), 0.5, atol=1e-6)
  np.testing.assert_allclose(corrupt(grey(0.9), "brightness", 5), 1, atol=1e-6)
  np.testing.assert_allclose(corrupt(grey(0.0), "brightness", 1), 0.05, atol=1e-6)


# Digital.


def test_contrast_by_hand():
  images = grey(0.2, 1, side=8, channels=3)
  images[0, :4, :, 0] = 0.6  # its mean: 0.4
  found = corrupt(images, "contrast", 2)
  np.testing.assert_allclose(found[0, 0, 0], [0.5, 0.2, 0.2], atol=1e-6)
  np.testing.assert_allclose(found[0, 7, 7], [0.3, 0.2, 0.2], atol=1e-6)


def test_sampling_between_pixels_is_scipys(rng):
  images = rng.uniform(size=(2, 9, 12, 3)).astype(np.float32)
  rows, columns = rng.uniform(-20, 30, size=(2, 2, 5, 7))
  for fold, mode in ((_functions.mirror, "mirror"), (_functions.reflect, "reflect")):
    found = _functions.sample(images, fold(rows, 9), fold(columns, 12))
    for number in range(2):
      for channel in range(3):
        image, points = images[number, ..., channel], [rows[number], columns[number]]
        wanted = ndimage.map_coordinates(image, points, order=1, mode=mode)
        np.testing.assert_allclose(found[number, ..., channel], wanted, atol=1e-5)


def test_elastic_transform_moves_by_its_points_and_waves(rng):
  images = rng.uniform(size=(1, 32, 32, 1)).astype(np.float32)
  # All three points go 2 pixels to the right and 3 up: so does the image.
  shift = Given(np.tile([2 / 3, -1.0], (1, 3, 1)))
  found = _functions.elastic_transform(images, shift, 0, 0, 3 / 32)
  np.testing.assert_allclose(found[:, :-3, 2:], images[:, 3:, :-2], atol=1e-5)
  assert shift.asked == [([3, 2], -1, 1)]
  # Points a third of the side from the centre, each moved by itself.
  moves = np.array([[0.5, -1.0], [-0.2, 0.3], [1.0, 0.1]])
  found = _functions.elastic_transform(images, Given(moves[None]), 0, 0, 3 / 32)
  before = np.array([[26, 26], [26, 6], [6, 6]])  # (x, y)
  after = np.column_stack([before + 3 * moves, np.ones(3)])
  (a, b, e), (c, d, f) = np.linalg.inv(after) @ before[:, 1], np.linalg.inv(after) @ before[:, 0]
  turn, offset = [[b, a], [d, c]], [e, f]
  wanted = ndimage.affine_transform(images[0, ..., 0], turn, offset, order=1, mode="mirror")
  np.testing.assert_allclose(found[0, ..., 0], wanted, atol=1e-4)
  # Constant waves move it, too: those of every pixel smooth to themselves.
  waves = Given(np.zeros((1, 3, 2)), np.tile(np.float32([0.5, -1]), (1, 32, 32, 1)))
  found = _functions.elastic_transform(images, waves, 2 / 32, 0.05, 0.1)
  np.testing.assert_allclose(found[:, 2:, :-1], images[:, :-2, 1:], atol=1e-4)
  assert waves.asked == [([3, 2], -1, 1), ([32, 32, 2], -1, 1)]
  # A wave at one pixel, of 2 pixels to the right: a Gaussian with a sigma of 1.6 pixels.
  wave = np.zeros((1, 32, 32, 2))
  wave[0, 1, 12, 0] = 1
  found = _functions.elastic_transform(images, Given(np.zeros((1, 3, 2)), wave), 2, 0.05, 0.1)
  columns = np.arange(32) + 64 * ndimage.gaussian_filter(wave[0, ..., 0], 1.6, truncate=3)
  places = [np.broadcast_to(np.arange(32.0)[:, None], (32, 32)), columns]
  wanted = ndimage.map_coordinates(images[0, ..., 0], places, order=1, mode="reflect")
  np.testing.assert_allclose(found[0, ..., 0], wanted, atol=1e-4)
  # A flat image stays flat.
  np.testing.assert_allclose(corrupt(grey(0.3), "elastic_transform", 5), 0.3, atol=1e-5)


@pytest.mark.parametrize("height, width", [(32, 28), (45, 33)])
def test_pixelate_is_pillows_box(rng, height, width):
  images = rng.uniform(size=(1, height, width, 1)).astype(np.float32)
  for severity, share in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), 1):
    wanted = Image.fromarray(images[0, ..., 0])
    wanted = wanted.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    wanted = wanted.resize((width, height), Image.Resampling.BOX)
    found = corrupt(images, "pixelate", severity)[0, ..., 0]
    np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_tensorflows(rng, channels):
  images = np.rint(smooth_images(rng, 2, 32, channels) * 255).astype(np.uint8)
  found = corrupt((images - np.float32(0.4)) / 255, "jpeg_compression", 5)  # which is rounded
  for image, result in zip(images, found, strict=True):
    file = tf.io.encode_jpeg(image, quality=40)
    wanted = tf.io.decode_jpeg(file, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_allclose(result * 255, wanted, atol=1.01)
    assert abs(np.mean(result * 255 - wanted)) < 0.2
