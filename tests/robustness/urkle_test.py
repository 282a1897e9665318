"""Urkle's terms, what its attack maximises, and the regulariser on its own."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same

import urkle_tf
from urkle_tf import attacks, errors, networks, pretexts, robustness
from urkle_tf.data import augment, pipeline, sources
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


def test_objective_has_no_gradient_at_the_clean_image(encoder):
  """Why an attack may not start there."""
  clean = _images()
  for images, zero in ((clean, True), (clean + 0.01, False)):
    with tf.GradientTape() as tape:
      tape.watch(images)
      value = kl_objective(encoder, clean)(images)
    gradient = tape.gradient(value, images)
    assert (float(tf.reduce_max(tf.abs(gradient))) < 1e-4) == zero


def test_the_attack_finds_a_worse_neighbour_than_chance(encoder):
  clean = _images()
  objective = kl_objective(encoder, clean)
  found = attacks.PGD(attacks.Linf(0.05), steps=10)(objective, clean, [0, 1])
  signs = np.sign(np.random.default_rng(0).normal(size=(20, *clean.shape)))
  chance = np.max([objective(tf.clip_by_value(clean + 0.05 * s, 0, 1)) for s in signs], axis=0)
  assert np.all(objective(found) > chance)


def test_terms_and_tuples_of_both_views():
  scheme = _scheme(beta=0.3)
  normal = tfd.Normal(
    np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32"),
    np.full((5, 4, 3), 0.7, "float32"),
  )
  ((weight, value),) = scheme.losses(
    None, networks.Representations(normal, normal.loc), 2, None
  ).values()
  one = tfd.Normal(normal.loc[:, :2], normal.scale[:, :2])
  two = tfd.Normal(normal.loc[:, 2:], normal.scale[:, 2:])
  assert weight == 0.3
  np.testing.assert_allclose(value, _numpy_kl(one, two).mean(1), rtol=1e-5)
  assert [list(members) for _, members in scheme.tuples(2, 2)] == [[0, 1, 2, 3]]


def test_adversaries_as_positives_can_be_switched_off():
  assert [list(m) for _, m in _scheme(positives=False).tuples(2, 2)] == [[0, 1]]


def test_one_attacked_view_is_the_first():
  scheme = _scheme(attacked=1)
  views = tf.random.uniform((3, 2, 4, 4, 1))
  np.testing.assert_array_equal(scheme.targets(views), views[:, :1])
  normal = tfd.Normal(tf.random.normal((3, 3, 2)), tf.ones((3, 3, 2)))
  _, value = scheme.losses(None, networks.Representations(normal, normal.loc), 2, None)["kl"]
  expected = 0.5 * tf.reduce_sum(tf.square(normal.loc[:, 0] - normal.loc[:, 2]), -1)
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_one_attacked_view_estimates_the_mean_of_both(encoder):
  """Of the same 600 images, the KL of the first view's adversary and that of all views'."""
  source = sources.load("digits", "train[:600]")
  recipe = augment.SimCLR(strength=0.5, flip=False)
  views = next(iter(pipeline.views(source, recipe, 600, seed=0)))["views"]
  attack = attacks.PGD(attacks.Linf(0.1), steps=3)
  found = np.stack(
    [urkle_tf.kl_robustness(encoder, views[:, k], attack, seed=[k, 0]) for k in range(2)]
  )
  difference = found[0] - found.mean(0)
  assert abs(difference.mean()) < 4 * difference.std() / 600**0.5  # unbiased
  assert difference.std() > 0.05 * found.mean()  # and not the same


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
