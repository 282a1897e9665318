"""Models that hide their gradients: the report gives them no credit, and says so.

All are linear in pixels, or in pixels that were rounded first, so that the largest loss of margin
within a radius is a sum over pixels: their robust accuracy is known exactly.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from small_models import digits, linear_head, linear_network, saved_model

import urkle_tf
from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.evaluation import adversaries, attacked, foreign, scoring
from urkle_tf.evaluation import plans as planning
from urkle_tf.evaluation.context import Context
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.saved import foreign_models

EPSILON, EXAMPLES = 0.2, 100
WHOLE_SET = {"examples": EXAMPLES, "batch_size": EXAMPLES}
WHOLE = 64  # weights of the integer network, to one


@pytest.fixture(scope="module")
def linear():
  """Weights [64, 10] and biases of the nearest class mean of digits, and test images."""
  images, labels = digits()
  test = sources.load("digits", "test", examples=EXAMPLES)
  flat = images.reshape(len(images), 64)
  means = np.stack([flat[labels == k].mean(0) for k in range(10)])
  weights, bias = 2 * means.T, -np.sum(means**2, 1)
  x = test.images.reshape(EXAMPLES, 64).astype(np.float32) / 255
  return weights.astype(np.float32), bias.astype(np.float32), x, test.labels


def robust(linear, step=lambda pixels: pixels, epsilon=EPSILON):
  """Which images keep every margin at their worst: features rise with their pixels."""
  weights, bias, x, labels = linear
  low, high = (np.float64(step(np.clip(x + np.float32(d), 0, 1))) for d in (-epsilon, epsilon))
  right = []
  for lowest, highest, label in zip(low, high, labels, strict=True):
    change = np.float64(weights[:, label] - np.delete(weights, label, 1).T)
    margins = np.sum(np.where(change > 0, lowest, highest) * change, 1)
    right.append(np.all(margins + bias[label] - np.delete(bias, label) > 0))
  return np.array(right)


def scores(linear, images):
  return tf.reshape(images, [-1, 64]) @ linear[0] + linear[1]


def integer_scores(images, linear):
  """The same of whole pixels and weights."""
  weights, bias = (np.round(scale * part) for scale, part in zip((WHOLE, 8 * WHOLE), linear))
  sums = tf.reshape(tf.cast(8 * images, tf.int32), [-1, 64]) @ weights.astype(np.int32)
  return tf.cast(sums + bias.astype(np.int32), tf.float32)


SEARCHES = "square(queries=50),hop_skip_jump(queries=200)"  # without budgets they get their own


@dataclasses.dataclass
class Decoy:
  """A model, and what its report must say.

  Attributes:
    function: of images and `linear`, to scores.
    attacks: that break it.
    failing: the checks that fail.
    step: what it does to pixels first.
    tolerance: of its accuracy, clean and attacked.
  """

  function: Callable
  attacks: str
  failing: tuple[str, ...] = ("gradients",)
  step: Callable = lambda pixels: pixels
  tolerance: float = 0.01


GRADIENTS = "apgd_ce(steps=30),apgd_t(steps=30, targets=4)"
DECOYS = {
  "none": Decoy(lambda x, m: tf.nn.softmax(scores(m, x)), GRADIENTS, failing=()),
  "logits times 1000": Decoy(
    lambda x, m: tf.nn.softmax(1000 * scores(m, x)),
    f"{GRADIENTS},{SEARCHES}",
    failing=("gradients", "saturation", "epsilon"),
  ),
  "quantised inputs": Decoy(
    lambda x, m: tf.nn.softmax(scores(m, tf.round(4 * x) / 4)),
    f"{GRADIENTS},{SEARCHES}",
    step=lambda pixels: np.round(4 * pixels) / 4,
  ),
  "a step": Decoy(
    lambda x, m: tf.nn.softmax(scores(m, tf.where(x > 0.5, 1.0, 0.0))),
    f"{GRADIENTS},{SEARCHES}",
    step=lambda pixels: (pixels > 0.5).astype(np.float32),
  ),
  "argmax": Decoy(
    lambda x, m: tf.one_hot(tf.argmax(scores(m, x), 1), 10),
    f"apgd_ce(steps=30),apgd_t(steps=30),{SEARCHES}",
    failing=("gradients", "saturation"),
  ),
  "integers": Decoy(  # no float of the images' or the logits' shape goes in: nothing to bridge
    integer_scores,
    "square(queries=2000),hop_skip_jump(queries=200)",
    failing=("gradients", "black_box", "epsilon"),
    step=lambda pixels: np.floor(8 * pixels) / 8,
    tolerance=0.06,
  ),
  "noise in the output": Decoy(
    lambda x, m: tf.nn.softmax(scores(m, x) + 1.5 * tf.random.normal([tf.shape(x)[0], 10])),
    "apgd_t(steps=40, targets=4)",
    failing=("noise",),
    tolerance=0.04,
  ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(DECOYS))
def test_decoys_get_no_credit(linear, tmp_path, name):
  decoy = DECOYS[name]
  model = saved_model(lambda images: decoy.function(images, linear), tmp_path / "model")
  options = {"epsilon": EPSILON, "standing": True, "eot": 50, **WHOLE_SET}
  found = urkle_tf.assess(model, attacks=decoy.attacks, **options)
  true, unattacked = (robust(linear, decoy.step, radius).mean() for radius in (EPSILON, 0))
  assert unattacked > true + 0.2
  assert found["clean"]["accuracy"] == pytest.approx(unattacked, abs=decoy.tolerance)
  accuracies = [row["accuracy"] for row in found["attacks"]]
  assert accuracies[-1] == pytest.approx(true, abs=decoy.tolerance)
  if name == "logits times 1000":
    assert accuracies[0] > true + 0.5  # what that attack alone would have reported
  failed = {check["name"] for check in found["checks"] if not check["passed"]}
  assert {*decoy.failing} <= failed
  assert decoy.failing or not failed
  assert "representation" not in found


def foreign_model(linear, name):
  function = lambda x: DECOYS[name].function(x, linear)  # noqa: E731
  loaded = foreign_models.Loaded(function, (8, 8, 1), "SavedModel", "0" * 16, "m")
  return foreign.Foreign(loaded, linear[2].reshape(-1, 8, 8, 1))


@pytest.mark.parametrize("name", ["quantised inputs", *slow("argmax")])
def test_without_bridges_credit_would_be_given(linear, monkeypatch, name):
  model, step = foreign_model(linear, name), DECOYS[name].step
  x, labels = linear[2].reshape(-1, 8, 8, 1), linear[3]
  plan = planning.read("pgd(steps=20)", urkle_tf.attacks.Linf(EPSILON))[0]

  def accuracy():
    find = adversaries.adversary(model, plan, "deterministic")
    given = tf.constant(x), tf.constant(labels), tf.constant([1, 2])
    candidates, _ = find(*given, *plan.radius_and_step(EPSILON))
    logits = np.asarray(model.head(candidates[0]))
    return np.mean(np.argmax(logits, 1) == labels)

  assert accuracy() < robust(linear, step).mean() + 0.2
  monkeypatch.setattr(model, "frozen", model.own_gradients)
  monkeypatch.setattr(model, "differentiable", False)
  assert accuracy() > robust(linear, step).mean() + 0.4


@pytest.mark.full
def test_an_inflated_sigma_gets_no_credit(linear, tmp_path):
  # z is the image, with noise that no image has.
  weights, bias, x, labels = linear
  network = linear_network((8, 8, 1), 0.5)
  model = Classifier(network, linear_head(weights, bias), stochastic=True, samples=5)
  export.export_classifier(model, tmp_path / "model", {"norm": "linf", "epsilon": EPSILON})
  options = {"attacks": "apgd_t(steps=20)", "eot": 5, "representation_examples": 0, **WHOLE_SET}
  found = urkle_tf.assess(str(tmp_path / "model"), **options)
  # Its true robustness, but for what nobody found: transfer from the model without noise, whose
  # worst image towards each class is known.
  scorer = scoring.Scorer(model, EXAMPLES, samples=400, seed=1)
  right = np.argmax(scorer(x.reshape(-1, 8, 8, 1))["sampled"], 1) == labels
  assert right.mean() > 0.8
  for other in range(10):
    change = weights[:, labels].T - weights[:, [other]].T
    moved = np.clip(x - EPSILON * np.sign(change), 0, 1).astype(np.float32)
    right &= np.argmax(scorer(moved.reshape(-1, 8, 8, 1))["sampled"], 1) == labels
  row = found["attacks"][0]
  assert row["mode"] == "sampled"
  assert row["accuracy"] <= right.mean() + 0.05
  (check,) = (check for check in found["checks"] if check["name"] == "noise")
  assert not check["passed"]
  assert check["flips"] > 0.05


def test_a_label_outside_of_the_classes_is_one_line(linear, tmp_path, monkeypatch):
  model = foreign_model(linear, "none")
  source = sources.load("digits", "test", examples=20)
  monkeypatch.setattr(source, "labels", np.where(np.arange(20) == 7, 10, source.labels))
  context = Context(source, "linf", [EPSILON], model, batch_size=8)
  plans = planning.read("fgsm", urkle_tf.attacks.Linf(EPSILON))
  refuses("a label outside the classifier's 10 classes", attacked.measure, context, plans)
