"""Urkle's terms, what its attack maximises, and the regulariser on its own."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same

import urkle_tf
from urkle_tf import attacks, errors, networks, pretexts, robustness
from urkle_tf.networks.kl import kl_objective

tfd = tfp.distributions


@pytest.fixture(scope="module")
def encoder():
  tf.keras.utils.set_random_seed(0)
  model = networks.GaussianEncoder(networks.convnet((8, 8, 1), width=8, layers=2), 6, loc="dense")
  images = np.random.default_rng(1).uniform(size=(64, 8, 8, 1)).astype("float32")
  for _ in range(20):  # moving averages near the data's
    model(images, training=True)
  return model


def _images(n=8):
  return tf.constant(np.random.default_rng(2).uniform(size=(n, 8, 8, 1)), tf.float32)


def _scheme(**options):
  scheme, pretext = robustness.Urkle(**options), pretexts.SimCLR()
  scheme.check(pretext)
  scheme.attach(types.SimpleNamespace(max_scale=0.25, latent_dim=4), pretext)
  return scheme


def _numpy_kl(p, q):
  (mp, sp), (mq, sq) = ((np.float64(n.loc), np.float64(n.scale)) for n in (p, q))
  return (np.log(sq / sp) + (sp**2 + (mp - mq) ** 2) / (2 * sq**2) - 0.5).sum(-1)


def test_objective_is_kl_from_the_clean_image_in_inference_mode(encoder):
  clean, near = _images(), _images() + 0.01
  before = [v.numpy() for v in encoder.non_trainable_variables]
  value = kl_objective(encoder, clean)(near)
  expected = _numpy_kl(encoder(clean, training=False), encoder(near, training=False))
  np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)
  same(before, encoder.non_trainable_variables)


@pytest.mark.parametrize("attacked", [1, 2])
def test_the_term_is_the_mean_kl_of_the_attacked_views(rng, attacked):
  scheme = _scheme(beta=0.3, attacked=attacked)
  loc = rng.normal(size=(5, 2 + attacked, 3)).astype("float32")
  normal = tfd.Normal(loc, np.full_like(loc, 0.7))
  ((weight, value),) = scheme.losses(None, networks.Representations(normal, loc), 2, None).values()
  assert weight == 0.3
  pairs = [
    _numpy_kl(*(tfd.Normal(loc[:, k], normal.scale[:, k]) for k in (view, 2 + view)))
    for view in range(attacked)
  ]
  np.testing.assert_allclose(value, np.mean(pairs, 0), rtol=1e-5)
  views = rng.uniform(size=(3, 2, 4, 4, 1)).astype("float32")
  np.testing.assert_array_equal(scheme.targets(views), views[:, :attacked])


def test_adversaries_are_positives_until_that_is_switched_off():
  for positives, members in ((True, [0, 1, 2, 3]), (False, [0, 1])):
    assert [list(m) for _, m in _scheme(positives=positives).tuples(2, 2)] == [members]


def test_kl_is_minimised_through_both_arguments():
  loc = tf.Variable(tf.random.normal((3, 4, 2)))
  with tf.GradientTape() as tape:
    normal = tfd.Normal(tf.identity(loc), tf.ones((3, 4, 2)))
    _, value = _scheme().losses(None, networks.Representations(normal, normal.loc), 2, None)["kl"]
  gradient = tape.gradient(value, loc).numpy()
  assert (np.abs(gradient) > 0).all()


def test_kl_robustness_is_the_worst_kl_and_trains_the_encoder(encoder):
  images, attack = _images(), attacks.PGD(attacks.Linf(0.05), steps=5)
  with tf.GradientTape() as tape:
    value = urkle_tf.kl_robustness(encoder, images, attack, seed=[0, 1])
  adversaries = attack(kl_objective(encoder, images), images, [0, 1])
  expected = _numpy_kl(encoder(images, training=False), encoder(adversaries, training=False))
  np.testing.assert_allclose(value, expected, rtol=1e-3)
  gradients = tape.gradient(value, encoder.trainable_variables)
  assert all(g is not None for g in gradients)


def test_more_attacked_views_than_there_are():
  with pytest.raises(errors.UserError, match="2 views"):
    _scheme(attacked=3)
