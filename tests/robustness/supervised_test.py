"""TRADES and adversarial training: what they attack, train on and add."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import slow
from scipy import special
from small_models import representations, small_encoder, tiny_encoder, tiny_trainer

import urkle_tf
from urkle_tf import attacks, pretexts, robustness


@pytest.fixture(scope="module")
def cell():
  """A small supervised network whose batch norms have seen data."""
  encoder, pretext = small_encoder(), pretexts.Supervised(outputs=3, width=8)
  pretext.attach(encoder)
  images = np.random.default_rng(1).uniform(size=(64, 8, 8, 1)).astype("float32")
  for _ in range(20):
    pretext.predict(encoder(images, training=True).loc, training=True)
  return encoder, pretext


def _images(n=8):
  return tf.constant(np.random.default_rng(2).uniform(size=(n, 8, 8, 1)), tf.float32)


def _log_probabilities(cell, images):
  encoder, pretext = cell
  logits = pretext.network(encoder(images, training=False).loc, training=False)
  return special.log_softmax(np.float64(logits), -1)


def test_trades_attacks_the_kl_of_predictions_in_inference_mode(cell):
  images, near = _images(), _images() + 0.05
  before = [v.numpy() for v in (*cell[0].variables, *cell[1].variables)]
  value = robustness.Trades().objective(*cell, images[:, None], None)(near)
  p, q = _log_probabilities(cell, images), _log_probabilities(cell, near)
  np.testing.assert_allclose(value, np.sum(np.exp(p) * (p - q), -1), rtol=1e-3, atol=1e-6)
  same(before, (*cell[0].variables, *cell[1].variables))


def test_adversarial_training_attacks_the_cross_entropy(cell):
  images, labels = _images(), np.arange(8) % 3
  objective = robustness.AdversarialTraining().objective(*cell, images[:, None], labels)
  expected = -_log_probabilities(cell, images)[np.arange(8), labels]
  np.testing.assert_allclose(objective(images), expected, rtol=1e-4)
  found = attacks.PGD(attacks.Linf(0.1), steps=5)(objective, images, [0, 1])
  assert np.all(objective(found) > expected)


def test_trades_term_is_the_divergence_times_beta(cell):
  _, pretext = cell
  loc = np.random.default_rng(0).normal(size=(5, 2, 6)).astype("float32")
  drawn = representations(loc, 0.1)
  ((weight, value),) = robustness.Trades().losses(pretext, drawn, 1, None).values()
  logits = np.float64(pretext.network(loc.reshape(-1, 6), training=True)).reshape(5, 2, 3)
  p, q = special.log_softmax(logits[:, 0], -1), special.log_softmax(logits[:, 1], -1)
  assert weight == 6.0
  np.testing.assert_allclose(value, np.sum(np.exp(p) * (p - q), -1), rtol=1e-3, atol=1e-6)


def test_trades_term_is_minimised_through_both_predictions(rng):
  """Gradients by hand of KL[p || q], with logits that are linear in z."""
  pretext = pretexts.Supervised(outputs=3, layers=1)
  pretext.attach(tiny_encoder(4))
  loc = tf.constant(rng.normal(size=(5, 2, 4)), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch(loc)
    terms = robustness.Trades().losses(pretext, representations(loc), 1, None)
    total = tf.reduce_sum(terms["divergence"][1])
  found = tape.gradient(total, loc)
  kernel, bias = pretext.network.get_weights()
  log_p, log_q = special.log_softmax(np.float64(loc) @ kernel + bias, -1).transpose(1, 0, 2)
  p, q = np.exp(log_p), np.exp(log_q)
  divergence = np.sum(p * (log_p - log_q), -1, keepdims=True)
  by_logits = np.stack([p * (log_p - log_q - divergence), q - p], 1)
  np.testing.assert_allclose(found, by_logits @ kernel.T, rtol=1e-3, atol=1e-5)


def _trained(scheme, epochs=1):
  pretext = pretexts.Supervised(outputs=3, width=8)
  trainer = tiny_trainer(scheme, pretext=pretext, optimizer=keras.optimizers.SGD(0.05))
  rows = {"views": _images(16)[:, None], "label": np.arange(16) % 3}
  data = tf.data.Dataset.from_tensor_slices(rows).batch(16)
  trainer.fit(data, epochs=epochs, verbose=0)
  return trainer, {k: float(v) for k, v in trainer.get_metrics_result().items()}


@pytest.mark.parametrize("beta", [3.0, *slow(0.0)])
def test_trades_loss_is_the_clean_loss_plus_the_term(beta):
  _, row = _trained(robustness.Trades(beta=beta))
  assert row["divergence"] > 0
  expected = row["cross_entropy"] + beta * row["divergence"]
  assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_adversarial_training_sees_adversaries_alone():
  """A step on them equals a step of plain training with them as the data."""
  trainer, row = _trained(robustness.AdversarialTraining())
  assert "kl_mean_part" not in row
  plain, _ = _trained(robustness.Plain(), epochs=0)
  fresh, _ = _trained(robustness.AdversarialTraining(), epochs=0)
  seed = urkle_tf.distribution.fold(urkle_tf.distribution.fold([0, 0], 0), 1)
  labels = np.arange(16) % 3
  found, _ = fresh.adversaries(_images(16)[:, None], labels, seed, 0)
  plain.train_step({"views": found, "label": tf.constant(labels)})
  same(trainer.trainable_variables, plain.trainable_variables, atol=1e-5)
