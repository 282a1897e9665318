"""Attacks that know the Gaussian encoder, on classifiers whose robust accuracy is known."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from norms import distances
from small_models import array_source, linear_classifier, linear_network, sequential

import urkle_tf
from urkle_tf.attacks import APGD, PGD, Linf
from urkle_tf.evaluation import attacked
from urkle_tf.evaluation import plans as planning
from urkle_tf.evaluation.context import Context
from urkle_tf.networks.classifier import Classifier

SHAPE, EPSILON = (4, 4, 1), 0.1


def grey(count, labels):
  images = np.random.default_rng(0).integers(100, 156, (count, *SHAPE)).astype(np.uint8)
  return array_source(images, labels, 3)


@pytest.fixture(scope="module")
def linear():
  """A linear head on pixels, images with its own labels, and which of them no attack can break."""
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(16, 3)).astype(np.float32)
  source = grey(60, np.zeros(60, np.int64))
  x = source.images.reshape(60, 16) / 255
  bias = -x.mean(0) @ weights
  source.labels = (x @ weights + bias).argmax(1)
  away = distances(weights, bias, x, source.labels, "linf")
  return linear_classifier(weights, bias, 0.02), source, away


def run(model, source, plans, epsilon, **options):
  context = Context(source, "linf", [epsilon], model, batch_size=30, eot=5, **options)
  return attacked.measure(context, plans)


@pytest.mark.parametrize("number", [5, *slow(0, 1, 2, 3, 4, 6)])
def test_each_stage_finds_what_there_is(linear, number):
  model, source, away = linear
  epsilon = float(np.median(away))
  plan = planning.read("worst_of_all(steps=6, restarts=1)", Linf(epsilon))[number]
  plan = dataclasses.replace(plan, ensemble="", last=False)
  (row,), _ = run(model, source, [plan], epsilon, modes=("sampled",))
  assert row["name"].startswith("apgd")
  assert np.mean(away > 1.06 * epsilon) - 0.04 <= row["accuracy"]
  assert row["accuracy"] <= np.mean(away > 0.94 * epsilon) + 0.04


@pytest.mark.full
def test_the_row_unites_all_attacks_wherever_it_was_asked_for(linear):
  model, source, away = linear
  epsilon = float(np.median(away))
  plans = planning.read("worst_of_all(steps=2, restarts=1),fgsm", Linf(epsilon))
  assert plans[0].name == "fgsm"
  assert {plan.ensemble for plan in plans[1:]} == {"worst_of_all"}
  rows, details = run(model, source, [*plans[:2], plans[4]], epsilon)
  names = ["fgsm", "apgd", "apgd of mean logits from z = mu", "worst_of_all"]
  assert [row["name"] for row in rows] == [name for name in names for _ in range(2)]
  for mode in range(2):
    right = [right for right, _ in details[mode::2]]
    np.testing.assert_array_equal(right[-1], np.all(right, 0))
    assert rows[6 + mode]["accuracy"] == right[-1].mean() <= rows[mode]["accuracy"]
  stood = np.any([right for right, _ in details[:2]], 0).sum()
  assert rows[2]["attacked"] == stood < 60


@pytest.mark.full
def test_the_worst_kl_shows_where_no_gradient_of_the_scores_does():
  """Class 1 wherever pixels are all far from grey: a corner of the ball, which random starts miss.

  The head is a step, so that scores have no gradient; the worst KL lies in a corner.
  """
  z = keras.Input((16,))
  beyond = lambda z: keras.ops.sum((z - 128 / 255) ** 2, 1, keepdims=True) - 0.11  # noqa: E731
  far = keras.layers.Lambda(lambda z: keras.ops.sign(beyond(z)))(z)
  head = keras.Model(z, keras.layers.Concatenate()([-far, far, far - 9]))
  model = Classifier(linear_network(SHAPE, 1e-4), head, True, samples=5)
  source = grey(8, np.zeros(8, np.int64))
  source.images[:] = 128
  plans = planning.read("pgd(restarts=3),worst_of_all(steps=10, restarts=2)", Linf(EPSILON))
  rows, _ = run(model, source, plans, EPSILON, modes=("sampled",))
  found = {row["name"]: row["accuracy"] for row in rows}
  assert found["apgd from fixed z"] == found["pgd"] == 1
  assert found["apgd from the worst KL"] == found["worst_of_all"] == 0


def test_a_run_begins_at_a_given_start():
  images, seen = tf.fill([2, *SHAPE], 0.5), []
  attack = APGD(Linf(EPSILON), steps=1, restarts=2)

  def begin(seed):
    seen.append(seed)
    return images + 5.0

  flat = lambda x: 0.0 * tf.reduce_sum(x, [1, 2, 3])  # noqa: E731
  np.testing.assert_allclose(attack.run(flat, images, [1, 2], start=begin)[0], 0.5 + EPSILON)
  assert not np.array_equal(*seen)
  refuses("pgd does not accept start", PGD(Linf(EPSILON)).run, flat, images, [1, 2], start=begin)


@pytest.mark.full
def test_what_a_model_has_no_place_for_is_named(tmp_path):
  theirs = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(10))
  theirs.save(tmp_path / "theirs.keras")
  options = {"examples": 8, "checks": False, "epsilon": EPSILON}
  options["attacks"] = "worst_of_all(steps=2, restarts=1)"
  found = urkle_tf.assess(tmp_path / "theirs.keras", **options)
  assert [row["name"] for row in found["attacks"]] == ["apgd", "worst_of_all"]
  because = found["config"]["skipped_because"]
  assert because["apgd of mean logits"] == "the model is not stochastic"
  assert because["apgd from the worst KL"] == "the model has no encoder of this package"
