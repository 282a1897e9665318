"""BYOL and SimSiam: losses against plain loops, targets, and the average that follows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import refused, slow
from small_models import learn_digits, representations, sequential, tiny_encoder, tiny_trainer

from urkle_tf import attacks, networks, pretexts, robustness
from urkle_tf.pretexts import _momentum, _pairs

SHAPE = (8, 8, 1)


SMALL = {"projector": 16, "projection": 5, "predictor": 16}


def _byol(**options):
  return pretexts.BYOL(**SMALL, **options)


def _attached(pretext):
  pretext.attach(tiny_encoder())
  return pretext


def _representations(rng, members, n=6):
  loc, scale = rng.normal(size=(2, n * members, 6)).astype("float32")
  normal = tfp.distributions.Normal(loc, np.abs(scale) + 0.1)
  return networks.Representations.of(normal, members, np.ones_like(loc))


def _cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def _to_other_views(predictions, targets):
  """Member m stems from view m % views and predicts every other view, term by term."""
  n, members, _ = predictions.shape
  views = targets.shape[1]
  values = []
  for i in range(n):
    terms = [
      _cosine(predictions[i, m], targets[i, k])
      for m in range(members)
      for k in range(views)
      if k != m % views
    ]
    values.append(np.mean(terms))
  return np.array(values)


@pytest.mark.parametrize("members, views", [(2, 2), (3, 2), (4, 2), (6, 3)])
def test_cosines_are_the_plain_loop(rng, members, views):
  predictions = rng.normal(size=(5, members, 7)).astype("float32")
  targets = rng.normal(size=(5, views, 7)).astype("float32")
  found = _pairs.cosine_to_other_views(predictions, targets)
  wanted = _to_other_views(predictions, targets)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_cosines_by_hand():
  # Views on two axes; each member predicts its own view: right for no pair.
  x, y = [3.0, 0.0], [0.0, 2.0]
  assert float(_pairs.cosine_to_other_views(np.float32([[x, y]]), np.float32([[x, y]]))[0]) == 0
  # Each predicts the other, and so does the adversary of the second, but that of the first not.
  predictions = np.float32([[y, x, x, x]])
  value = _pairs.cosine_to_other_views(predictions, np.float32([[x, y]]))
  np.testing.assert_allclose(value, [3 / 4], rtol=1e-6)


def _through(model, rows, training=True):
  flat = np.reshape(rows, (-1, rows.shape[-1]))
  return model(flat, training=training).numpy().reshape(*rows.shape[:-1], -1).astype(np.float64)


@pytest.mark.parametrize("members", [2, 4])
def test_byol_is_the_squared_distance_of_normalised_predictions(rng, members):
  pretext, drawn = _attached(_byol()), _representations(rng, members)
  targets = rng.normal(size=(6, 2, 5)).astype("float32")
  loss = pretext.loss(drawn, tf.constant(targets))["prediction"]
  q = _through(pretext.predictor, _through(pretext.projector, np.asarray(drawn.z)))
  q /= np.linalg.norm(q, axis=-1, keepdims=True)
  t = targets / np.linalg.norm(targets, axis=-1, keepdims=True)
  expected = [
    np.mean([np.sum((q[i, m] - t[i, 1 - m % 2]) ** 2) for m in range(members)]) for i in range(6)
  ]
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("members", [2, 4])
def test_simsiam_is_the_negative_cosine_to_clean_projections(rng, members):
  pretext, drawn = _attached(pretexts.SimSiam(**SMALL)), _representations(rng, members)
  loss = pretext.loss(drawn, None)["prediction"]
  projections = _through(pretext.projector, np.asarray(drawn.z))
  np.testing.assert_allclose(projections.mean((0, 1)), np.zeros(5), atol=1e-5)  # its last norm
  predictions = _through(pretext.predictor, projections)
  expected = -_to_other_views(predictions, projections[:, :2])
  np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-5)


def test_no_gradient_flows_through_simsiams_targets(rng):
  pretext = _attached(pretexts.SimSiam(**SMALL))
  pretext.projector = lambda z, training: z[:, :5] + z[:, 1:6]
  z = tf.Variable(rng.normal(size=(4, 2, 6)).astype("float32"))
  with tf.GradientTape(persistent=True) as tape:
    loss = tf.reduce_sum(pretext.loss(representations(z), None)["prediction"])
    projections = _pairs.through(pretext.projector, z, True)
    predictions = _pairs.through(pretext.predictor, projections, True)
    held = -tf.reduce_sum(
      _pairs.cosine_to_other_views(predictions, tf.constant(projections.numpy()))
    )
  np.testing.assert_allclose(tape.gradient(loss, z), tape.gradient(held, z), atol=1e-6)


def test_targets_are_those_of_the_copy_on_its_moving_statistics(rng):
  layers = keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)
  encoder, pretext = networks.GaussianEncoder(sequential(SHAPE, *layers)), _byol()
  views = rng.uniform(size=(5, 2, *SHAPE)).astype("float32")
  for _ in range(3):
    encoder(views[:, 0], training=True)  # statistics that differ from the initial ones
  pretext.attach(encoder)
  before = [v.numpy() for v in pretext.variables]
  targets = pretext.prepare(tf.constant(views), {})
  same(pretext.variables, before)
  assert targets.shape == (5, 2, 5)
  for k in range(2):
    loc = encoder.network(views[:, k], training=False)["loc"]
    expected = pretext.projector(loc, training=False)
    np.testing.assert_allclose(targets[:, k], expected, rtol=1e-4, atol=1e-6)
  for variable in [*encoder.network.weights, *pretext.projector.weights]:
    variable.assign(variable + 1.0)  # the copy does not
  # An image's target does not depend on other images.
  np.testing.assert_allclose(pretext.prepare(views[:2], {}), targets[:2], rtol=1e-4, atol=1e-6)


def test_weights_and_statistics_follow(rng):
  pretext = _byol(momentum=0.6)
  attack = attacks.PGD(attacks.Linf(0.1), steps=1)
  trainer = tiny_trainer(None, attack, pretext, keras.optimizers.SGD(0.1))
  models = [trainer.encoder.network, pretext.projector]
  read = lambda those: [v.numpy() for model in those for v in model.weights]  # noqa: E731
  names = [v.path for model in models for v in model.weights]
  assert any("moving_variance" in name for name in names)
  expected = read(models)
  for k in range(4):
    trainer.train_step({"views": tf.constant(rng.uniform(size=(8, 2, *SHAPE)), tf.float32)})
    m = min(0.6, k / (k + 1))  # 0, 1/2, 0.6, 0.6
    expected = [m * old + (1 - m) * new for old, new in zip(expected, read(models), strict=True)]
    for name, found, value in zip(names, read(pretext.target.models), expected, strict=True):
      np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=name)
  moved = [np.abs(a - b).max() for a, b in zip(expected, read(models), strict=True)]
  assert np.mean(np.array(moved) > 0) > 0.9  # they lag


def test_the_target_is_not_trained(rng):
  pretext = _byol()
  trainer = tiny_trainer(robustness.Plain(), pretext=pretext)
  trained = {id(v) for v in trainer.trainable_variables}
  target = [v for model in pretext.target.models for v in model.weights]
  assert not trained & {id(v) for v in target}
  assert {id(v) for v in target} < {id(v) for v in trainer.variables}  # checkpoints see them
  assert {id(v) for v in pretext.predictor.trainable_variables} < trained
  views = tf.constant(rng.uniform(size=(8, 2, *SHAPE)), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch([v.value for v in target])
    targets = tf.reduce_sum(pretext.prepare(views, {}))
  assert tape.gradient(targets, [v.value for v in target]) == [None] * len(target)


@pytest.mark.parametrize("progress, momentum", [(0.5, 0.95), *slow((0.0, 0.9), (1.0, 1.0))])
def test_the_momentum_rises_to_one(progress, momentum):
  pretext = _attached(_byol(momentum=0.9, rising=True))
  pretext.target.updates.assign(10)  # the plain mean, of m = 10 / 11, is over
  encoder = tiny_encoder()
  for variable in encoder.network.weights:
    variable.assign(tf.ones_like(variable.value))
  for variable in pretext.target.models[0].weights:
    variable.assign(tf.zeros_like(variable.value))
  pretext.after_step(encoder, tf.constant(progress))
  for variable in pretext.target.models[0].weights:
    np.testing.assert_allclose(variable, (1 - momentum) * np.ones(variable.shape), atol=1e-6)


def test_a_model_without_a_config_cannot_be_copied():
  class Odd(keras.layers.Layer):
    def __init__(self, width):
      super().__init__()
      self.width = width

    def call(self, inputs):
      return inputs * self.width

  inputs = keras.Input((3,))
  with refused(match="cannot be copied for a momentum encoder"):
    _momentum.MovingAverage([keras.Model(inputs, Odd(2)(inputs))], 0.9)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["byol", "simsiam"])
def test_digits_are_learnt_and_nothing_collapses(kind):
  pretext = {
    "byol": pretexts.BYOL(projector=64, projection=32, predictor=64),
    "simsiam": pretexts.SimSiam(projector=64, projection=64, predictor=16),
  }[kind]
  before, after, rank = learn_digits(pretext)
  assert after > before + 0.05
  assert rank > 3
