"""The KL from a frozen original: value and gradients against plain versions, at f other than f0."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from urkle_tf import networks, pretexts, robustness
from urkle_tf.robustness import anchored

SPREAD, SIGMA = 2.0, 0.25


@pytest.fixture
def encoder():
  """f(x) = tanh(x W): a network whose sigma is 0.25 * 2."""
  keras.utils.set_random_seed(0)
  images = keras.Input((2, 2, 1))
  features = keras.layers.Dense(5, activation="tanh")(keras.layers.Flatten()(images))
  encoder = networks.GaussianEncoder(
    keras.Model(images, features), None, SIGMA, SIGMA, preprocess=lambda x: x, loc="pooled"
  )
  encoder.calibrate(SPREAD)
  return encoder


@pytest.fixture
def pairs(rng):
  """(f0(x), x'): neither of them knows the encoder."""
  return rng.normal(size=(6, 5)).astype("float32"), rng.uniform(size=(6, 2, 2, 1)).astype("float32")


def plain(encoder, embeddings, images):
  """(|f(x') - f0(x)|^2 / (2 s^2), its gradient by x'), in NumPy."""
  (dense,) = [w.numpy() for w in encoder.weights if w.shape == (4, 5)]
  f = np.tanh(images.reshape(6, 4) @ dense)  # the bias is 0
  s2 = (SIGMA * SPREAD) ** 2
  gradient = ((f - embeddings) * (1 - f**2) / s2) @ dense.T
  return np.square(f - embeddings).sum(1) / (2 * s2), gradient.reshape(images.shape)


def test_the_objective_and_its_gradient(encoder, pairs):
  embeddings, neighbours = pairs
  objective = anchored.objective(encoder, tf.constant(embeddings))
  with tf.GradientTape() as tape:
    x = tf.constant(neighbours)
    tape.watch(x)
    value = objective(x)
  wanted, gradient = plain(encoder, embeddings, neighbours)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(tape.gradient(value, x), gradient, rtol=1e-4, atol=1e-4)


def test_the_loss_and_its_gradient_by_weights(encoder, pairs):
  """The clean embedding f(x), the first member, has no part in it."""
  embeddings, neighbours = pairs
  scheme = robustness.Urkle(beta=0.3, anchor="original")
  scheme.attach(encoder, pretexts.Keep.__new__(pretexts.Keep))
  (kernel,) = [w for w in encoder.trainable_weights if w.shape == (4, 5)]
  members = np.stack([np.zeros_like(neighbours), neighbours], 1).reshape(12, 2, 2, 1)
  with tf.GradientTape() as tape:
    representations = networks.Representations.of(encoder(members, training=True), 2)
    aux = tf.constant(embeddings[:, None])
    ((weight, rows),) = scheme.losses(None, representations, 1, aux).values()
    loss = tf.reduce_sum(rows)
  found = tape.gradient(loss, kernel.value)
  f = np.tanh(neighbours.reshape(6, 4) @ kernel.numpy())
  s2 = (SIGMA * SPREAD) ** 2
  assert weight == 0.3
  np.testing.assert_allclose(rows, plain(encoder, embeddings, neighbours)[0], rtol=1e-5)
  wanted = neighbours.reshape(6, 4).T @ ((f - embeddings) * (1 - f**2) / s2)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_learnt_sigma_is_best_where_it_covers_the_difference_of_means(encoder, pairs):
  """KL[N(a, s0) || N(b, s)] has its minimum at s^2 = s0^2 + (a - b)^2."""
  learnt = types.SimpleNamespace(min_scale=SIGMA, max_scale=1.0, spread=encoder.spread)
  p0 = anchored.original(learnt, tf.constant(pairs[0]))
  np.testing.assert_allclose(p0.scale, np.full((6, 5), SIGMA * SPREAD))
  difference = 0.7
  scales = np.linspace(0.3, 2.0, 3401)
  q = type(p0)(p0.loc[:1, :1] + difference, scales[:, None].astype("float32"))
  best = scales[np.argmin(networks.kl(type(p0)(p0.loc[:1, :1], p0.scale[:1, :1]), q))]
  assert best**2 == pytest.approx((SIGMA * SPREAD) ** 2 + difference**2, rel=5e-3)


def test_anchor_and_keep_go_together():
  refuses("anchor must be original", robustness.Urkle, anchor="clean")
  refuses("go together", robustness.Urkle(anchor="original").check, pretexts.SimCLR())
