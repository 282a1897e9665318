"""The VAE and the autoencoder: their losses against NumPy, and their refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from scipy import special, stats
from small_models import representations, sequential

from urkle_tf import networks, pretexts

SHAPE = (6, 6, 1)


def _encoder(latent_dim=4, shape=SHAPE):
  return networks.GaussianEncoder(
    networks.convnet(shape, width=4, layers=2), latent_dim, loc="dense"
  )


def _attached(pretext):
  keras.utils.set_random_seed(0)
  pretext.attach(_encoder())
  return pretext


def _tuples(n=5, members=2):
  rng = np.random.default_rng(0)
  loc, scale = rng.normal(size=(n, members, 4)), rng.uniform(0.2, 0.9, (n, members, 4))
  return representations(loc, scale, loc + scale * rng.normal(size=loc.shape))


def _images(n=5):
  return np.random.default_rng(1).uniform(size=(n, 1, *SHAPE)).astype("float32")


def _logits(pretext, representations, training=True):
  z = np.reshape(representations.z, (-1, 4))
  logits = pretext.decoder(z, training=training).numpy().astype(np.float64)
  return logits.reshape(5, -1, *SHAPE)


@pytest.mark.parametrize("deviation", [1.0, 0.3])
def test_gaussian_vae_is_the_negative_log_likelihood_plus_the_prior(deviation):
  pretext = _attached(pretexts.VAE(beta=0.25, deviation=deviation, width=4, layers=2))
  drawn, images = _tuples(), _images()
  loss = pretext.loss(drawn, pretext.prepare(tf.constant(images), {}))
  mean = special.expit(_logits(pretext, drawn))
  likelihood = stats.norm.logpdf(np.broadcast_to(images, mean.shape), mean, deviation)
  constant = np.prod(SHAPE) * np.log(deviation * np.sqrt(2 * np.pi))
  expected = -likelihood.sum((2, 3, 4)).mean(1) - constant
  np.testing.assert_allclose(loss["reconstruction"], expected, rtol=1e-4)
  m, s = np.float64(drawn.normal.loc), np.float64(drawn.normal.scale)
  prior = 0.5 * (s**2 + m**2 - 1 - 2 * np.log(s)).sum(-1).mean(1)
  np.testing.assert_allclose(loss["prior_kl"], 0.25 * prior, rtol=1e-5)


def test_bernoulli_vae_is_the_cross_entropy_of_pixels():
  pretext = _attached(pretexts.VAE(likelihood="bernoulli", width=4, layers=2))
  drawn, images = _tuples(), _images()
  loss = pretext.loss(drawn, pretext.prepare(tf.constant(images), {}))
  p = special.expit(_logits(pretext, drawn))
  expected = -(images * np.log(p) + (1 - images) * np.log1p(-p)).sum((2, 3, 4)).mean(1)
  np.testing.assert_allclose(loss["reconstruction"], expected, rtol=1e-4)
  assert not np.any(loss["prior_kl"])


@pytest.mark.parametrize("training", [False, True])
def test_autoencoder_is_the_squared_distance(training):
  pretext = _attached(pretexts.AE(width=4, layers=2))
  drawn, images = _tuples(members=1), _images()
  loss = pretext.loss(drawn, pretext.prepare(tf.constant(images), {}), training)
  mean = special.expit(_logits(pretext, drawn, training))
  expected = ((images - mean) ** 2).sum((1, 2, 3, 4))
  np.testing.assert_allclose(loss["reconstruction"], expected, rtol=1e-4)


def test_every_member_is_decoded_into_the_first_view():
  """An adversary too: its own pixels are not what it has to tell."""
  pretext = _attached(pretexts.VAE(width=4, layers=2))
  views = np.random.default_rng(0).uniform(size=(3, 1, *SHAPE)).astype("float32")
  np.testing.assert_array_equal(pretext.prepare(tf.constant(views), {}), views[:, 0])


def test_divergence_is_the_squared_difference_of_reconstructions():
  pretext = _attached(pretexts.AE(width=4, layers=2))
  one, other = pretext.predict(tf.zeros([2, 4])), pretext.predict(tf.ones([2, 4]))
  expected = np.sum((np.float64(one) - np.float64(other)) ** 2, (1, 2, 3))
  np.testing.assert_allclose(pretext.divergence(one, other), expected, rtol=1e-5)
  assert float(tf.reduce_min(one)) >= 0
  assert float(tf.reduce_max(one)) <= 1
  np.testing.assert_allclose(pretext.inference()(tf.ones([2, 4])), other, atol=1e-5)  # for attacks


def test_a_decoder_of_ones_own():
  decoder = sequential((4,), keras.layers.Dense(36), keras.layers.Reshape(SHAPE))
  pretext = _attached(pretexts.VAE(decoder=decoder))
  assert pretext.loss(_tuples(), _images()[:, 0])["reconstruction"].shape == (5,)


@pytest.mark.parametrize("latent_dim, size", [(4, (5, 5, 1)), (4, (6, 6, 3)), (3, SHAPE)])
def test_a_decoder_that_does_not_fit_is_refused(latent_dim, size):
  decoder = networks.decoder(latent_dim, size, width=2, layers=1)
  for kind in (pretexts.VAE, pretexts.AE):
    refuses("decoder maps", kind(decoder=decoder).attach, _encoder())
