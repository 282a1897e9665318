"""Proposition 1: the cap against its formula, the whole against closed forms and quadrature."""

import math

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import array_source, linear_head, linear_network

from urkle_tf.evaluation import adversaries, bound
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.measurements.bound import Bound
from urkle_tf.networks.classifier import Classifier

# The cap.


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("above", [0.05, 1.0, 10.0, 60.0])
def test_the_cap_is_footnote_1(rng, classes, above):
  loss_cap = math.log(classes) + above
  p = rng.dirichlet(np.full(classes, 0.1), size=5).astype(np.float32).astype(np.float64)
  p = np.concatenate([p / p.sum(1, keepdims=True), np.eye(classes)[:1]])  # with p = 1 and p = 0
  with np.errstate(divide="ignore"):
    found = bound.capped(np.log(p).astype(np.float32), loss_cap).numpy().astype(np.float64)
  floor = math.exp(-loss_cap)
  np.testing.assert_allclose(found, np.log((1 - classes * floor) * p + floor), rtol=2e-6, atol=1e-6)
  assert np.all(found <= 0)
  assert np.all(-found <= np.float32(loss_cap))
  np.testing.assert_allclose(-found[-1, 1:], loss_cap, rtol=1e-6)
  np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-4)
  np.testing.assert_array_equal(found.argmax(1)[:-1], p.argmax(1)[:-1])


def test_the_papers_example():
  # M = 3: "0.05"; three classes of K = 1 - 3 * 0.0498.
  found = np.exp(bound.capped(np.log([[0.7, 0.2, 0.1]]), 3.0))
  np.testing.assert_allclose(found, [[0.645249, 0.219915, 0.134851]], atol=2e-5)


def test_a_cap_that_only_just_exists_is_finite():
  loss_cap = np.nextafter(math.log(10), 3)
  found = bound.capped(np.log(np.full((1, 10), 0.1)), loss_cap).numpy()
  np.testing.assert_allclose(found, -math.log(10), rtol=1e-6)


def test_the_cap_of_a_mean_is_the_mean_of_caps(rng):
  p = rng.dirichlet(np.full(4, 0.3), size=50)
  each = np.exp(bound.capped(np.log(p), 2.0)).mean(0)
  np.testing.assert_allclose(np.exp(bound.capped(np.log(p.mean(0)), 2.0)), each, rtol=1e-5)


@pytest.mark.parametrize(
  "classes, loss_cap, least",
  [
    (2, math.log(2), "0.6931"),
    (1000, 6.9, "6.9078"),
    (10, -1.0, "2.3026"),
    (10, math.nan, "2.3026"),
    (10, math.inf, "2.3026"),
    (10, "3", "2.3026"),
  ],
)
def test_a_cap_without_room_for_the_classes_is_refused(classes, loss_cap, least):
  words = f"above ln({classes}) = {least}"
  refuses(words, bound.capped, np.zeros((1, classes), np.float32), loss_cap)


# The whole, on linear models with a constant scale.

SHAPE = (4, 4, 1)


def test_a_constant_head_and_a_linear_encoder_have_a_closed_form():
  # Pixels come in pairs of one weight. Of a pair in grey both can move; of a pair (black, white)
  # one can move upwards, and the other one downwards. So max |w d| has the same closed form in
  # both directions, and differs between images: the two regularisers differ, too.
  pair_weights = np.array([1.0, 2.0, -1.5, 0.5, 3.0, -2.0, 1.0, 2.5])
  matrix = np.repeat(pair_weights, 2)[:, None]
  grey = np.random.default_rng(1).uniform(size=(12, 8)) < 0.5
  images = np.where(np.repeat(grey, 2, 1), 128, np.tile([0, 255], 8)).reshape(12, *SHAPE)
  labels = np.arange(12) % 10
  head = linear_head(np.zeros((1, 10)), np.zeros(10))
  model = Classifier(linear_network(SHAPE, 0.5, matrix), head)
  epsilon, loss_cap = 0.03, 3.0
  source = array_source(images.astype(np.uint8), labels, 10)
  context = Context(source, "linf", [epsilon], model, batch_size=5, samples=20)
  found = bound.measure(context, Bound(loss_cap, steps=20, loss_steps=2))
  shift = epsilon * np.where(grey, 2, 1) @ np.abs(pair_weights)
  divergence = shift**2 / (2 * 0.5**2)
  wanted = loss_cap / math.sqrt(2) * math.sqrt(divergence.mean())
  tight = loss_cap / math.sqrt(2) * np.sqrt(divergence).mean()
  assert wanted > tight * 1.002  # the case tells the two apart
  # p = 1/C is its own cap, and every z has the same loss.
  assert found["clean_loss"] == pytest.approx(math.log(10), rel=1e-5)
  assert found["measured_adversarial_loss"] == pytest.approx(math.log(10), rel=1e-5)
  assert found["kl_mean"] == pytest.approx(divergence.mean(), rel=1e-3)
  assert found["regulariser"] == pytest.approx(wanted, rel=5e-4)
  assert found["regulariser_tight"] == pytest.approx(tight, rel=5e-4)
  assert found["value"] == pytest.approx(math.log(10) + wanted, rel=5e-4)
  assert found["value_tight"] == pytest.approx(math.log(10) + tight, rel=5e-4)
  assert found["vacuous"] is (math.log(10) + wanted >= loss_cap)
  assert found["cap_share"] == pytest.approx(10 * math.exp(-3))
  assert (found["M"], found["samples"], found["examples"]) == (3.0, 200, 12)


def binary_problem():
  """Two classes, z = pixels + noise: the log-odds are Normal, so quadrature gives each loss."""
  rng = np.random.default_rng(2)
  images = rng.integers(100, 156, size=(30, *SHAPE)).astype(np.uint8)
  weights = rng.normal(size=(16, 2))
  pixels = images.reshape(30, -1) / 255
  difference = weights[:, 0] - weights[:, 1]
  middle = np.median(pixels @ difference)
  labels = np.where(pixels @ difference > middle, 0, 1)
  scale = 0.4
  model = Classifier(linear_network(SHAPE, scale, np.eye(16)), linear_head(weights, [-middle, 0]))
  margin = (pixels @ difference - middle) * np.where(labels == 0, 1, -1)
  return model, array_source(images, labels), margin, difference, scale


def normal_mean(function, means, spread):
  """E[function(means + spread * Normal(0, 1))] by Gauss-Hermite quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(80)
  return function(means[:, None] + spread * nodes) @ weights / math.sqrt(2 * math.pi)


def test_losses_of_a_sampled_linear_classifier_are_those_of_quadrature():
  model, source, margin, difference, scale = binary_problem()
  epsilon, loss_cap = 0.03, 1.5
  context = Context(source, "linf", [epsilon], model, batch_size=16)
  found = bound.measure(context, Bound(loss_cap, steps=10, loss_steps=20, samples=3000))
  floor = math.exp(-loss_cap)
  capped = lambda odds: (1 - 2 * floor) / (1 + np.exp(-odds)) + floor  # noqa: E731
  spread = scale * np.linalg.norm(difference)
  clean = normal_mean(lambda odds: -np.log(capped(odds)), margin, spread).mean()
  moved = margin - epsilon * np.abs(difference).sum()
  adversarial = -np.log(normal_mean(capped, moved, spread)).mean()
  # What mistakes would give: one equation instead of the other, no cap.
  swapped = -np.log(normal_mean(capped, margin, spread)).mean()
  uncapped = normal_mean(lambda odds: np.log1p(np.exp(-odds)), margin, spread).mean()
  assert min(abs(clean - swapped), abs(clean - uncapped)) > 0.03
  assert found["clean_loss"] == pytest.approx(clean, abs=0.01)
  assert found["measured_adversarial_loss"] == pytest.approx(adversarial, abs=0.01)
  # All pixels move by epsilon, whichever way.
  assert found["kl_mean"] == pytest.approx(16 * epsilon**2 / (2 * scale**2), rel=1e-3)
  assert found["value"] >= found["measured_adversarial_loss"]


@pytest.mark.full
def test_each_attack_serves_the_other(monkeypatch):
  model, source, _, _, scale = binary_problem()
  epsilon = 0.03
  arguments = Context(source, "linf", [epsilon], model), Bound(1.5, steps=10, loss_steps=20)
  whole = bound.measure(*arguments)

  # An attack on the KL that goes nowhere: the loss's adversaries are corners of the ball, too.
  def stay(encoder, images):
    return lambda neighbours: -tf.reduce_sum(tf.square(neighbours - images), [1, 2, 3])

  with monkeypatch.context() as patch:
    patch.setattr(bound, "kl_objective", stay)
    found = bound.measure(*arguments)
  assert found["kl_mean"] == pytest.approx(16 * epsilon**2 / (2 * scale**2), rel=0.05)

  # An attack on the loss that finds nothing: the KL's adversaries count, and hurt less.
  monkeypatch.setattr(adversaries, "adversary", lambda *_: lambda images, *_: (images[None], 1.0))
  found = bound.measure(*arguments)
  assert whole["clean_loss"] == found["clean_loss"]
  assert found["measured_adversarial_loss"] < whole["measured_adversarial_loss"] - 0.02
  assert found["kl_mean"] == pytest.approx(whole["kl_mean"], rel=1e-3)

  # Neither finds anything: the clean images alone, by Jensen no worse than the clean loss.
  monkeypatch.setattr(bound, "kl_objective", stay)
  nothing = bound.measure(*arguments)
  assert nothing["kl_mean"] < 0.1 * whole["kl_mean"]
  assert nothing["measured_adversarial_loss"] < nothing["clean_loss"]
  assert nothing["measured_adversarial_loss"] <= found["measured_adversarial_loss"]


def test_the_noise_is_the_same_for_every_candidate_and_differs_between_images():
  model, source, *_ = binary_problem()
  images = np.repeat(source.images[:1] / 255, 3, 0).astype(np.float32)
  given = model, images, np.zeros(3, np.int64), 1.5, tf.constant([1, 2]), 30
  first, second = (bound.sampled_losses(*given) for _ in range(2))
  np.testing.assert_array_equal(first, second)
  assert len(np.unique(first[0])) == 3


def test_a_deterministic_classifier_has_no_bound():
  model, source, *_ = binary_problem()
  model.stochastic = False
  refuses("deterministic", bound.measure, Context(source, "linf", [0.1], model), Bound(3.0))
