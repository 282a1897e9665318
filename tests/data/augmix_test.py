"""AugMix: its operations against Pillow's, its draws against their distributions."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from scipy import stats

from urkle_tf.data import augment, augmix


def pictures(rng, n, height=24, width=20, channels=3):
  """Smooth waves with a little noise, of few and of many values: uint8 [n, h, w, c]."""
  y, x = np.mgrid[:height, :width][:, None, ..., None] / 6.0
  phase, slope = rng.uniform(0, 6, (n, 1, 1, channels)), rng.uniform(-1, 1, (n, 1, 1, 2))
  wave = np.sin(y * slope[..., :1] + x * slope[..., 1:] + phase)
  spread = rng.uniform(20, 110, (n, 1, 1, 1))
  noise = rng.normal(0, 3, (n, height, width, channels))
  return np.clip(125 + spread * wave + noise, 0, 255).astype(np.uint8)


def by_pillow(name, image, level, sign):
  """The operation as the paper's authors define it, by Pillow; image uint8 [h, w, 3]."""
  height, width, _ = image.shape
  image = Image.fromarray(image)
  whole = lambda most: int(level * most / 10)  # noqa: E731
  affine = lambda *matrix: image.transform(  # noqa: E731
    (width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
  )
  result = {
    "autocontrast": lambda: ImageOps.autocontrast(image),
    "equalize": lambda: ImageOps.equalize(image),
    "posterize": lambda: ImageOps.posterize(image, 4 - whole(4)),
    "solarize": lambda: ImageOps.solarize(image, 256 - whole(256)),
    "rotate": lambda: image.rotate(sign * whole(30), resample=Image.Resampling.BILINEAR),
    "shear_x": lambda: affine(1, sign * level * 0.03, 0, 0, 1, 0),
    "shear_y": lambda: affine(1, 0, 0, sign * level * 0.03, 1, 0),
    "translate_x": lambda: affine(1, 0, sign * whole(width / 3), 0, 1, 0),
    "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * whole(height / 3)),
  }[name]()
  return np.asarray(result)


def ours(name, images, levels, signs):
  options = (tf.constant(values, tf.float32) for values in (levels, signs))
  return augmix.OPERATIONS[name](tf.constant(images), *options).numpy()


@pytest.mark.parametrize("name", augmix.OPERATIONS)
def test_operations_are_those_of_pillow(rng, name):
  images = pictures(rng, 40)
  images[0] = 7  # of one value
  images[1, 3:, :, 1] = 255  # nearly so
  levels = np.linspace(0.1, 9.9, 40).astype(np.float32)
  signs = np.where(np.arange(40) % 2, 1, -1)
  found = ours(name, images, levels, signs)
  assert found.dtype == np.uint8
  assert found.shape == images.shape
  expected = np.stack([by_pillow(name, *row) for row in zip(images, levels, signs, strict=True)])
  if name in ("rotate", "shear_x", "shear_y"):
    # Pixels between inside and outside fade to black here, and stop at once in Pillow, which
    # also rounds down.
    whole = ours(name, np.full_like(images, 255), levels, signs)
    inside = whole == 255
    assert np.mean(inside) > 0.8
    np.testing.assert_allclose(found[inside].astype(int), expected[inside], atol=1)
    assert (expected[whole == 0] == 0).all()
    assert (found[whole == 0] == 0).all()
  else:
    # Pillow's floats may fall just short of a whole number.
    np.testing.assert_allclose(found.astype(int), expected, atol=int(name == "autocontrast"))
  assert np.mean(found != images) > 0.1
  # Of a channel of its own, and of none at all.
  grey = ours(name, images[..., 1:2], levels, signs)
  np.testing.assert_array_equal(grey, found[..., 1:2])
  assert ours(name, images[:0], levels[:0], signs[:0]).shape == (0, *images.shape[1:])


def test_values_between_pixels_are_rounded():
  """From 0 and 10, with black beyond, 2.8 and 7.2."""
  moves = [tf.constant([value], tf.float32) for value in (1, 0, 0.28, 0, 1, 0, 0, 0)]
  found = augment.warp(tf.constant([[[[0], [10]]]], tf.uint8), moves)
  assert found.numpy().ravel().tolist() == [3, 7]


def noise_of(rng, n, recipe):
  return rng.uniform(size=(n, recipe.noise_size)).astype(np.float32)


def test_the_recipe_is_the_papers_loop(rng):
  recipe = augmix.AugMix(severity=4, width=2, depth=3, base="crop(padding=1)")
  images = pictures(rng, 60).astype(np.float32) / 255
  noise = noise_of(rng, 60, recipe)
  cropped = augment.Crop(padding=1)(images, noise[:, :3]).numpy()
  # The cut between two weights, m, and two chains: each a depth and three operations.
  assert recipe.noise_size == 3 + 1 + 1 + 2 * (1 + 9)
  result = recipe(images, noise).numpy()
  for x, u, y in zip(cropped, noise[:, 3:], result, strict=True):
    weights, share, chains = [u[0], 1 - u[0]], u[1], u[2:].reshape(2, 10)
    mixture = np.zeros_like(x)
    for weight, chain in zip(weights, chains, strict=True):
      mixed = np.rint(255 * x).astype(np.uint8)
      for which, level, sign in chain[1:].reshape(3, 3)[: 1 + int(3 * chain[0])]:
        name = list(augmix.OPERATIONS)[int(9 * which)]
        options = [0.1 + np.float32(3.9) * level], [1 if sign < 0.5 else -1]
        mixed = ours(name, mixed[None], *options)[0]
      mixture += weight * mixed / 255
    np.testing.assert_allclose(y, x + share * (mixture - x), atol=1e-5)


def marks(monkeypatch, mark):
  """Replaces all operations; number k then returns mark(k, images, level, sign)."""
  fakes = {
    name: lambda images, level, sign, k=k: tf.cast(mark(k, images, level, sign), tf.uint8)
    for k, name in enumerate(augmix.OPERATIONS)
  }
  monkeypatch.setattr(augmix, "OPERATIONS", fakes)


def constant(images, values):
  return tf.zeros_like(images) + tf.cast(values, tf.uint8)[:, None, None, None]


def test_weights_are_those_of_dirichlet_and_beta(rng, monkeypatch):
  # Black images; chains with a positive sign become white.
  marks(monkeypatch, lambda k, images, level, sign: constant(images, 127.5 * (sign + 1)))
  recipe = augmix.AugMix(depth=1, base=None)
  noise = noise_of(rng, 3000, recipe)
  black = np.zeros((3000, 1, 1, 1), np.float32)
  share, sign = 2, [6, 10, 14]  # m, and that of each of the three chains of 4 numbers
  m = noise[:, share].copy()
  noise[:, share] = 1
  weights = []
  for white in range(3):
    noise[:, sign] = np.where(np.arange(3) == white, 0.1, 0.9)
    weights.append(recipe(black, noise).numpy().ravel())
    assert stats.kstest(weights[-1], stats.beta(1, 2).cdf).pvalue > 1e-3
  np.testing.assert_allclose(sum(weights), 1, atol=1e-5)
  noise[:, sign] = 0.1  # all white: what is left is m, uniform as Beta(1, 1) is
  noise[:, share] = m
  np.testing.assert_allclose(recipe(black, noise).numpy().ravel(), m, atol=1e-5)


def test_the_base_comes_first(rng):
  images = pictures(rng, 5).astype(np.float32) / 255
  recipe = augment.from_spec('augmix(base="simclr(strength=0.5)")')
  assert isinstance(recipe.base, augment.SimCLR)
  noise = noise_of(rng, 5, recipe)
  noise[:, augment.SimCLR.noise_size + 2] = 0  # m: nothing of the mixture
  expected = augment.SimCLR(strength=0.5)(images, noise[:, : augment.SimCLR.noise_size], (8, 8))
  np.testing.assert_allclose(recipe(images, noise, (8, 8)), expected, atol=1e-6)
