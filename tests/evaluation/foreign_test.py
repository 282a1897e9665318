"""Anybody's classifiers: what is found out about them, and what is refused."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from scipy import special
from small_models import sequential

from urkle_tf.evaluation import foreign, graphs, scoring, smoothing
from urkle_tf.networks.saved import foreign_models

SHAPE, CLASSES = (4, 4, 1), 5


@pytest.fixture(scope="module")
def weights():
  return np.random.default_rng(1).normal(size=(16, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(2).uniform(0.05, 0.95, size=(12, *SHAPE)).astype(np.float32)


def linear(images, weights):
  return tf.reshape(images, [-1, 16]) @ weights


def foreign_model(function, images, size=SHAPE):
  return foreign.Foreign(foreign_models.Loaded(function, size, "SavedModel", "0" * 16, "m"), images)


def gradient(values, images, column=1):
  images = tf.constant(images)
  with tf.GradientTape() as tape:
    tape.watch(images)
    total = tf.reduce_sum(values(images)[:, column])
  return tape.gradient(total, images)


def attack_logits(model):
  return lambda images: model.frozen().head(images)


def test_logits_come_from_under_the_softmax(weights, images):
  model = foreign_model(lambda x: tf.nn.softmax(1000 * linear(x, weights)), images)
  assert model.metadata["outputs"] == "probabilities"
  assert model.metadata["logits"] == "recovered"
  wanted = 1000 * images.reshape(12, 16) @ weights
  np.testing.assert_allclose(model.head(images), wanted, rtol=1e-5)
  # Scored, they are what the probabilities' logarithm would be if it had the digits.
  found = scoring.Scorer(model, 12)(images)["deterministic"]
  np.testing.assert_allclose(found, tf.nn.log_softmax(wanted), rtol=1e-4, atol=1e-3)
  assert found.min() < -1000
  assert "read from under its softmax" in " ".join(model.notes)


def test_logits_come_from_under_a_softmax_of_its_own(weights, images):
  def function(x):
    raised = tf.exp(200 * (linear(x, weights) - tf.reduce_max(linear(x, weights), 1)[:, None]))
    return raised / tf.reduce_sum(raised, 1, keepdims=True)

  model = foreign_model(function, images)
  assert model.metadata["logits"] == "recovered"
  wanted = tf.nn.log_softmax(200 * images.reshape(12, 16) @ weights)
  np.testing.assert_allclose(tf.nn.log_softmax(model.head(images)), wanted, rtol=1e-3, atol=1e-3)


def test_probabilities_without_logits_are_floored_and_reported(weights, images):
  def function(x):
    each = tf.nn.softmax(tf.stack([200 * linear(x, weights), 150 * linear(x, weights)]))
    return tf.reduce_mean(each, 0)

  model = foreign_model(function, images)
  assert model.metadata["logits"] == "not recovered"
  wanted = np.maximum(function(images), foreign.FLOOR)
  np.testing.assert_allclose(model.head(images), np.log(wanted), rtol=1e-5)
  share = np.mean((wanted.max(1) == 1) | (np.asarray(function(images)).min(1) == 0))
  assert share > 0.5
  assert model.metadata["saturated"] == pytest.approx(share)
  assert f"{100 * share:.0f}%" in " ".join(model.notes)


def test_logits_are_taken_as_they_are(weights, images):
  model = foreign_model(lambda x: linear(x, weights), images)
  assert (model.metadata["outputs"], model.metadata["logits"]) == ("logits", "given")
  assert model.metadata["gradients"]["bridged"] == []
  np.testing.assert_allclose(model.head(images), images.reshape(12, 16) @ weights, rtol=1e-5)


# {name: (the step, an operation that is crossed, the slope of the line in its place)}
STEPS = {
  "round": (lambda x: tf.round(8 * x) / 8, "Round", 1),
  "integers": (lambda x: tf.cast(tf.cast(8 * x, tf.int32), tf.float32) / 8, "Cast", 1),
  "bytes": (lambda x: tf.cast(tf.cast(255 * x, tf.uint8) // 32, tf.float32) / 8, "Cast", 255 / 8),
  "floor division": (lambda x: tf.math.floordiv(x, 0.125) * 0.125, "FloorDiv", 1),
  "threshold": (lambda x: tf.cast(x > 0.5, tf.float32), "Greater", 1),
  "threshold and more": (lambda x: tf.cast(x >= 0.5, tf.float32), "GreaterEqual", 1),
  "falling threshold": (lambda x: 1 - tf.cast(x < 0.5, tf.float32), "Less", 1),
  "choice": (lambda x: tf.where(x <= 0.5, 0.25, 0.75), "SelectV2", 0.5),
  "several": (lambda x: tf.math.ceil(tf.math.rint(8 * x)) / 8 + tf.sign(x - 0.5), "Sign", 2),
  "stopped": (tf.stop_gradient, "StopGradient", 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_gradients_cross_steps(weights, images, name):
  step, operation, slope = STEPS[name]
  model = foreign_model(lambda x: tf.nn.softmax(linear(step(x), weights)), images)
  own = model.metadata["gradients"]
  assert own["zero"] == 1.0
  assert own["zero_bridged"] == 0.0
  assert operation in own["bridged"]
  assert "masked" in " ".join(model.notes)
  # The values are the model's own, the gradient is that of a line in the place of the step.
  wanted = linear(step(tf.constant(images)), weights)
  np.testing.assert_allclose(attack_logits(model)(images), wanted, rtol=1e-4, atol=1e-5)
  found = gradient(attack_logits(model), images).numpy()
  straight = np.broadcast_to(weights[:, 1].reshape(SHAPE), found.shape)
  np.testing.assert_allclose(found, slope * straight, rtol=1e-4)
  # And without that nothing would be left.
  plain = gradient(model.own_gradients().head, images)
  assert plain is None or not np.any(plain)


def test_a_custom_gradient_cannot_hide_the_models_own(weights, images):
  @tf.custom_gradient
  def hidden(x):
    return tf.identity(x), tf.zeros_like

  model = foreign_model(lambda x: linear(hidden(x), weights), images)
  found = gradient(attack_logits(model), images).numpy()
  np.testing.assert_allclose(found[0], weights[:, 1].reshape(SHAPE), rtol=1e-5)


INSIDE = {
  "argmax": lambda z: tf.one_hot(tf.argmax(z, 1), CLASSES),
  "argmax of a softmax": lambda z: tf.one_hot(tf.argmax(tf.nn.softmax(z), 1, tf.int32), CLASSES),
}


@pytest.mark.parametrize("name", INSIDE)
def test_scores_inside_are_attacked_where_outputs_say_nothing(weights, images, name):
  model = foreign_model(lambda x: INSIDE[name](linear(x, weights)), images)
  assert model.metadata["attacked"] == "inner scores"
  assert "climb scores inside the model" in " ".join(model.notes)
  # Scored are the outputs themselves.
  outputs = INSIDE[name](linear(images, weights))
  kept = np.log(np.maximum(outputs, foreign.FLOOR))
  np.testing.assert_allclose(model.head(images), kept, rtol=1e-4, atol=1e-6)
  assert np.mean(gradient(attack_logits(model), images) != 0) > 0.5


def smoothed(model):
  """What smoothing sums over noisy copies."""
  context = types.SimpleNamespace(kind="foreign", model=model, modes=model.modes)
  return smoothing._function(context)


def test_smoothing_certifies_the_outputs_and_not_the_scores_inside(weights, images):
  """Beyond [0, 1] the outputs are class 3, which the scores inside do not know."""

  def function(x):
    beyond = tf.reduce_any((x < 0) | (x > 1), [1, 2, 3])
    return tf.one_hot(tf.where(beyond, 3, tf.argmax(linear(x, weights), 1, tf.int32)), CLASSES)

  model = foreign_model(function, images)
  assert model.metadata["attacked"] == "inner scores"
  classes = smoothed(model)
  found = classes(tf.constant(images) + 2.0, tf.constant([1, 2]))
  assert np.all(np.argmax(found, 1) == 3)


@pytest.mark.parametrize("draw", [tf.random, tf.random.Generator.from_seed(1)], ids=["op", "state"])
def test_each_copy_of_smoothing_has_a_draw_of_its_own(images, draw):
  """Of a classifier with one draw a call, which gives class 1 to all images of 7 calls in 10."""
  keras.utils.set_random_seed(0)  # else one in 43 has the same in all calls that look for noise

  def function(x):
    chosen = tf.cast(draw.uniform([]) < 0.7, tf.float32)
    return tf.tile([[0.0, chosen, 0.5]], [tf.shape(x)[0], 1])

  model = foreign_model(function, images)
  assert model.stochastic
  classes = smoothed(model)
  noisy = smoothing.Noisy(classes, 0.1, batch_size=100)
  counts = noisy.sum(images[0], 400, tf.constant([1, 2]))
  assert counts.sum() == 400
  # Five standard deviations of 400 throws; with draws that are shared it is a multiple of 100.
  assert abs(counts[1] - 280) < 5 * np.sqrt(400 * 0.7 * 0.3)
  assert counts[1] % 100


@pytest.mark.parametrize("falling", [False, True])
def test_of_several_thresholds_the_nearest_is_crossed(rng, falling):
  """A thermometer code: each pixel gets the weight of the level that is next to it."""
  levels = np.array([0.2, 0.5, 0.9], np.float32)
  weights = rng.normal(size=(16 * 3, CLASSES)).astype(np.float32)
  images = rng.uniform(size=(12, *SHAPE)).astype(np.float32)

  def function(x):
    exceeds = levels > x if falling else x > levels
    return tf.reshape(tf.cast(exceeds, tf.float32), [-1, 48]) @ weights

  model = foreign_model(function, images)
  assert model.metadata["gradients"]["zero"] == 1
  found = gradient(attack_logits(model), images)
  nearest = np.abs(images - levels).argmin(-1).reshape(12, 16)
  wanted = weights[:, 1].reshape(16, 3)[np.arange(16), nearest].reshape(images.shape)
  np.testing.assert_allclose(found, -wanted if falling else wanted, rtol=1e-5)


def look_up(x, table):
  """Nothing of the images' shape goes in or comes out."""
  return tf.gather(table, tf.cast(tf.reduce_sum(x, [1, 2, 3]), tf.int32))


def in_doubles(x, table):
  """The threshold's gradient would be of another type."""
  return linear(tf.cast(tf.cast(x, tf.float64) > 0.5, tf.float32), table[:16])


@pytest.mark.parametrize("function", [look_up, in_doubles])
def test_what_cannot_be_bridged_is_reported(images, function):
  table = tf.constant(np.random.default_rng(0).normal(size=(50, CLASSES)).astype(np.float32))
  model = foreign_model(lambda x: function(x, table), images)
  assert model.metadata["gradients"] == {"zero": 1.0, "zero_bridged": 1.0, "bridged": []}
  assert "could not be bridged" in " ".join(model.notes)


def assert_seeded(model, images, draws):
  assert model.stochastic
  assert model.metadata["noise"] == "seeded"
  seeds = (tf.constant(seed) for seed in ([1, 2], [1, 2], [1, 3]))
  one, again, other = (model.from_representation(images, None, s, draws).numpy() for s in seeds)
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-3


def test_noise_is_found_and_seeded(weights, images):
  noise = lambda x: tf.random.normal([tf.shape(x)[0], CLASSES])  # noqa: E731
  model = foreign_model(lambda x: tf.nn.softmax(linear(x, weights) + noise(x)), images)
  assert (model.modes, model.metadata["logits"]) == (("sampled",), "recovered")
  assert_seeded(model, images, draws=1)
  # The limit of many draws, by NumPy.
  rng = np.random.default_rng(0)
  logits = images.reshape(12, 16) @ weights + rng.normal(size=(20000, 12, CLASSES))
  wanted = special.softmax(logits, -1).mean(0)
  found = np.exp(scoring.Scorer(model, 12, samples=2000)(images)["sampled"])
  np.testing.assert_allclose(found, wanted, atol=0.03)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)


def two_draws(shape):
  """Nothing, if both were the same."""
  return tf.random.uniform(shape) - tf.random.uniform(shape)


@pytest.mark.parametrize(
  "draw, low, high",
  [(tf.random.uniform, 0, 1), (tf.random.truncated_normal, -2, 2), (two_draws, -1, 1)],
)
def test_noise_keeps_its_distribution_when_it_is_seeded(weights, images, draw, low, high):
  model = foreign_model(lambda x: linear(x, weights) + draw([tf.shape(x)[0], CLASSES]), images)
  assert_seeded(model, images, draws=1)
  noise = [model._values(images, tf.constant([1, k])) - linear(images, weights) for k in range(10)]
  assert low - 1e-5 < np.min(noise) < low + 0.3
  assert high - 0.3 < np.max(noise) < high + 1e-5


def test_noise_of_a_fixed_seed_is_part_of_the_model(weights, images):
  noise = lambda: tf.random.stateless_normal([CLASSES], [1, 2])  # noqa: E731
  model = foreign_model(lambda x: tf.nn.softmax(linear(x, weights) + noise()), images)
  assert not model.stochastic
  assert model.metadata["logits"] == "recovered"


def test_noise_of_few_values_is_found(weights, images):
  calls = tf.Variable(0)

  def function(x):  # every fourth call differs
    with tf.control_dependencies([calls.assign_add(1)]):
      return linear(x, weights) + tf.cast(calls.read_value() % 4 == 0, tf.float32)

  assert foreign_model(function, images).stochastic


def test_layers_with_noise_of_their_own_are_seeded(images):
  keras.utils.set_random_seed(0)
  noise, last = keras.layers.GaussianNoise(0.5), keras.layers.Dense(CLASSES)
  network = sequential(SHAPE, noise, keras.layers.Flatten(), last)
  assert_seeded(foreign_model(lambda x: network(x, training=True), images), images, draws=3)


def test_gradients_of_the_mean_over_draws(weights, images):
  noise = lambda x: tf.random.normal([tf.shape(x)[0], CLASSES])  # noqa: E731
  model, seed = foreign_model(lambda x: linear(x, weights) + noise(x), images), tf.constant([4, 5])
  draw = lambda x, i: tf.nn.log_softmax(model._values(x, graphs.distribution.fold(seed, i)))  # noqa: E731
  mean = lambda x: tf.math.log(sum(tf.exp(draw(x, i)) for i in range(4)) / 4)  # noqa: E731
  run = lambda x: model.frozen().from_representation(x, None, seed, 4)  # noqa: E731
  np.testing.assert_allclose(run(images), mean(images), rtol=1e-4, atol=1e-6)
  found, wanted = gradient(tf.function(run), images), gradient(mean, images)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


# Files.


@pytest.fixture(scope="module")
def network():
  keras.utils.set_random_seed(0)
  convolution = keras.layers.Conv2D(3, 3, activation="silu")
  norm, pool = keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()
  last = keras.layers.Dense(CLASSES, activation="softmax")
  return sequential((None, None, 1), convolution, norm, pool, last)


@pytest.mark.parametrize("kind", ["keras", "saved"])
def test_files_are_read(network, images, tmp_path, kind):
  path = tmp_path / ("model.keras" if kind == "keras" else "model")
  if kind == "keras":
    network.save(path)
  else:
    network.export(str(path), verbose=False)
  assert foreign_models.is_foreign(path)
  loaded = foreign_models.load(path)
  assert loaded.image_size == (None, None, 1)
  assert loaded.size_for((4, 4, 1)) == (4, 4, 1)
  model = foreign.Foreign(loaded, images)
  assert model.metadata["logits"] == "recovered"
  assert model.classes == CLASSES
  found = tf.nn.softmax(model.head(images))
  np.testing.assert_allclose(found, network(images), rtol=1e-4, atol=1e-6)
  assert model.metadata["gradients"]["zero"] < 0.1
  assert len(loaded.fingerprint) == 16


@pytest.mark.parametrize(
  "function, message",
  [
    (lambda x: tf.reduce_sum(x, [1, 2, 3]), "at least 2 classes, but returns a single number"),
    (lambda x: tf.reduce_sum(x, [1, 2]), "at least 2 classes, but returns 1 per image"),
    (lambda x: x, "at least 2 classes, but returns 4x4x1"),
    (lambda x: tf.math.log(tf.reshape(x, [-1, 16]) - 1), "returns NaN or infinite values"),
    (lambda x: tf.reshape(x, [-1, 7]), "fails on images of 4x4x1"),
  ],
)
def test_scores_that_are_none_are_refused(images, function, message):
  refuses(message, foreign_model, function, images)


def test_a_model_of_0_to_255_is_refused(rng):
  # Right where the first pixel exceeds 100.
  images = rng.uniform(size=(40, *SHAPE)).astype(np.float32)
  labels = (255 * images[:, 0, 0, 0] > 100).astype(int)
  function = lambda x: tf.stack([tf.fill([tf.shape(x)[0]], 100.0), x[:, 0, 0, 0]], 1)  # noqa: E731
  wrong, right = (foreign_model(f, images) for f in (function, lambda x: function(255 * x)))
  words = "pixels in 0-255: 100% of & Put keras.layers.Rescaling(255"
  refuses(words, foreign.check_range, wrong, images, labels)
  foreign.check_range(right, images, labels)
