"""The ensemble on classifiers whose robust accuracy has a closed form."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from norms import distances

from urkle_tf.attacks import Linf, autoattack, from_norm, losses
from urkle_tf.attacks.autoattack import AutoAttack

SMALL = {"steps": 10, "targets": 3, "queries": 20}


def problem(rng, classes, n=40):
  """A linear classifier, images well inside the pixel box and its own labels, a few flipped."""
  weights = rng.normal(size=(16, classes)).astype(np.float32)
  x = rng.uniform(0.42, 0.58, size=(n, 4, 4, 1)).astype(np.float32)
  bias = -x.reshape(n, -1).mean(0) @ weights
  logits = x.reshape(n, -1) @ weights + bias
  labels = logits.argmax(1)
  labels[:4] = (labels[:4] + 1) % classes
  return weights, bias, x, labels


def linear(weights, bias, scale=1.0):
  return lambda z: scale * (tf.reshape(z, [-1, 16]) @ weights + bias)


@pytest.mark.parametrize(
  "norm, classes, version",
  [("linf", 5, "standard"), *slow(("l2", 3, "standard"), ("l2", 3, "rand"))],
)
def test_robust_accuracy_is_the_closed_form(rng, norm, classes, version):
  weights, bias, x, labels = problem(rng, classes)
  away = distances(weights, bias, x, labels, norm)
  epsilon = float(np.median(away[4:]))
  threat, scores = from_norm(norm, epsilon), linear(weights, bias)
  given = x, labels, threat, [1, 2], version
  y, broken, numbers = autoattack(scores, *given, batch_size=16, **SMALL)
  np.testing.assert_array_equal(broken[away < 0.98 * epsilon], True)
  np.testing.assert_array_equal(broken[away > epsilon * 1.001], False)
  assert (np.asarray(threat.distance(y, x)) <= epsilon + 1e-6).all()
  np.testing.assert_array_equal(scores(y).numpy().argmax(1) != labels, broken)
  np.testing.assert_array_equal(y[:4], x[:4])  # misclassified as they are
  margin = lambda z: np.ptp(np.partition(scores(z).numpy(), -2)[:, -2:], axis=1)  # noqa: E731
  assert np.all(margin(y)[~broken] < margin(x)[~broken])  # what came nearest
  stages = ["apgd_dlr"] if version == "rand" else ["apgd_t", "fab_t"]
  assert [row["name"] for row in numbers] == ["apgd_ce", *stages, "square"]
  assert numbers[0]["attacked"] == 36
  for before, after in itertools.pairwise(numbers):
    assert after["attacked"] == before["attacked"] - before["broken"]
  assert numbers[-1]["accuracy"] == pytest.approx(1 - broken.mean())
  if version == "standard":
    assert ("targeted margin" in numbers[1]["note"]) == (classes < 4)
  assert numbers[0]["note"] == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_are_any_integers(rng, dtype):
  weights, bias, x, labels = problem(rng, 3)
  options = {"threat": Linf(0.05), "steps": 5, "queries": 5}
  run = lambda y: autoattack(linear(weights, bias), x, y, **options)[1]  # noqa: E731
  np.testing.assert_array_equal(run(labels), run(labels.astype(dtype)))


def test_logits_times_a_thousand_are_no_defence(rng):
  """Cross-entropy alone has no gradient there; the ensemble finds what is true all the same."""
  weights, bias, x, labels = problem(rng, 4)
  away = distances(weights, bias, x, labels, "linf")
  epsilon = float(np.median(away[4:]))
  decoy = linear(weights, bias, 1e5)
  _, broken, numbers = autoattack(decoy, x, labels, Linf(epsilon), [1, 2], **SMALL)
  np.testing.assert_array_equal(broken[away < 0.98 * epsilon], True)
  wanted = np.mean(away > epsilon)
  assert numbers[0]["accuracy"] > wanted + 0.05  # or the decoy is none
  assert numbers[1]["accuracy"] == pytest.approx(wanted, abs=0.03)


def test_budgets_and_what_is_left_of_them():
  found = AutoAttack(Linf(0.1), "standard", 7, targets=4, queries=11, restarts=2).plans()
  assert [(s.name, s.steps, s.targets, s.restarts, s.rounds) for s in found] == [
    ("apgd_ce", 7, 0, 2, 1),
    ("apgd_t", 7, 4, 2, 4),
    ("fab_t", 7, 4, 2, 4),
    ("square", 11, 0, 2, 1),
  ]
  assert (found[0].attack.steps, found[0].attack.restarts) == (7, 2)
  assert found[3].attack.queries == 11
  published = AutoAttack(Linf(0.1)).plans()
  assert [s.steps for s in published] == [100, 100, 100, 5000]
  assert [s.targets for s in published] == [0, 9, 9, 0]
  _, few, *_ = AutoAttack(Linf(0.1)).plans(classes=3)
  assert (few.targets, few.loss) == (2, losses.targeted_margin)
  assert AutoAttack(Linf(0.1)).plans(classes=4)[1].loss is losses.targeted_dlr
  assert AutoAttack(Linf(0.1)).plans(classes=2)[2].targets == 1


@pytest.mark.parametrize(
  "change, words",
  [
    ({"images": np.zeros([4, 4, 4, 1], np.uint8)}, "divide by 255"),
    ({"labels": np.array([0, 1, 2, 7])}, "labels must be from 0 to 2"),
    ({"images": np.full([4, 4, 4, 1], 7, np.float32)}, "pixels go from 7 to 7, and the threat"),
    ({"images": np.full([4, 4, 4, 1], np.nan, np.float32)}, "pixels go from nan to nan"),
    ({"labels": np.array([0, 1])}, "4 images need 4 integer labels"),
    ({"scores": lambda z: tf.fill([4, 3], np.nan)}, "NaN or infinite"),
    ({"scores": lambda z: tf.zeros([4, 3])}, "depend on the images"),
    ({"scores": lambda z: tf.reduce_mean(z, [1, 2, 3])}, "must be [4, classes], got shape"),
    ({"scores": lambda z: {"a": z[:, 0, :3, 0]}}, "must be one tensor [n, classes]"),
    ({"scores": lambda z: [z[:, 0, :3, 0]] * 4}, "must be one tensor [n, classes]"),
    ({"scores": lambda z: z[:, 0, 0], "labels": np.zeros(4, int)}, "one class is never wrong"),
    ({"images": np.zeros([0, 4, 4, 1], np.float32)}, "at least one image"),
    ({"threat": 0.1}, "needs a threat model, such as Linf"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"version": "standart"}, "did you mean 'standard'"),
    ({"steps": 0}, "steps must be a whole number of at least 1"),
    ({"targets": 0}, "targets must be a whole number of at least 1"),
    ({"version": "rand", "scores": lambda z: z[:, 0, :2, 0]}, "at least 3 classes, but there are"),
  ],
)
def test_mistakes_end_in_one_line(change, words):
  arguments = {"images": np.full([4, 4, 4, 1], 0.5, np.float32), "labels": np.zeros(4, int)}
  arguments |= {"scores": lambda z: tf.reshape(z, [-1, 16])[:, :3], "threat": Linf(0.1)}
  refuses(words, autoattack, **arguments | change)
