"""Augmentations against slow NumPy loops, other libraries, and their distributions."""

import colorsys
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from scipy import ndimage, stats

from urkle_tf.data import augment

ALL = ["simclr", "crop", "affine", "none", "augmix", "randaugment"]
ON_HOST = ["augmix", "randaugment"]


def images_of(rng, n, height=8, width=8, channels=3):
  return rng.uniform(size=(n, height, width, channels)).astype(np.float32)


def noise_of(rng, n, recipe):
  return rng.uniform(size=(n, recipe.noise_size)).astype(np.float32)


@functools.cache  # keras-cv takes seconds to trace
def traced(spec, channels=3, size=None):
  """A recipe as a graph of any number of images of 8x10."""
  recipe = augment.from_spec(spec)
  shapes = tf.TensorSpec([None, 8, 10, channels]), tf.TensorSpec([None, recipe.noise_size])
  return tf.function(lambda images, noise: recipe(images, noise, size), input_signature=shapes)


def triangle(signal, new):
  """Resizes a vector: a triangular kernel, as wide as the pixels of the coarser side."""
  old = len(signal)
  step = old / new
  width = max(step, 1.0)
  result = []
  for i in range(new):
    centre = (i + 0.5) * step - 0.5
    weights = [max(0.0, 1 - abs(j - centre) / width) for j in range(old)]
    result.append(sum(w * s for w, s in zip(weights, signal, strict=True)) / sum(weights))
  return result


# Crop and resize.


@pytest.mark.parametrize(
  "shape, size", [((9, 7, 3), (5, 6)), ((4, 6, 1), (8, 8)), ((32, 32, 3), (32, 32))]
)
def test_crop_and_resize(rng, shape, size):
  height, width, channels = shape
  n = 6
  images = images_of(rng, n, *shape)
  heights, widths = rng.integers(1, height + 1, n), rng.integers(1, width + 1, n)
  tops = [int(rng.integers(0, height - h + 1)) for h in heights]
  lefts = [int(rng.integers(0, width - w + 1)) for w in widths]
  flip = np.arange(n) % 2 == 1
  box = [tf.constant(v, tf.float32) for v in (tops, lefts, heights, widths)]
  ours = augment.crop_and_resize(images, box, size, flip).numpy()
  assert ours.shape == (n, *size, channels)
  for i in range(n):
    cut = images[i, tops[i] : tops[i] + heights[i], lefts[i] : lefts[i] + widths[i]]
    theirs = tf.image.resize(cut, size, antialias=True).numpy()
    rows = np.stack([triangle(cut[:, x, 0], size[0]) for x in range(widths[i])], axis=1)
    loop = np.stack([triangle(row, size[1]) for row in rows])
    np.testing.assert_allclose(theirs[..., 0], loop, atol=1e-5)  # two opinions
    np.testing.assert_allclose(ours[i], theirs[:, ::-1] if flip[i] else theirs, atol=1e-5)


# Colours: see also `test_jitter_against_numpy`.


def test_the_contrast_of_grey_images_is_that_of_tensorflow(rng):
  images, contrast = images_of(rng, 3, channels=1), np.float32([1.0, 0.6, 1.4])
  ours = augment.adjust(tf.constant(images), tf.constant(contrast), tf.eye(1)[None])
  theirs = tf.stack([tf.image.adjust_contrast(*pair) for pair in zip(images, contrast)])
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_hue_turns_the_chroma_and_keeps_luma():
  turn = np.float32([0.0, 0.1, -0.1, 0.25, 1.0])
  matrices = augment.hue_matrix(tf.constant(turn)).numpy()
  np.testing.assert_allclose(matrices[[0, 4]], np.stack([np.eye(3)] * 2), atol=1e-5)
  np.testing.assert_allclose(matrices[1] @ matrices[2], np.eye(3), atol=1e-5)
  np.testing.assert_allclose(matrices.sum(axis=2), 1, atol=1e-5)  # grey stays grey
  luma = np.float32([0.299, 0.587, 0.114])
  np.testing.assert_allclose(luma @ matrices, np.stack([luma] * 5), atol=1e-5)
  for color in ([0.6, 0.4, 0.4], [0.4, 0.5, 0.7], [0.5, 0.6, 0.4]):
    for angle, matrix in zip(turn[1:4], matrices[1:4]):
      # The axes of colorsys differ by a percent or two.
      _, i0, q0 = colorsys.rgb_to_yiq(*color)
      _, i1, q1 = colorsys.rgb_to_yiq(*(matrix @ color))
      change = (math.atan2(q1, i1) - math.atan2(q0, i0)) / (2 * math.pi)
      assert abs((change - angle + 0.5) % 1 - 0.5) < 0.02
      assert math.hypot(i1, q1) == pytest.approx(math.hypot(i0, q0), rel=0.06)


# SimCLR.


def test_boxes_have_the_distribution_of_the_definition(rng):
  recipe = augment.SimCLR()
  noise = rng.uniform(size=(4, 20_000)).astype(np.float32)
  side = 10_000  # so large that whole pixels are fine
  top, left, height, width = (v.numpy() for v in recipe._box(noise, (side, side), 1.0))
  assert min(top.min(), left.min()) >= 0
  assert max((top + height).max(), (left + width).max()) <= side
  whole = np.stack([top, left, height, width])
  np.testing.assert_array_equal(whole, np.rint(whole))
  area = height * width / side**2
  assert area.min() == pytest.approx(0.08, abs=1e-3)
  np.testing.assert_array_equal(recipe._box(noise, (side, side), 3.0), whole)  # at most all of it
  # Below 0.7 of the area no box is cut, so that area and log ratio are uniform.
  free = area < 0.7
  assert np.mean(free) == pytest.approx(0.62 / 0.92, abs=0.015)
  assert stats.kstest(area[free], stats.uniform(0.08, 0.62).cdf).pvalue > 1e-3
  ratio = np.log(width / height)[free]
  uniform = stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3))
  assert stats.kstest(ratio, uniform.cdf).pvalue > 1e-3
  places = [start[free] / (side - extent[free]) for start, extent in ((top, height), (left, width))]
  for place in places:
    assert stats.kstest(place, stats.uniform.cdf).pvalue > 1e-3
  assert np.abs(np.corrcoef([*places, area[free], ratio]) - np.eye(4)).max() < 0.03


def test_boxes_of_half_strength_by_hand():
  """Of 200x100: areas from 1 - 0.92 / 2, ratios from sqrt(1/2 * 3/4) to sqrt(1/2 * 4/3)."""
  noise = np.float32([[0, 0, 0, 1], [0, 0.5, 1, 0.5], [0.1] * 4, [0.88] * 4])
  box = augment.SimCLR(strength=0.5)._box(noise, (200, 100), 0.5)
  np.testing.assert_array_equal(box[2], [133, 124, 115, 168])
  np.testing.assert_array_equal(box[3], [81, 87, 94, 100])
  np.testing.assert_array_equal(box[0], [6, 7, 8, 3])
  np.testing.assert_array_equal(box[1], [17, 12, 6, 0])


def test_whole_pixels_reach_every_place(rng):
  """On a small image, a box of 3 of 4 rows starts in row 0 as often as in row 1."""
  noise = rng.uniform(size=(4, 20_000)).astype(np.float32)
  top, _, height, _ = (v.numpy() for v in augment.SimCLR()._box(noise, (4, 4), 1.0))
  assert set(height) == {1, 2, 3, 4}
  assert np.mean(top[height == 3]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
  "strength, color, often", [(0.8, 1.0, 0.5), (1.0, 2.0, 0.2), (1.0, 4.0, 0.2)]
)
def test_jitter_against_numpy(rng, strength, color, often):
  """One image each, with all noise given, against the definition written out."""
  recipe = augment.SimCLR(strength=strength, color=color, flip=False, grey=often)
  most = 0.4 * strength * color
  images = images_of(rng, 160)
  noise = noise_of(rng, 160, recipe)
  noise[:, :5] = [0.999999, 0.5, 0, 0, 0.9]  # the whole image
  result = recipe(tf.constant(images), tf.constant(noise)).numpy()
  kinds = set()
  for x, u, y in zip(images, noise, result, strict=True):
    on, grey = u[5] < 0.8 * strength, u[10] < often * strength
    kinds.add((bool(on), bool(grey)))
    luma = np.array([0.299, 0.587, 0.114])
    if on:
      x = x * max(1 + most * (2 * u[6] - 1), 0)
      hue = augment.hue_matrix(tf.constant([most / 4 * (2 * u[9] - 1)], tf.float32))[0].numpy()
      x = x @ hue.T
      pixel_grey = (x @ luma)[..., None]
      x = pixel_grey + max(1 + most * (2 * u[8] - 1), 0) * (x - pixel_grey)
      mean = (x @ luma).mean()
      x = mean + max(1 + most * (2 * u[7] - 1), 0) * (x - mean)
    if grey:
      x = np.repeat((x @ luma)[..., None], 3, axis=-1)
    np.testing.assert_allclose(y, np.clip(x, 0, 1), atol=2e-5)
  assert len(kinds) == 4


def test_jitter_of_grey_images(rng):
  """Brightness 0.4 * (2 * 0.75 - 1) = 0.2 up, contrast 0.2 down, about the mean."""
  images = (0.3 + 0.3 * rng.uniform(size=(3, 8, 8, 1))).astype(np.float32)
  noise = np.full((3, 11), 0.5, np.float32)
  noise[:, [0, 2, 3, 4, 5, 6, 7]] = [0.999999, 0, 0, 0.9, 0, 0.75, 0.25]
  brighter = 1.2 * images
  mean = brighter.mean((1, 2, 3), keepdims=True)
  wanted = mean + 0.8 * (brighter - mean)
  np.testing.assert_allclose(augment.SimCLR()(images, noise), wanted, atol=1e-5)


def test_smaller_images_are_antialiased(rng):
  rows = rng.uniform(size=9).astype(np.float32)
  found = augment.resize(np.repeat(rows[None, :, None, None], 2, 2), (4, 2))
  np.testing.assert_allclose(found[0, :, 0, 0], triangle(rows, 4), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (6, 11)])
def test_strength_zero_is_the_identity_but_for_the_flip(rng, shape):
  images, recipe = images_of(rng, 400, *shape), augment.SimCLR(strength=0.0)
  noise = noise_of(rng, 400, recipe)
  result = recipe(images, noise).numpy()
  flipped = np.abs(result - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
  same = np.abs(result - images).max(axis=(1, 2, 3)) < 1e-6
  assert (flipped ^ same).all()
  assert np.mean(flipped) == pytest.approx(0.5, abs=0.08)
  still = augment.SimCLR(strength=0.0, flip=False)(images, noise)
  np.testing.assert_allclose(still, images, atol=1e-6)
  larger = augment.SimCLR(strength=0.0, flip=False)(images, noise, size=(11, 13))
  np.testing.assert_allclose(larger, tf.image.resize(images, (11, 13), antialias=True), atol=1e-5)


def test_strength_may_be_a_tensor_or_a_variable(rng):
  images = images_of(rng, 5)
  variable = tf.Variable(0.3)
  recipe = augment.SimCLR(strength=variable)
  noise = noise_of(rng, 5, recipe)
  run = tf.function(lambda: recipe(images, noise))
  for strength in (0.3, 0.9):
    variable.assign(strength)
    expected = augment.SimCLR(strength=strength)(images, noise)
    np.testing.assert_allclose(run(), expected, atol=1e-6)
    given = augment.SimCLR()(images, noise, strength=tf.constant(strength))
    np.testing.assert_allclose(given, expected, atol=1e-6)


# All recipes.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels, size", [(3, None), *slow((1, (6, 7)))])
def test_range_shape_and_purity(rng, name, channels, size):
  recipe, run = augment.from_spec(name), traced(name, channels, size)
  images, noise = images_of(rng, 12, 8, 10, channels), noise_of(rng, 12, recipe)
  result = run(images, noise).numpy()
  assert result.shape == (12, *(size or (8, 10)), channels)
  assert result.dtype == np.float32
  assert ((result >= 0) & (result <= 1)).all()
  np.testing.assert_array_equal(run(images, noise), result)
  # An example's row decides alone.
  order = rng.permutation(12)
  np.testing.assert_array_equal(run(images[order], noise[order]), result[order])
  np.testing.assert_allclose(run(images[3:4], noise[3:4]), result[3:4], atol=1e-6)
  if recipe.on_device:
    np.testing.assert_allclose(recipe(images, noise, size), result, atol=1e-6)
  changed = noise.copy()
  changed[7] = 1 - changed[7]
  difference = np.abs(run(images, changed).numpy() - result).max(axis=(1, 2, 3))
  assert (difference[np.arange(12) != 7] == 0).all()
  if name != "none":
    plain = augment.resize(images, size)
    assert np.mean(np.abs(result - plain).max(axis=(1, 2, 3)) > 1e-3) > 0.6


@pytest.mark.parametrize("before, rounding", [((5, 4), 0), ((9, 6), 1e-6)])
def test_crop_against_numpy(rng, before, rounding):
  recipe = augment.Crop(padding=2)
  images, noise = images_of(rng, 200, *before), noise_of(rng, 200, recipe)
  result = recipe(images, noise, (5, 4)).numpy()
  seen, images = set(), tf.image.resize(images, (5, 4), antialias=True).numpy()  # comes first
  for x, u, y in zip(images, noise, result, strict=True):
    top, left = int(u[0] * 5), int(u[1] * 5)
    seen.add((top, left))
    window = np.pad(x, ((2, 2), (2, 2), (0, 0)))[top : top + 5, left : left + 4]
    wanted = window[:, ::-1] if u[2] < 0.5 else window
    np.testing.assert_allclose(y, wanted, rtol=0, atol=rounding)
  assert len(seen) == 25
  still = augment.Crop(padding=0, flip=False)(images, noise)
  np.testing.assert_array_equal(still, images)


def test_affine_against_scipy(rng):
  recipe = augment.Affine(rotation=40, scale=0.3, shift=1.5)
  images, noise = images_of(rng, 20, 9, 15), noise_of(rng, 20, recipe)
  result = recipe(images, noise, (9, 12)).numpy()
  images = tf.image.resize(images, (9, 12), antialias=True).numpy()  # comes first
  for x, u, y in zip(images, 2.0 * noise - 1, result, strict=True):
    angle, extent = np.deg2rad(40) * u[0], 1 + 0.3 * u[1]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / extent
    centre = np.array([4.0, 5.5])
    offset = centre - turn @ (centre + 1.5 * u[2:4])
    for channel in range(3):
      expected = ndimage.affine_transform(
        x[..., channel].astype(np.float64), turn, offset, order=1, mode="grid-constant"
      )
      np.testing.assert_allclose(y[..., channel], expected, atol=2e-5)


def test_affine_one_thing_at_a_time(rng):
  images = images_of(rng, 1, 6, 6)
  least, middle, most = 0.0, 0.5, 1.0

  def call(noise, **options):
    recipe = augment.Affine(**{"rotation": 0, "scale": 0, "shift": 0, **options})
    return recipe(images, np.float32([noise])).numpy()

  np.testing.assert_array_equal(call([least, most, least, most]), images)
  turned = call([most, middle, middle, middle], rotation=90)[0]
  np.testing.assert_allclose(turned, np.rot90(images[0], -1), atol=1e-5)
  moved = call([middle, middle, most, least], shift=1)[0]  # one down, one to the left
  np.testing.assert_array_equal(moved[1:, :-1], images[0, :-1, 1:])
  assert not moved[0].any()
  assert not moved[:, -1].any()
  dot = np.zeros([1, 5, 5, 1], np.float32)
  dot[0, 2, 3] = 1
  larger = augment.Affine(0, 0.5, 0)(dot, np.float32([[0.5, 1, 0.5, 0.5]])).numpy()[0, :, :, 0]
  assert larger[2, 3] == pytest.approx(larger[2, 4])  # from 1 to 1.5 pixels off the centre


@pytest.mark.parametrize("name", ON_HOST)
def test_recipes_draw_nothing_themselves(name):
  """No random op of the graph is stateful: all draws come from the image's noise."""
  assert not augment.from_spec(name).on_device
  graph = traced(name).get_concrete_function().graph.as_graph_def()
  ops = {node.op for node in graph.node}
  for inner in graph.library.function:
    ops |= {node.op for node in inner.node_def}
  assert not [op for op in ops if op.startswith(("Random", "Truncated", "Rng"))]
  # keras-cv draws, but by stateless ops; AugMix takes its noise as it is.
  assert any(op.startswith("StatelessRandom") for op in ops) == (name == "randaugment")


def test_defaults_of_recipes():
  crop, affine, simclr = map(augment.from_spec, ("crop", "affine", "simclr"))
  assert (crop.padding, crop.flip) == (4, True)
  assert (affine.rotation, affine.scale, affine.shift) == (10, 0.1, 1)
  assert (simclr.strength, simclr.min_scale, simclr.flip) == (1, 0.08, True)
  assert (simclr.color, simclr.grey) == (1, 0.2)
  refuses("min_scale must be in (0, 1], got 0", augment.SimCLR, min_scale=0)


# A recipe for each view.


@pytest.mark.parametrize("size", [None, (6, 5)])
def test_each_view_by_its_own_recipe(rng, size):
  recipe = augment.from_spec("crop(padding=1), none, simclr(flip=false)")
  assert isinstance(recipe, augment.Each)
  assert (recipe.noise_size, recipe.on_device) == (augment.SimCLR.noise_size, True)
  images, noise = images_of(rng, 12), noise_of(rng, 12, recipe)
  result = recipe(images, noise, size)
  views = augment.Crop(padding=1), augment.Identity(), augment.SimCLR(flip=False)
  for k, view in enumerate(views):
    wanted = view(images[k::3], noise[k::3, : view.noise_size], size)
    np.testing.assert_allclose(result[k::3], wanted, atol=1e-6)


def test_each_fits_the_number_of_views():
  recipe = augment.from_spec("simclr, augmix(base=simclr, width=2)")
  assert not recipe.on_device
  recipe.check(2)
  refuses("lists 2 recipes, but the number of views is 3", recipe.check, 3)
  augment.from_spec("simclr").check(3)
  below = "augmix(base='simclr, crop', width=2)"
  augment.from_spec(below).check(2)
  refuses("lists 2 recipes, but the number of views is 3", augment.from_spec(below).check, 3)
  refuses("the number of views is 1", augment.from_spec(f"{below}, simclr").check, 2)


def test_randaugment_follows_its_options(rng):
  spec = "randaugment(operations=1, magnitude={}, deviation=0, base=none)"
  images = images_of(rng, 30, 8, 10)
  noise = noise_of(rng, 30, augment.from_spec(spec.format(9)))
  specs = (spec.format(magnitude) for magnitude in (0.5, 9))
  weak, strong = (np.abs(traced(each)(images, noise) - images).mean() for each in specs)
  assert weak < strong
