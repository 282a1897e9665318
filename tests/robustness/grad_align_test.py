"""How far a network bends: against finite differences, and 0 where it does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import refuses
from plain_losses import kl
from small_models import tiny_trainer

from urkle_tf import attacks, robustness
from urkle_tf.robustness._grad_align import misalignment

THREAT = attacks.Linf(0.3)


class Plain:
  """An encoder in NumPy and in TensorFlow: loc = tanh(k x A), scale = exp(x B)."""

  def __init__(self, rng, bend):
    self.a, self.b = rng.normal(size=(9, 4)), 0.1 * rng.normal(size=(9, 4))
    self.bend = bend

  def frozen(self):
    return self

  def __call__(self, images):
    rows = tf.reshape(images, [-1, 9])
    loc = tf.matmul(rows, tf.constant(self.a, tf.float32))
    scale = tf.matmul(rows, tf.constant(self.b, tf.float32))
    if self.bend:
      loc, scale = tf.tanh(self.bend * loc), tf.exp(scale)
    else:
      scale += 2.0
    return tfp.distributions.Normal(loc, scale)

  def numbers(self, row):
    loc, scale = np.tanh(self.bend * (row @ self.a)), np.exp(row @ self.b)
    return np.concatenate([loc, scale])


def test_a_linear_network_does_not_bend(rng):
  images = tf.constant(rng.uniform(0.3, 0.7, (5, 3, 3, 1)), tf.float32)
  np.testing.assert_allclose(misalignment(Plain(rng, 0), images, THREAT, [0, 1]), 0.0, atol=1e-5)


def test_against_finite_differences(rng):
  encoder = Plain(rng, 0.7)
  images = rng.uniform(0.3, 0.7, (3, 3, 3, 1)).astype(np.float32)
  found = misalignment(encoder, tf.constant(images), THREAT, [0, 1])
  starts = THREAT.random_start(tf.constant(images), [0, 1]).numpy()

  def gradient(function, at, h=1e-5):
    unit = np.eye(len(at))
    return np.array([(function(at + h * u) - function(at - h * u)) / (2 * h) for u in unit])

  def divergence(clean, outputs):
    return kl(*np.split(clean, 2), *np.split(outputs, 2)).sum()

  for image, start, value in zip(images, starts, found, strict=True):
    x, r = image.ravel().astype(float), start.ravel().astype(float)
    clean = encoder.numbers(x)
    cotangent = gradient(lambda o, clean=clean: divergence(clean, o), encoder.numbers(r))
    ones = [gradient(lambda p, c=cotangent: c @ encoder.numbers(p), at) for at in (x, r)]
    cosine = ones[0] @ ones[1] / np.linalg.norm(ones[0]) / np.linalg.norm(ones[1])
    assert float(value) == pytest.approx(1 - cosine, abs=1e-4)
  assert np.max(found) > 1e-3


def test_its_gradient_by_weights_holds_the_cotangent_constant(rng):
  """Against finite differences of 1 - cos(J(x)^T c, J(x + r)^T c) by the bend, c of the old one."""
  encoder, bend = Plain(rng, 0.7), tf.Variable(0.7)
  image = rng.uniform(0.3, 0.7, (1, 3, 3, 1)).astype(np.float32)
  places = [image, THREAT.random_start(tf.constant(image), [0, 1]).numpy()]
  x, r = (place.ravel().astype(np.float64) for place in places)

  def jacobian(at, bend):  # of (loc, scale), [8, 9]
    steep = bend * (1 - np.tanh(bend * (at @ encoder.a)) ** 2)
    return np.concatenate([(encoder.a * steep).T, (encoder.b * np.exp(at @ encoder.b)).T])

  (m, s), (n, t) = (np.split(encoder.numbers(at), 2) for at in (x, r))
  cotangent = np.concatenate([(n - m) / t**2, 1 / t - (s**2 + (m - n) ** 2) / t**3])

  def value(bend):
    one, other = (cotangent @ jacobian(at, bend) for at in (x, r))
    return 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)

  wanted = (value(0.7 + 1e-4) - value(0.7 - 1e-4)) / 2e-4
  encoder.bend = bend
  with tf.GradientTape() as tape:
    found = misalignment(encoder, tf.constant(image), THREAT, [0, 1])
  assert float(found[0]) == pytest.approx(value(0.7), abs=1e-4)
  assert float(tape.gradient(found, bend)) == pytest.approx(wanted, rel=1e-2)


def test_training_on_it_straightens_an_encoder(rng):
  """Its weight reaches the weights: a loss of nothing else falls."""
  views = rng.uniform(size=(8, 2, 8, 8, 1)).astype(np.float32)
  scheme, attack = robustness.Urkle(beta=0.0, align=100.0), attacks.RSFGSM(attacks.Linf(0.3))
  trainer = tiny_trainer(scheme, attack, optimizer=keras.optimizers.Adam(3e-3))
  data = tf.data.Dataset.from_tensors({"views": views}).repeat()
  history = trainer.fit(data, epochs=6, steps_per_epoch=5, verbose=0).history
  rows = {name: np.array(values) for name, values in history.items()}
  np.testing.assert_allclose(rows["loss"], rows["nt_xent"] + 100 * rows["misalignment"], rtol=1e-4)
  assert rows["misalignment"][-1] < 0.7 * rows["misalignment"][0]


def test_it_costs_nothing_unless_asked_for():
  assert robustness.Urkle().terms == ("kl",)
  assert robustness.Urkle().penalties(None, None, None, None) == {}
  refuses("align must be at least 0", robustness.Urkle, align=-1)
