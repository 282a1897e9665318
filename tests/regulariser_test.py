"""The regulariser in models and loops that know nothing of this package."""

import sys

import keras
import numpy as np
import plain_losses
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import refuses
from commands import process
from small_models import precision, sequential, tiny_encoder

import urkle_tf
from urkle_tf import attacks, errors

tfd = tfp.distributions

SHAPE = (4, 4, 1)
EPSILON = 0.05
WEIGHTS = np.random.default_rng(1).normal(size=16).astype(np.float32)  # of the pixels


def pgd(steps=5):
  return attacks.PGD(attacks.Linf(EPSILON), steps=steps)


@pytest.fixture(scope="module")
def images():
  """Away from the pixel bounds, which would make closed forms more complicated."""
  return np.random.default_rng(0).uniform(0.2, 0.8, size=(12, *SHAPE)).astype(np.float32)


def linear(weights):
  """Features of one number: a weighted sum of the pixels."""
  model = sequential(SHAPE, keras.layers.Flatten(), keras.layers.Dense(1, use_bias=False))
  model.set_weights([weights.reshape(-1, 1)])
  return model


@pytest.mark.parametrize("size", [1.0, 1e-4])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_of_a_linear_feature_the_worst_kl_is_its_closed_form(images, size, scale):
  # max |w . d| over the ball is epsilon |w|_1; shrinking w shrinks its spread alike.
  weights = size * WEIGHTS
  features = images.reshape(12, -1) @ weights
  worst = EPSILON * np.abs(weights).sum()
  wanted = worst**2 / (2 * scale**2 * features.var())
  found = urkle_tf.kl_robustness(linear(weights), images, pgd(), seed=[0, 1], scale=scale)
  np.testing.assert_allclose(found, np.full(12, wanted), rtol=1e-3)


def test_the_gradient_goes_through_both_distributions_and_their_spread(images):
  """By w, of (epsilon |w|_1)^2 / (2 scale^2 w C w), with C the covariance of the pixels."""
  model = linear(WEIGHTS)
  with tf.GradientTape() as tape:
    mean = tf.reduce_mean(urkle_tf.kl_robustness(model, images, pgd(), seed=[0, 1]))
  (found,) = tape.gradient(mean, model.trainable_variables)
  moved = np.cov(images.reshape(12, -1).T, bias=True) @ WEIGHTS
  ratio = np.abs(WEIGHTS).sum() / (WEIGHTS @ moved)
  wanted = EPSILON**2 / 0.5**2 * ratio * (np.sign(WEIGHTS) - ratio * moved)
  np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def brighter(objective, images, seed):
  """An attack that does not search."""
  return images + 0.1


def test_the_kl_is_that_from_the_image_to_its_neighbour(images):
  """Both what is returned and what the attack climbs; sigma tells the directions apart."""
  climbed = []

  def encoder(images, training=False):
    pixels = tf.reshape(images, [-1, 16])
    return {"loc": pixels[:, :8], "scale": pixels[:, 8:]}

  def attack(objective, images, seed):
    climbed.append(objective(images + 0.1))
    return images + 0.1

  found = urkle_tf.kl_robustness(encoder, images, attack)
  sigma = images.reshape(-1, 16)[:, 8:].astype(np.float64)
  wanted = plain_losses.kl(0.0, sigma, 0.1, sigma + 0.1)
  np.testing.assert_allclose([*climbed, found], [wanted.sum(1)] * 2, rtol=1e-4)


def test_the_spread_of_features_is_that_of_the_batch_on_all_replicas(images, on_two):
  encoder = lambda x, training: tf.reshape(x, [-1, 16]) * WEIGHTS  # noqa: E731
  call = lambda x: urkle_tf.kl_robustness(encoder, x, brighter)  # noqa: E731
  for found in (call(images), call(images[:2]), on_two(call, images)):
    spread = np.mean(np.var(images[: len(found)].reshape(-1, 16) * WEIGHTS, 0))
    wanted = np.sum((0.1 * WEIGHTS) ** 2) / (2 * 0.5**2 * spread)
    np.testing.assert_allclose(found, np.full(len(found), wanted), rtol=1e-4)


def test_features_of_one_image_are_measured_by_their_own_size(images):
  for size in (1.0, 1e-3):
    square = (images[0].ravel() @ (size * WEIGHTS)) ** 2
    wanted = (EPSILON * size * np.abs(WEIGHTS).sum()) ** 2 / (2 * 0.5**2 * square)
    found = urkle_tf.kl_robustness(linear(size * WEIGHTS), images[:1], pgd(), seed=[0, 1])
    np.testing.assert_allclose(found, [wanted], rtol=1e-3)


def test_feature_maps_count_with_their_mean(images):
  flat = linear(WEIGHTS)
  maps = keras.Sequential([flat, keras.layers.Reshape((1, 1, 1))])
  twice = keras.Sequential([maps, keras.layers.UpSampling2D(2)])
  wanted = urkle_tf.kl_robustness(flat, images, pgd(), seed=[0, 1])
  for encoder in (maps, twice):
    found = urkle_tf.kl_robustness(encoder, images, pgd(), seed=[0, 1])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.fixture(scope="module")
def digits():
  rng = np.random.default_rng(3)
  return rng.uniform(size=(16, 8, 8, 1)).astype(np.float32), rng.integers(3, size=16)


def test_all_forms_of_a_gaussian_encoder_are_one(digits):
  encoder, (x, _) = tiny_encoder(5), digits
  for _ in range(5):
    encoder(x, training=True)  # moving averages of their own

  class Subclassed(keras.Model):
    def call(self, images, training=None):
      return encoder(images, training=training)

  function = lambda x, training: encoder(x, training=training)  # noqa: E731
  forms = (encoder, encoder.network, Subclassed(), function)
  found = [urkle_tf.kl_robustness(form, x, pgd(), seed=[0, 1]).numpy() for form in forms]
  assert found[0].min() > 0.01
  same(found[1:], [found[0]] * 3, rtol=1e-3)


def test_our_encoders_train_as_they_do_when_called(digits):
  """Pooled features keep the unit of sigma up to date; a backbone keeps its inference mode."""
  x, _ = digits
  backbone = urkle_tf.networks.backbone("convnet(width=4, layers=2)", x.shape[1:])
  pooled = urkle_tf.GaussianEncoder(backbone, loc="pooled", momentum=0.0, inference=True)
  statistics = [v.numpy() for v in backbone.non_trainable_variables]
  urkle_tf.UrkleRegularizer(pooled, pgd(2), seed=0)(x, training=True)
  same(statistics, backbone.non_trainable_variables)
  assert 0 < float(pooled.spread) < 0.5  # it starts at 1
  # The KL is the same, however small the features are: see `GaussianEncoder`.
  last = backbone.get_layer("norm2")
  found = []
  for size in (1.0, 0.01):
    last.set_weights([size * last.gamma, size * last.beta, last.moving_mean, last.moving_variance])
    urkle_tf.kl_robustness(pooled, x, pgd(2), seed=[0, 1], training=True)
    found.append(urkle_tf.kl_robustness(pooled, x, pgd(2), seed=[0, 1]).numpy())
  np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


def test_outside_of_training_the_layer_is_the_encoder(digits):
  encoder, (x, _) = tiny_encoder(5), digits
  layer = urkle_tf.UrkleRegularizer(encoder, pgd(), beta=0.5)
  before = [v.numpy() for v in encoder.variables]
  np.testing.assert_array_equal(layer(x), encoder(x, training=False).loc)
  np.testing.assert_array_equal(layer(x, training=False), encoder(x, training=False).loc)
  assert layer.losses == []
  same(before, encoder.variables)
  backbone = encoder.network.layers[2]
  features = urkle_tf.UrkleRegularizer(backbone, pgd())
  np.testing.assert_array_equal(features(x), backbone(x, training=False))


def test_in_training_it_samples_and_adds_the_kl_of_its_last_call(digits):
  encoder, (x, _) = tiny_encoder(5, momentum=0.0), digits
  layer = urkle_tf.UrkleRegularizer(encoder, pgd(), beta=0.5, seed=7)
  rows = np.repeat(x[:2], 30, 0)
  calls = [layer(rows, training=True).numpy() for _ in range(2)]
  (loss,) = layer.losses  # of the last call alone
  assert float(loss) > 0
  z = np.concatenate([call.reshape(2, 30, 5) for call in calls], 1)
  spread = np.sqrt(np.mean([call.reshape(2, 30, 5).var(1) for call in calls]))
  assert spread == pytest.approx(0.25, rel=0.15)  # sigma at the start, its cap
  for samples in z:  # of other noise in other calls and for other rows
    assert len(np.unique(samples.round(5), axis=0)) == 60
  with tf.GradientTape() as tape:
    layer(x, training=True)
    (loss,) = layer.losses
  assert all(g is not None for g in tape.gradient(loss, encoder.trainable_variables))


def classifier(encoder, **options):
  layer = urkle_tf.UrkleRegularizer(encoder, pgd(), **options)
  model = sequential((8, 8, 1), layer, keras.layers.Dense(3))
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.SGD(0.0), loss)
  return model


@pytest.fixture(scope="module")
def fitted(digits):
  """A classifier over features whose step changes nothing, and the history of its `fit`."""
  keras.utils.set_random_seed(0)
  convolution = keras.layers.Conv2D(4, 3, activation="tanh")
  backbone = sequential((8, 8, 1), convolution, keras.layers.Flatten())
  model = classifier(backbone, beta=0.25, seed=1)
  x, y = digits
  history = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0).history
  return model, backbone, history


def test_fit_minimises_its_own_loss_and_the_kl(fitted, digits):
  _, backbone, history = fitted
  for loss, kl, own in zip(history["loss"], history["kl"], history["val_loss"], strict=True):
    assert loss == pytest.approx(own + 0.25 * kl, rel=1e-4)
  # As attacks from other starts find it.
  wanted = tf.reduce_mean(urkle_tf.kl_robustness(backbone, digits[0], pgd(20)))
  assert history["kl"] == pytest.approx([float(wanted)] * 2, rel=0.1)
  assert np.isnan(history["val_kl"]).all()
  assert history["kl"][0] != history["kl"][1]  # each step starts elsewhere


def test_a_model_to_ship_needs_no_layer_of_ours(fitted, digits, tmp_path):
  model, backbone, _ = fitted
  pixels = keras.Input((8, 8, 1))
  shipped = keras.Model(pixels, model.layers[-1](backbone(pixels)))
  shipped.save(tmp_path / "shipped.keras")
  loaded = keras.saving.load_model(tmp_path / "shipped.keras")
  np.testing.assert_allclose(loaded(digits[0]), model(digits[0]), atol=1e-6)
  assert {type(part).__module__.split(".")[0] for part in loaded._flatten_layers()} == {"keras"}


def test_a_saved_model_can_be_trained_further(fitted, digits, tmp_path):
  model, _, history = fitted
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  x, y = digits
  np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
  layer = loaded.layers[0]
  assert (layer.beta, layer.scale, layer.seed) == (0.25, 0.5, 1)
  assert layer.attack.describe() == pgd().describe()
  again = loaded.fit(x, y, batch_size=16, verbose=0).history
  assert again["kl"][0] == pytest.approx(history["kl"][0], rel=0.1)
  for threat in (attacks.Linf(0.1, lower=-1, upper=1), attacks.L1(2.0, sparsity=0.5)):
    layer = urkle_tf.UrkleRegularizer(layer.encoder, attacks.PGD(threat))
    copied = urkle_tf.UrkleRegularizer.from_config(layer.get_config())
    assert repr(copied.attack) == repr(layer.attack)
  for kind in (attacks.APGD, attacks.NFGSM):
    other = urkle_tf.UrkleRegularizer(layer.encoder, kind(attacks.Linf(EPSILON)))
    refuses("use PGD, the only attack", other.get_config)


@pytest.mark.full
@pytest.mark.parametrize(
  "module",
  ["training.pretraining", "training.forecast", "downstream.embeddings", "evaluation.assess"],
)
def test_all_commands_read_a_saved_model(fitted, tmp_path, module):
  """In a process that has not named the layer."""
  fitted[0].save(tmp_path / "model.keras")
  read = f"foreign_models.load({str(tmp_path / 'model.keras')!r})"
  program = f"import urkle_tf.{module}; from urkle_tf.networks.saved import foreign_models; {read}"
  process(sys.executable, "-c", program)


def test_each_use_in_a_model_adds_its_own(images):
  layer = urkle_tf.UrkleRegularizer(linear(WEIGHTS), pgd(), beta=1.0)
  one, two = keras.Input(SHAPE), keras.Input(SHAPE)
  model = keras.Model([one, two], [layer(one), layer(two)])
  model([images, 1 - images], training=True)
  first, second = model.losses
  wanted = [urkle_tf.kl_robustness(layer.encoder, x, pgd()) for x in (images, 1 - images)]
  assert [float(first), float(second)] == pytest.approx([float(w[0]) for w in wanted], rel=1e-3)


def test_each_layer_of_a_model_has_its_own_metric(images):
  """Of two named kl, `fit` showed the last."""
  layers = []
  for name, weights in (("left", WEIGHTS), ("right", WEIGHTS[::-1])):
    layer = urkle_tf.UrkleRegularizer(linear(weights), pgd(), metric=name)
    layers.append(urkle_tf.UrkleRegularizer.from_config(layer.get_config()))
  pixels = keras.Input(SHAPE)
  model = keras.Model(pixels, [layer(pixels) for layer in layers])
  model(images, training=True)
  found = {name: float(value) for name, value in model.get_metrics_result().items()}
  wanted = [urkle_tf.kl_robustness(layer.encoder, images, pgd())[0] for layer in layers]
  assert found == pytest.approx(dict(zip(("left", "right"), map(float, wanted), strict=True)), 1e-3)


def test_losses_of_the_encoder_itself_count_once(images):
  """Not once more for each step of the attack, in whose loop they would be lost."""

  class Adds(keras.layers.Layer):
    def call(self, inputs):
      self.add_loss(tf.constant(3.0))
      return inputs

  pixels, one, two = (keras.Input(SHAPE) for _ in range(3))
  encoder = keras.Model(pixels, Adds()(keras.layers.Flatten()(pixels)))
  layer = urkle_tf.UrkleRegularizer(encoder, pgd(), beta=0.0)
  model = keras.Model([one, two], [layer(one), layer(two)])

  def step():
    model([images, 1 - images], training=True)
    return tf.add_n(model.losses)

  assert float(step()) == float(tf.function(step)()) == 2 * 3


def test_low_precision_stays_inside(digits):
  with precision("mixed_bfloat16"):
    backbone = sequential((8, 8, 1), keras.layers.Conv2D(4, 3), keras.layers.Flatten())
  seen = []

  class Spy(attacks.PGD):
    def run(self, objective, images, seed=None, epsilon=None):
      seen.append(images.dtype)
      return super().run(objective, images, seed, epsilon)

  layer = urkle_tf.UrkleRegularizer(backbone, Spy(attacks.Linf(EPSILON), steps=2), beta=1.0)
  assert layer(digits[0], training=True).dtype == tf.bfloat16
  assert (seen, layer.losses[0].dtype) == ([tf.float32], tf.float32)
  assert float(layer.losses[0]) > 0


@pytest.mark.parametrize("kind", ["dict", "normal"])
def test_the_kl_of_an_encoder_in_bfloat16_is_in_float32(images, kind):
  # The sigma is the same for all images, so the KL is half the squared distance of loc / sigma.
  weights = tf.constant(np.random.default_rng(2).normal(size=(16, 64)), tf.bfloat16)

  def encoder(images, training=False):
    loc = tf.matmul(tf.reshape(tf.cast(images, tf.bfloat16), [-1, 16]), weights)
    scale = tf.fill(tf.shape(loc), tf.constant(0.5, tf.bfloat16))
    return {"loc": loc, "scale": scale} if kind == "dict" else tfd.Normal(loc, scale)

  found = urkle_tf.kl_robustness(encoder, images, brighter)
  outputs = (encoder(images), encoder(images + 0.1))
  before, after = (np.float64(o["loc"] if kind == "dict" else o.loc) for o in outputs)
  assert found.dtype == tf.float32
  np.testing.assert_allclose(found, np.sum((after - before) ** 2, 1) / (2 * 0.5**2), rtol=1e-5)


def test_a_layer_samples_z_of_an_encoder_in_low_precision(images):
  with precision("mixed_bfloat16"):
    pixels = keras.Input(SHAPE)
    features = keras.layers.Flatten()(pixels)
    scale = keras.layers.Dense(4, activation="softplus")(features)
    encoder = keras.Model(pixels, {"loc": keras.layers.Dense(4)(features), "scale": scale})
  layer = urkle_tf.UrkleRegularizer(encoder, pgd(), beta=1.0)
  assert layer(images, training=True).shape == (12, 4)
  assert layer.losses[0].dtype == tf.float32


@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_fit_adds_the_kl_to_losses_of_another_float(floatx, monkeypatch):
  images = np.random.default_rng(0).uniform(size=(4, *SHAPE))
  before = keras.config.floatx()
  keras.config.set_floatx(floatx)
  try:
    encoder = sequential(SHAPE, keras.layers.Flatten(), keras.layers.Dense(3))
    model = keras.Sequential([urkle_tf.UrkleRegularizer(encoder, pgd(1), beta=1.0)])
    model.compile("sgd", "mse")
    found = model.fit(images, np.zeros((4, 3)), verbose=0).history
  finally:
    keras.config.set_floatx(before)
  assert found["loss"][0] > found["kl"][0] > 0


@pytest.mark.full
@pytest.mark.parametrize("gaussian", [True, False])
def test_two_replicas_make_the_step_of_one(mirrored, digits, gaussian):
  x, y = digits

  def after_a_step(start=None):
    encoder = tiny_encoder(5)
    model = classifier(encoder if gaussian else encoder.network.layers[2], beta=0.5, seed=3)
    if start:
      model.set_weights(start)
    model.optimizer.learning_rate = 0.1
    start = model.get_weights()
    history = model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    return start, [history["kl"][0], history["loss"][0]], model.get_weights()

  start, one, weights = after_a_step()
  with mirrored.scope():
    _, two, others = after_a_step(start)
  assert two == pytest.approx(one, rel=1e-3)
  moved = [np.abs(a - b).max() for a, b in zip(start, weights, strict=True)]
  assert max(moved) > 0.05
  same(weights, others, rtol=1e-2, atol=1e-3)


@pytest.mark.full
def test_replicas_may_hold_different_numbers_of_images(mirrored, digits):
  """Of 12 images, one replica of two gets 8; the spread of features is that of all 12."""
  x, y = digits

  def shown():
    model = classifier(tiny_encoder(5).network.layers[2], beta=0.5, seed=3)
    return model.fit(x[:12], y[:12], batch_size=16, shuffle=False, verbose=0).history

  one = shown()
  with mirrored.scope():
    two = shown()
  assert np.isfinite(two["loss"]).all()
  assert two["kl"] == pytest.approx(one["kl"], rel=0.03)  # the last images start elsewhere


def test_images_of_integers_end_in_one_line():
  """Before the encoder's first layer fails on them, or in inference takes them for floats."""
  images = np.zeros((2, *SHAPE), np.uint8)
  encoder = linear(np.ones(16, np.float32))
  refuses("got uint8: divide by 255", urkle_tf.kl_robustness, encoder, images, pgd())
  with pytest.raises(errors.UserError, match="got uint8: divide by 255"):
    urkle_tf.UrkleRegularizer(encoder, pgd())(images)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_fit_does_not_train_on_pixels_from_0_to_255(kind):
  """Keras hands integers to a model's layers as floats.  XLA drops assertions, hence the NaN."""
  images = np.random.default_rng(0).integers(0, 256, [8, 8, 8, 1]).astype(kind)
  backbone = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(3))

  def fit(jit):
    model = classifier(backbone, beta=0.5, seed=3)
    model.compile("sgd", model.loss, jit_compile=jit)
    return model.fit(images, np.zeros(8), batch_size=4, verbose=0).history["kl"]

  with pytest.raises(tf.errors.InvalidArgumentError, match="pixels lie outside"):
    fit(False)
  assert np.isnan(fit(True)).all()
  assert np.isfinite(backbone.get_weights()[0]).all()


@pytest.mark.parametrize(
  "shape, words",
  [
    (SHAPE, "takes images [n, 4, 4, 1], got [4, 4, 1]"),
    ((2, 4, 4, 3), "takes images [n, 4, 4, 1], got [2, 4, 4, 3]"),
    ((0, *SHAPE), "an empty batch"),
  ],
)
def test_images_of_another_shape_end_in_one_line(shape, words):
  encoder, images = linear(np.ones(16, np.float32)), np.zeros(shape, np.float32)
  refuses(words, urkle_tf.kl_robustness, encoder, images, pgd())
  gaussian = urkle_tf.GaussianEncoder(linear(np.ones(16, np.float32)), latent_dim=2, loc="dense")
  refuses(words, urkle_tf.kl_robustness, gaussian, images, pgd())


@pytest.mark.parametrize("kind", [list, lambda pair: dict(zip("ab", pair, strict=True))])
def test_an_encoder_of_several_outputs_ends_in_one_line(images, kind):
  pixels = keras.Input(SHAPE)
  features = keras.layers.Flatten()(pixels)
  several = keras.Model(pixels, kind([features, 2 * features]))
  refuses("several outputs", urkle_tf.kl_robustness, several, images, pgd())
  with pytest.raises(errors.UserError, match="several outputs"):  # Keras adds the arguments
    urkle_tf.UrkleRegularizer(several, pgd())(images)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_ends_in_one_line(images, scale):
  """The KL was NaN, and so were the weights after a step of fit."""
  pixels = keras.Input(SHAPE)
  loc = keras.layers.Dense(2)(keras.layers.Flatten()(pixels))
  encoder = keras.Model(pixels, {"loc": loc, "scale": scale * keras.ops.ones_like(loc)})
  refuses("scale must be above 0", urkle_tf.kl_robustness, encoder, images, pgd())
  model = keras.Sequential([urkle_tf.UrkleRegularizer(encoder, pgd())])
  model.compile("sgd", "mse")
  with pytest.raises(tf.errors.InvalidArgumentError, match="scale must be above 0"):
    model.fit(images, np.zeros((12, 2)), verbose=0)


def test_an_encoder_of_loc_alone_ends_in_one_line(images):
  pixels = keras.Input(SHAPE)
  encoder = keras.Model(pixels, {"loc": keras.layers.Flatten()(pixels)})
  refuses("returns features & or loc and scale", urkle_tf.kl_robustness, encoder, images, pgd())


def test_an_encoder_of_a_single_number_ends_in_one_line(images):
  encoder = lambda x, training: tf.reduce_sum(x, [1, 2, 3])  # noqa: E731
  refuses("a single number for each image", urkle_tf.kl_robustness, encoder, images, pgd())


@pytest.mark.parametrize("attack", ["pgd", 0.1, attacks.Linf(0.1), None])
def test_what_is_not_an_attack_ends_in_one_line(images, attack):
  encoder = linear(np.ones(16, np.float32))
  refuses("needs an attack, such as PGD", urkle_tf.UrkleRegularizer, encoder, attack)
  refuses("needs an attack, such as PGD", urkle_tf.kl_robustness, encoder, images, attack)


@pytest.mark.parametrize("kind", [attacks.FAB, attacks.HopSkipJump])
def test_an_attack_on_decisions_ends_in_one_line(images, kind):
  """The KL has no boundary: they returned the images, as if nothing could be worse."""
  attack, encoder = kind(attacks.L2(0.5)), linear(np.ones(16, np.float32))
  refuses("looks for a decision boundary", urkle_tf.kl_robustness, encoder, images, attack)
  refuses("looks for a decision boundary", urkle_tf.UrkleRegularizer, encoder, attack)


def test_wrong_options_end_in_one_line(images):
  encoder = linear(np.ones(16, np.float32))
  for name, value in (("beta", -1), ("scale", 0)):
    refuses(f"{name} must be", urkle_tf.UrkleRegularizer, encoder, pgd(), **{name: value})
  for scale in (0, -1.0, np.nan):
    refuses("scale must be above 0", urkle_tf.kl_robustness, encoder, images, pgd(), scale=scale)
