"""Keeping an encoder what it was: the drift, and the multiplier that holds it to a budget."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import representations, sequential

from urkle_tf import errors, networks, pretexts

WIDTH = 5


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """A network of digits, feature maps of 5 channels."""
  keras.utils.set_random_seed(1)
  path = tmp_path_factory.mktemp("keep") / "original.keras"
  sequential((8, 8, 1), keras.layers.Conv2D(WIDTH, 3, strides=2, activation="relu")).save(path)
  return str(path)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(size=(200, 8, 8, 1)).astype("float32")


def kept(file, images, **options):
  pretext = pretexts.Keep(file, **options)
  pretext.measure(images)
  encoder = networks.GaussianEncoder(networks.backbone(file, (8, 8, 1)), loc="pooled")
  pretext.attach(encoder)
  return pretext, encoder


def at(loc):
  return representations(loc, z=loc + 9.0)  # z counts for nothing


def embeddings(file, images):
  return np.asarray(keras.saving.load_model(file)(images)).mean((1, 2))


def test_drift_is_in_units_of_the_original(file, images, rng):
  f0 = embeddings(file, images)
  spread = np.mean(np.square(f0 - f0.mean(0)).sum(1))
  length = np.mean(np.square(f0).sum(1))
  f = rng.normal(size=(7, 1, WIDTH)).astype("float32")
  squares = np.square(f[:, 0] - f0[:7]).sum(1)
  for rho_of, unit in (("spread", spread), ("length", length)):
    pretext, encoder = kept(file, images, rho=None, rho_of=rho_of)
    aux = pretext.prepare(tf.constant(images[:7, None]), {})
    np.testing.assert_allclose(aux[:, 0], f0[:7], rtol=1e-5, atol=1e-6)
    found = pretext.loss(at(f), aux)
    assert set(found) == set(pretext.terms) == {"drift"}
    np.testing.assert_allclose(found["drift"], squares / unit, rtol=1e-4)
    twice = pretext.loss(at(np.repeat(f, 2, 1)), np.repeat(aux, 2, 1))["drift"]
    np.testing.assert_allclose(twice, found["drift"], rtol=1e-6)  # a mean over views
    assert float(encoder.spread) == pytest.approx(np.sqrt(spread / WIDTH), rel=1e-5)
    assert pretext.weight("drift") == 1.0


def test_the_multiplier_is_the_plain_loop(file, images, rng):
  pretext, _ = kept(file, images, rho=0.2)
  aux = pretext.prepare(tf.constant(images[:8, None]), {})
  held = 0.0
  for size in (0.0, 0.1, 1.0, 0.4, 0.3, 0.1, 0.0, 0.0):
    f = np.asarray(aux) + size * rng.normal(size=aux.shape)
    found = pretext.loss(at(f), aux)
    drift = float(np.mean(found["drift"]))
    beyond = min((drift - 0.2) / 0.2, 2.0)
    held = max(0.0, held + 0.05 * beyond)
    multiplier = max(0.0, held + beyond)
    assert float(pretext.weight("drift")) == pytest.approx(multiplier, abs=1e-5)
    np.testing.assert_allclose(found["multiplier"], np.full(8, multiplier), atol=1e-5)
    assert pretext.weight("multiplier") == 0.0
  still = float(pretext.weight("drift"))
  pretext.loss(at(np.asarray(aux) + 1.0), aux, training=False)
  assert float(pretext.weight("drift")) == still


def test_the_multiplier_follows_the_drift_of_all_replicas(file, images, mirrored, on_two):
  """That of the first is 0, and that of the second 0.4: twice rho on average."""
  with mirrored.scope():
    pretext, _ = kept(file, images, rho=0.1, rho_of="length")
  f = np.zeros((4, 1, WIDTH), np.float32)
  f[2:, :, 0] = np.sqrt(0.4 * np.mean(np.square(embeddings(file, images)).sum(1)))
  found = on_two(lambda f: pretext.loss(at(f), tf.zeros_like(f))["multiplier"], f)
  np.testing.assert_allclose(found, np.full(4, 0.05 + 1), rtol=1e-4)


def test_the_multiplier_finds_the_bound(file, images):
  """Of (u - 1)^2 with u^2 <= rho: u = sqrt(rho), and the multiplier is 1 / u - 1."""
  pretext, _ = kept(file, images, rho=0.1)
  aux = pretext.prepare(tf.constant(images[:2, None]), {})
  f0, unit = np.asarray(aux), float(pretext._unit.value)
  u = 0.0
  for _ in range(500):
    step = np.zeros_like(f0)
    step[..., 0] = u * np.sqrt(unit)  # drift is u^2
    pretext.loss(at(f0 + step), aux)
    multiplier = float(pretext.weight("drift"))
    u -= 0.05 * (2 * (u - 1) + multiplier * 2 * u)
  assert u == pytest.approx(np.sqrt(0.1), rel=1e-3)
  assert multiplier == pytest.approx(1 / np.sqrt(0.1) - 1, rel=1e-2)


def test_what_is_refused(file, images):
  for rho in (0, np.inf):
    refuses("keep: rho must be in (0, inf)", pretexts.Keep, file, rho=rho)
  refuses("unknown rho_of", pretexts.Keep, file, rho_of="cosine")
  backbone = networks.backbone(file, (8, 8, 1))
  with pytest.raises(errors.UserError, match=r"call measure\(images\)"):
    pretexts.Keep(file).attach(networks.GaussianEncoder(backbone, loc="pooled"))
  pretext = pretexts.Keep(file)
  with pytest.raises(errors.UserError, match="returns the same embedding for all images"):
    pretext.measure(np.zeros((4, 8, 8, 1), "float32"))
  refuses("got uint8: divide by 255", pretext.measure, np.uint8(255 * images))
  refuses("a spread needs at least two images", pretext.measure, images[:1])  # was 0: a loss of NaN
  pretext.measure(images)
  refuses("loc=pooled", pretext.attach, networks.GaussianEncoder(backbone, loc="sphere"))
