"""Where loc lies: each form against NumPy, in training, saved and loaded."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import refuses, slow
from small_models import tiny_encoder, tiny_trainer

import urkle_tf
from urkle_tf import networks, pretexts, robustness
from urkle_tf.networks import batch_norm, gaussian
from urkle_tf.networks.folding import fold
from urkle_tf.networks.gaussian import LOCS

WIDTH = 8  # of the features


def _encoder(loc, latent_dim=None, **options):
  return tiny_encoder(latent_dim, loc=loc, **options)


@pytest.fixture
def images(rng):
  return rng.uniform(size=(12, 8, 8, 1)).astype("float32")


def _unit(rows):
  return rows * rows.shape[1] ** 0.5 / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("loc", LOCS)
def test_loc_is_what_its_name_says(loc, images):
  encoder = _encoder(loc, **({"latent_dim": 4} if loc.startswith("dense") else {}))
  for _ in range(5):
    encoder(images, training=True)
  network = encoder.network
  x = np.float64(networks.pooled(network)(images, training=False))
  if loc.startswith("dense"):
    x = x @ np.float64(network.get_layer("raw_loc").kernel)
  if loc in ("dense", "centred_sphere"):
    norm = network.get_layer("loc" if loc == "dense" else "centred")
    assert not norm.trainable_variables
    mean, variance = (np.float64(v) for v in (norm.moving_mean, norm.moving_variance))
    assert np.abs(mean).min() > 0
    x = (x - mean) / np.sqrt(variance + 1e-5)
  if loc.endswith("sphere"):
    x = _unit(x)
    np.testing.assert_allclose(np.mean(x**2, 1), 1.0)
  normal = encoder(images, training=False)
  np.testing.assert_allclose(normal.loc, x, rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(fold(network)(images)["loc"], normal.loc, rtol=1e-3, atol=1e-4)
  assert normal.loc.shape == (12, encoder.latent_dim)
  assert encoder.latent_dim == (4 if loc.startswith("dense") else WIDTH)


def test_short_features_have_the_length_of_a_sphere():
  rows = np.float32([[3e-5, 4e-5], [3.0, 4.0]])  # and below 1e-6 a shorter one
  np.testing.assert_allclose(gaussian._sphere(rows), [[0.6 * 2**0.5, 0.8 * 2**0.5]] * 2, rtol=1e-5)


def test_features_of_nothing_but_zeros_do_no_harm(images):
  encoder = _encoder("sphere", preprocess=keras.layers.Rescaling(0.0))
  for variable in encoder.network.variables:  # no bias is left, so that all features are 0
    if "beta" in variable.path or "moving_mean" in variable.path:
      variable.assign(tf.zeros_like(variable))
  with tf.GradientTape() as tape:
    loc = encoder(images, training=False).loc
    loss = tf.reduce_sum(loc)
  np.testing.assert_array_equal(loc, 0.0)
  for gradient in tape.gradient(loss, [v.value for v in encoder.trainable_variables]):
    assert gradient is None or np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loc", ["sphere", "centred_sphere", "pooled"])
def test_another_width_needs_a_dense_form(loc):
  refuses("latent_dim=4, but loc= & 8 features & dense_sphere", _encoder, loc, latent_dim=4)
  assert _encoder(loc, latent_dim=np.int64(WIDTH)).latent_dim == WIDTH
  refuses("latent_dim must be a whole number", _encoder, loc, latent_dim=0.5)
  refuses("loc 'ball' & sphere", _encoder, "ball")


def test_the_kl_does_not_shrink_pooled_features(images):
  """Features c f with the sigma c s of their spread have the same KL: there is no slope along c."""
  encoder = _encoder("pooled")
  backbone = next(layer for layer in encoder.network.layers if isinstance(layer, keras.Model))
  norm = backbone.get_layer("norm2")  # below a ReLU and a mean, so c scales gamma and beta
  norm.beta.assign(tf.linspace(0.1, 0.5, norm.beta.shape[0]))
  with tf.GradientTape() as tape:
    normal = encoder(tf.concat([images, 1 - images], 0), training=True)
    (loc, attacked), (scale, other) = (tf.split(x, 2) for x in (normal.loc, normal.scale))
    p, q = tfp.distributions.Normal(loc, scale), tfp.distributions.Normal(attacked, other)
    value = tf.reduce_mean(networks.kl(p, q))
  found = tape.gradient(value, [norm.gamma.value, norm.beta.value])
  along = sum(float(tf.reduce_sum(w * g)) for w, g in zip((norm.gamma, norm.beta), found))
  assert float(value) > 0.01
  assert abs(along) < 1e-3 * float(value)


def test_sigma_is_bounded_in_units_of_the_spread_of_pooled_features(images):
  encoder, spread = _encoder("pooled", momentum=0.75, min_scale=0.2, max_scale=0.2), 1.0
  for part in np.split(images, 2):
    x = np.float64(encoder(part, training=True).loc)
    spread = 0.75 * spread + 0.25 * np.sqrt(np.mean(np.var(x, 0)))
  np.testing.assert_allclose(encoder(images).scale, 0.2 * spread, rtol=1e-5)
  np.testing.assert_allclose(encoder.network(images)["scale"], 0.2 * spread, rtol=1e-5)
  assert not any("spread" in variable.path for variable in encoder.trainable_variables)


@pytest.mark.parametrize("loc", ["centred_sphere", *slow(*sorted({*LOCS} - {"centred_sphere"}))])
def test_a_file_and_an_export_hold_it(loc, images, tmp_path):
  encoder = _encoder(loc, max_scale=0.9)
  encoder(images, training=True)
  encoder.save(tmp_path / "encoder.keras")
  folder = urkle_tf.export_encoder(encoder, tmp_path / "encoder")
  for found in (keras.models.load_model(tmp_path / "encoder.keras"), urkle_tf.load_encoder(folder)):
    np.testing.assert_allclose(found(images).loc, encoder(images).loc, atol=1e-6)
    np.testing.assert_allclose(found(images).scale, encoder(images).scale, atol=1e-6)
  layers = urkle_tf.load_encoder(folder).network._flatten_layers()
  assert all(type(layer).__module__.startswith("keras.") for layer in layers)


def test_a_file_from_before_there_was_a_choice_is_dense(images, tmp_path):
  _encoder("dense", latent_dim=4).save(tmp_path / "new.keras")
  with zipfile.ZipFile(tmp_path / "new.keras") as new:
    contents = {name: new.read(name) for name in new.namelist()}
  config = json.loads(contents["config.json"])
  assert config["config"].pop("loc") == "dense"
  contents["config.json"] = json.dumps(config)
  with zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
    for name, content in contents.items():
      old.writestr(name, content)
  new, old = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("new", "old"))
  np.testing.assert_array_equal(old(images).loc, new(images).loc)


def test_k_weighs_one_minus_the_cosine(images):
  """On a sphere beta KL is k (1 - cos), whatever d and sigma are."""
  for loc, sigma, options in (("sphere", 0.25, {}), ("dense_sphere", 0.1, {"latent_dim": 4})):
    encoder = _encoder(loc, min_scale=sigma, max_scale=sigma, **options)
    scheme = robustness.Urkle(k=3.0)
    tiny_trainer(scheme, encoder=encoder)
    assert scheme.weight == pytest.approx(3.0 * sigma**2 / encoder.latent_dim)
    one, other = encoder(images), encoder(images[::-1])
    cosine = np.sum(_unit(np.float64(one.loc)) * _unit(np.float64(other.loc)), 1)
    found = scheme.weight * networks.kl(one, other)
    np.testing.assert_allclose(found, 3.0 * (1 - cosine / encoder.latent_dim), rtol=1e-3, atol=1e-5)


def test_the_log_shows_the_effective_k(images):
  encoder = _encoder("sphere", min_scale=0.25, max_scale=0.25)
  trainer = tiny_trainer(robustness.Urkle(beta=0.01), encoder=encoder)
  values = trainer.step({"views": tf.stack([images, images[::-1]], 1)})
  expected = 0.01 * WIDTH / 0.25**2  # |loc|^2 = d
  assert float(values["effective_k"]) == pytest.approx(expected, rel=1e-5)


def test_the_strength_is_given_once():
  refuses("set the same weight: leave one of them out", robustness.Urkle, k=1.0, beta=1.0)
  refuses("k must be at least 0", robustness.Urkle, k=-1.0)
  schemes = {robustness.Urkle(): 0.25**2 / WIDTH, robustness.Urkle(beta=0.3): None}
  for scheme, unit in schemes.items():
    tiny_trainer(scheme, encoder=_encoder("sphere"))
    k = pretexts.SimCLR.strength["k"]
    assert scheme.weight == pytest.approx(0.3 if unit is None else k * unit)


def test_statistics_are_those_of_all_replicas(mirrored, on_two, images):
  with mirrored.scope():
    encoder = _encoder("pooled", momentum=0.0)
    batch_norm.quicken(encoder)
  found = on_two(lambda x: encoder(x, training=True).loc, images)
  alone = _encoder("pooled", momentum=0.0)
  np.testing.assert_allclose(found, alone(images, training=True).loc, rtol=1e-3, atol=1e-4)
  assert float(encoder.spread) == pytest.approx(np.sqrt(np.mean(np.var(found, 0))), rel=1e-4)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"scale": False, "center": False, "epsilon": 0.1},
    {"trainable": False},
    {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}},
  ],
)
def test_quick_batch_norms_do_what_keras_does(options, rng):
  rows = rng.normal(1.0, 2.0, (6, 4, 5, 3)).astype("float32")
  weights = rng.normal(size=rows.shape).astype("float32")
  found = []
  for quick in (False, True):
    inputs = keras.Input(rows.shape[1:])
    norm = keras.layers.BatchNormalization(synchronized=True, momentum=0.8, **options)
    model = keras.Model(inputs, norm(inputs))
    for position, variable in enumerate(norm.trainable_variables):
      variable.assign(np.linspace(1.0, 2.0 + position, 3))
    if quick:
      batch_norm.quicken(model)
    with tf.GradientTape() as tape:
      x = tf.constant(rows)
      tape.watch(x)
      outputs = model(x, training=True)
      loss = tf.reduce_sum(tf.sin(outputs) * weights)
    gradients = tape.gradient(loss, [x, *(v.value for v in norm.trainable_variables)])
    averages = [norm.moving_mean, norm.moving_variance]
    found.append([outputs, *gradients, *averages, model(x, training=False)])
  for stock, quick in zip(*found, strict=True):
    np.testing.assert_allclose(quick, stock, rtol=2e-5, atol=2e-5)
