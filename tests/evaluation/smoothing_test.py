"""Randomised smoothing: literal bounds, a linear classifier whose true radius is known."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from small_models import array_source, linear_classifier, linear_digits, linear_head, linear_network

from urkle_tf.evaluation import calibration, smoothing
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.measurements.smoothing import Smoothing
from urkle_tf.networks.classifier import Classifier

SEED = tf.constant([1, 2])


def test_the_lower_bound_is_clopper_and_pearsons():
  """P solves P(Binomial(n, p) >= k) = alpha; all of n successes give alpha^(1/n)."""
  for successes in (1, 37, 99):
    p = float(smoothing.lower_bound(successes, 100, 0.001))
    assert stats.binom.sf(successes - 1, 100, p) == pytest.approx(0.001, rel=1e-6)
  assert float(smoothing.lower_bound(100, 100, 0.001)) == pytest.approx(0.001 ** (1 / 100))
  assert float(smoothing.lower_bound(0, 100, 0.001)) == 0


def test_radii_by_hand():
  """Phi^-1(0.8413447) = 1, and one half certifies nothing."""
  found = smoothing.radius([0.8413447461, 0.5, 0.3, 0.9772498681], 0.25)
  np.testing.assert_allclose(found, [0.25, 0, 0, 0.5], rtol=1e-6)


def test_cosines_by_hand():
  """S = 2 Phi(1) - 1 keeps 2 Phi(0) - 1 = 0 at a distance of one noise, and s at none."""
  s = 2 * stats.norm.cdf(1) - 1
  np.testing.assert_allclose(smoothing.cosine(s, [0.0, 0.5, 1.0], 0.5), [s, 0, -s], atol=1e-12)
  assert smoothing.cosine(-1.2, 0.1, 0.5) == -1  # Hoeffding's bound may be below -1
  assert smoothing.mean_bound(0.9, 800, np.exp(-4)) == pytest.approx(0.9 - 0.1)


def linear(noise):
  """Class 1 where x_0 > 0, of images [1, 2, 1], as one-hot."""
  function = lambda x, seed: tf.one_hot(tf.cast(x[:, 0, 0, 0] > 0, tf.int32), 2)  # noqa: E731
  return smoothing.Noisy(function, noise, batch_size=300)


def test_the_radius_of_a_half_plane_is_a_little_below_the_distance():
  """Its true radius is |x_0| / 1: the certificate is below, and by no more than the bound costs."""
  noisy = linear(0.5)
  black = np.zeros((1, 2, 1), np.float32)
  assert noisy.sum(black, 1000, SEED).sum() == 1000  # copies beyond the last batch do not count
  for x, label in ((0.4, 1), (-0.6, 0)):
    image = np.array([[[x], [7.0]]], np.float32)
    found, certified = smoothing.certify_class(noisy, image, 20000, 0.001, SEED)
    assert found == label
    assert abs(x) - 0.03 < certified < abs(x)
  assert smoothing.certify_class(noisy, black, 2000, 0.001, SEED) == (-1, 0.0)


def test_a_seed_gives_the_same_draws():
  image = np.full((1, 2, 1), 0.1, np.float32)
  noisy = linear(0.5)
  assert noisy.sum(image, 700, SEED)[1] == noisy.sum(image, 700, SEED)[1]
  assert noisy.sum(image, 700, SEED)[1] != noisy.sum(image, 700, SEED + 1)[1]


def test_the_bound_of_an_encoder_holds_wherever_it_is_measured():
  """F = (cos, sin) of an angle that moves with x: E<u, f> at x' is never below the bound."""

  def function(images, seed):
    angle = 2.0 * images[:, 0, 0, 0]
    return tf.stack([tf.cos(angle), tf.sin(angle)], 1)

  noisy = smoothing.Noisy(function, 0.25)
  image = np.full((1, 2, 1), 0.3, np.float32)
  s = smoothing.certify_direction(noisy, image, 20000, 0.001, SEED)
  # E cos(2 d) = exp(-2 noise^2) = 0.8825, less Hoeffding's 0.0263.
  assert 0.84 < s < np.exp(-2 * 0.25**2)
  u = np.array([np.cos(0.6), np.sin(0.6)])
  for distance in (0.1, 0.2, 0.4):
    moved = noisy.sum(image + np.float32([[[distance], [0]]]), 20000, SEED) / 20000
    assert moved @ u > smoothing.cosine(s, distance, 0.25)


@pytest.mark.parametrize("certify", [smoothing.certify_class, smoothing.certify_direction])
def test_what_is_certified_is_chosen_by_other_draws(certify):
  """The bounds hold for a choice that knows nothing of the draws that are counted."""
  seeds = []

  class Spy:
    noise = 0.25

    def sum(self, image, samples, seed):
      seeds.append(tuple(np.asarray(seed)))
      return np.array([0.0, samples])

  certify(Spy(), None, 100, 0.001, SEED)
  assert len(set(seeds)) == 2


def test_each_image_and_each_copy_that_is_alone_has_its_own_draws(monkeypatch):
  seeds = []
  monkeypatch.setattr(smoothing, "certify_class", lambda *asked: seeds.append(asked[4]) or (0, 1.0))
  source = array_source(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int64))
  context = Context(source, "l2", [0.5], linear_classifier(np.zeros((16, 2)), [0, 0], 1.0))
  smoothing.measure(context, Smoothing(noise=0.25, samples=400, guess=40, radii=[0.0]))
  assert len({tuple(seed.numpy()) for seed in seeds}) == 3
  draw = lambda image, seed: tf.random.stateless_normal([1, 2], seed)  # noqa: E731
  assert len(np.unique(smoothing.alone(draw)(tf.zeros([3, 4, 4, 1]), SEED))) == 6


def test_an_embedding_of_zeros_has_the_bound_of_no_agreement():
  noisy = smoothing.Noisy(lambda images, seed: tf.zeros([images.shape[0], 3]), 0.25)
  s = smoothing.certify_direction(noisy, np.zeros((1, 2, 1), np.float32), 1000, 0.001, SEED)
  assert s == pytest.approx(-np.sqrt(2 * np.log(1000) / 1000))  # Hoeffding's, of a mean of 0


@pytest.mark.parametrize("modes", [None, ("deterministic",)], ids=["no z", "z = mu"])
def test_a_report_counts_what_is_certified_and_right(modes):
  """Of class 1 where the first pixel exceeds a half.

  Five images are 0.3 from there, two of them with the wrong label, and one is on the boundary.
  With z = mu a sigma of 50 changes nothing; samples of z would say either class.
  """
  images = np.full((6, 2, 2, 1), 128, np.uint8)
  images[:5, 0, 0, 0] = [204, 204, 51, 204, 51]
  weights = np.zeros((4, 2))
  weights[0, 1] = 1.0
  head = linear_head(weights, [0.0, -0.5])
  model = Classifier(linear_network((2, 2, 1), 50.0), head, stochastic=modes is not None)
  source = array_source(images, np.array([1, 1, 0, 0, 1, 1]))
  context = Context(source, "l2", [0.5], model, modes=modes)
  options = Smoothing(noise=0.25, samples=400, guess=40, radii=[0.0, 0.1, 0.35])
  found = smoothing.measure(context, options)
  assert [row["accuracy"] for row in found["certified"]] == [0.5, 0.5, 0]
  assert [row["radius"] for row in found["certified"]] == [0.0, 0.1, 0.35]
  assert found["certified"][1]["interval"] == calibration.wilson(3, 6)
  assert found["abstained"] == pytest.approx(1 / 6)
  assert found["examples"] == 6


def test_a_sampled_z_is_smoothed_over_as_well():
  """Of class 1 where z exceeds a half, at 0.8 with sigma 0.4: it is 0.3 / 0.5 deviations away."""
  head = linear_head(np.array([[0.0, 1], [0, 0], [0, 0], [0, 0]]), [0.0, -0.5])
  model = Classifier(linear_network((2, 2, 1), 0.4), head)
  source = array_source(np.full((1, 2, 2, 1), 204, np.uint8), np.ones(1, np.int64))
  context = Context(source, "l2", [0.5], model, modes=("sampled",))
  p = stats.norm.cdf(0.3 / 0.5)
  radius = 0.3 * stats.norm.ppf(p)  # at sigma = 0 it would be 0.3
  limits = [radius - 0.05, radius + 0.02]
  options = Smoothing(noise=0.3, samples=4000, guess=40, radii=limits)
  found = smoothing.measure(context, options)["certified"]
  assert [row["accuracy"] for row in found] == [1, 0]


def test_a_report_on_an_encoder_has_the_least_mean_cosine():
  """Of one that hardly turns under so little noise: what is missing to 1 is Hoeffding's."""
  source = array_source(np.full((2, 2, 2, 1), 128, np.uint8), np.zeros(2, np.int64))
  network = linear_network((2, 2, 1), 1.0)
  context = Context(source, "l2", [0.5], network=network, kind="encoder")
  options = Smoothing(noise=1e-4, samples=400, guess=40, radii=[0.0, 5e-5])
  found = smoothing.measure(context, options)["cosines"]
  s = 1 - np.sqrt(2 * np.log(1000) / 400)
  wanted = [s, 2 * stats.norm.cdf(stats.norm.ppf((1 + s) / 2) - 0.5) - 1]
  np.testing.assert_allclose([row["mean"] for row in found], wanted, atol=1e-5)


def test_arts_certificates_agree():
  """The same classifier of real digits, smoothed here and by ART: classes and radii."""
  pytest.importorskip("statsmodels")  # ART needs it and does not ask for it
  art = pytest.importorskip("art.estimators.certification.randomized_smoothing")
  model, images = linear_digits()
  classes = lambda images, seed: tf.one_hot(tf.argmax(model(images), -1), 10)  # noqa: E731
  noise, samples, alpha = 0.5, 2000, 0.001
  noisy, some = smoothing.Noisy(classes, noise), images[:40]
  certify = lambda i, image: smoothing.certify_class(noisy, image, samples, alpha, SEED + i)  # noqa: E731
  ours = [certify(*pair) for pair in enumerate(some)]
  options = {"sample_size": 100, "scale": noise, "alpha": alpha}
  theirs = art.TensorFlowV2RandomizedSmoothing(model, 10, (8, 8, 1), **options)
  theirs = theirs.certify(some, n=samples, batch_size=500)
  for (label, radius), other, their_radius in zip(ours, *theirs, strict=True):
    if radius > 0.05 or their_radius > 0.05:  # nearer to one half chance decides who abstains
      assert label == other
    # Four standard errors of the difference of two shares, as a radius.
    p = max(0.5, stats.norm.cdf(max(radius, their_radius) / noise))
    slope = noise / stats.norm.pdf(stats.norm.ppf(min(p, 1 - 1 / samples)))
    assert abs(radius - their_radius) < 4 * slope * np.sqrt(2 * p * (1 - p) / samples) + 0.01
