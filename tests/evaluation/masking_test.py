"""Defences of the literature that mask gradients: `evaluate` gives them no credit.

Each is put around weights that are attacked without it, too: it may leave at most 3 points more
standing.  Weights are least squares on digits.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from scipy import fft
from small_models import digits, saved_model

import urkle_tf
from tools import official_autoattack as official
from urkle_tf.data import sources
from urkle_tf.evaluation import foreign, scoring
from urkle_tf.networks.saved import foreign_models

EXAMPLES, EPSILON = 100, 0.1
LEVELS = np.arange(8, dtype=np.float32)  # of a thermometer code
COSINES = fft.dct(np.eye(8), norm="ortho", axis=0).astype(np.float32)
FIRST = np.random.default_rng(5).normal(size=(64, 300)).astype(np.float32) / 8


def flat(values):
  return tf.reshape(values, [-1, int(np.prod(values.shape[1:]))])


def linear(features):
  """Scores of 10 classes, by least squares on features of digits, as a function of features."""
  images, labels = digits()
  x = np.asarray(features(tf.constant(images[:1400])))
  x = np.concatenate([x, np.ones([len(x), 1])], 1)
  targets = np.eye(10)[labels[:1400]]
  found = np.linalg.solve(x.T @ x + 30 * np.eye(x.shape[1]), x.T @ targets).astype(np.float32)
  return lambda features: 10 * (features @ found[:-1] + found[-1])


def thermometer(x):
  """Buckman et al. (2018): which levels a pixel exceeds."""
  return flat(tf.cast(8 * x > LEVELS, tf.float32))


def smooth_thermometer(x):
  return flat(tf.clip_by_value(8 * x - LEVELS, 0, 1))


def jpeg(x):
  """Guo et al. (2018): quantised cosine coefficients of 8 x 8 pixels; integers have no gradient."""
  found = tf.einsum("ij,njkc,lk->nilc", COSINES, x, COSINES)
  found = tf.cast(tf.cast(tf.floor(4 * found + 0.5), tf.int32), tf.float32) / 4
  return flat(tf.clip_by_value(tf.einsum("ji,njkc,kl->nilc", COSINES, found, COSINES), 0, 1))


def resized(x):
  """Xie et al. (2018): a random size up to 10, at a random place of 10 x 10."""
  side = 8 + tf.cast(3 * tf.random.uniform([]), tf.int32)
  room = 10 - side
  before = tf.cast(tf.random.uniform([2]) * tf.cast(room + 1, tf.float32), tf.int32)
  moved = tf.stack([before, room - before], 1)
  moved = tf.pad(tf.image.resize(x, [side, side]), tf.pad(moved, [[1, 1], [0, 0]]))
  return flat(tf.ensure_shape(moved, [None, 10, 10, 1]))


def centred(x):
  return flat(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))


def hidden(x):
  return tf.nn.relu(flat(x) @ FIRST)


def winners(x):
  """Xiao et al. (2020): of the hidden units the 60 largest, the others 0."""
  found = flat(x) @ FIRST
  return tf.where(found >= tf.math.top_k(found, 60).values[:, -1:], found, 0.0)


def abstaining(scores):
  """An eleventh class wherever the two best of ten are near to each other."""
  top = tf.math.top_k(scores, 2).values
  near = top[:, :1] - top[:, 1:] < 1.0
  refusal = tf.one_hot(tf.fill([tf.shape(scores)[0]], 10), 11)
  return tf.where(near, refusal, tf.pad(tf.nn.softmax(scores), [[0, 0], [0, 1]]))


GRADIENTS = "apgd_ce(steps=30),apgd_t(steps=30)"
SEARCHES = "square(queries=1000),hop_skip_jump(queries=2000)"
# name: (features with the defence, without it, those that the weights are for, attacks)
DEFENCES = {
  "thermometer": (thermometer, smooth_thermometer, thermometer, f"{GRADIENTS},{SEARCHES}"),
  "jpeg": (jpeg, flat, flat, f"{GRADIENTS},{SEARCHES}"),
  "resizing": (resized, centred, centred, GRADIENTS),
  "winners": (winners, hidden, winners, f"{GRADIENTS},{SEARCHES}"),
}


def evaluated(function, folder, **options):
  """The report on a function of images."""
  given = {"examples": EXAMPLES, "batch_size": EXAMPLES, "samples": 50, "standing": True, **options}
  return urkle_tf.assess(saved_model(function, folder), epsilon=EPSILON, **given)


def accuracy(report):
  return report["attacks"][-1]["accuracy"]


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_that_masks_gets_no_credit(name, tmp_path):
  defended, plain, trained, attacks = DEFENCES[name]
  scores = linear(trained)
  of = lambda features: lambda x: scores(features(x))  # noqa: E731
  with_it, without = (
    evaluated(of(features), tmp_path / features.__name__, attacks=attacks)
    for features in (defended, plain)
  )
  assert min(report["clean"]["accuracy"] for report in (with_it, without)) > 0.8
  assert 0.03 < accuracy(without) < 0.9
  assert accuracy(with_it) <= accuracy(without) + 0.03 + 1e-9


@pytest.mark.full
def test_what_is_masked_is_searched_without_being_asked(tmp_path, monkeypatch):
  """By the attacks of default, and two more whose budgets are cut here."""
  read = urkle_tf.attacks.for_evaluation
  budgets = {"square": "square(queries=150)", "hop_skip_jump": "hop_skip_jump(queries=400)"}
  cut = lambda text, *given, **options: read(budgets.get(text, text), *given, **options)  # noqa: E731
  monkeypatch.setattr(urkle_tf.attacks, "for_evaluation", cut)
  scores = linear(thermometer)
  function = lambda x: scores(thermometer(x))  # noqa: E731
  found = evaluated(function, tmp_path / "m", examples=40, checks=False, standing=False)
  names = ["pgd", "fgsm", "square", "hop_skip_jump"]
  assert [row["name"] for row in found["attacks"]] == names
  assert found["config"]["added_attacks"] == names[2:]
  for before, after in itertools.pairwise(found["attacks"][1:]):
    assert after["attacked"] <= round(40 * before["accuracy"])
    assert after["accuracy"] <= before["accuracy"]
  assert accuracy(found) < found["clean"]["accuracy"] - 0.3


@pytest.mark.full
def test_an_abstaining_detector_gets_no_credit(tmp_path):
  scores = linear(flat)
  options = {"attacks": GRADIENTS, "checks": False}
  function = lambda x: abstaining(scores(flat(x)))  # noqa: E731
  plain = lambda x: scores(flat(x))  # noqa: E731
  refuses("knows 11 classes, but 'digits'", evaluated, function, tmp_path / "refused", **options)
  words = "--abstains: the classifier has 10 outputs for the 10"
  refuses(words, evaluated, plain, tmp_path / "ten", abstains=True, **options)
  detector = evaluated(function, tmp_path / "detector", abstains=True, **options)
  without = evaluated(plain, tmp_path / "without", **options)
  assert detector["config"]["abstains"]
  assert detector["clean"]["accuracy"] > 0.7
  assert accuracy(detector) <= accuracy(without) + 0.03
  assert accuracy(without) < without["clean"]["accuracy"] - 0.2


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*DEFENCES, "detector"])
def test_the_official_ensemble_breaks_no_more_of_a_decoy(name, tmp_path):
  """By more than one image.  It is given the gradients that ours has, across the masking."""
  pytest.importorskip("pyautoattack")
  features, trained = (DEFENCES[name][0], DEFENCES[name][2]) if name in DEFENCES else (flat, flat)
  scores, abstains, random = linear(trained), name == "detector", name == "resizing"
  function = lambda x: scores(features(x))  # noqa: E731
  if abstains:
    function = lambda x: abstaining(scores(features(x)))  # noqa: E731
  stages = ("apgd-ce", "apgd-dlr") if random else ("apgd-ce", "apgd-t", "square")
  options = {"attacks": ",".join(stages).replace("-", "_"), "checks": False, "abstains": abstains}
  ours = evaluated(function, tmp_path / "decoy", **options)
  source = sources.load("digits", "test", examples=EXAMPLES)
  _, images, labels = next(scoring.stream(source, EXAMPLES))
  model = foreign.look_at(foreign_models.load(tmp_path / "decoy"), source, abstains).frozen()
  module = official.bridge(
    lambda x, seed: model.from_representation(*model.represent(x), seed=seed, samples=20)
  )
  theirs = official.stages(module, images, labels, "linf", EPSILON, stages, rand=random)
  standing = np.sum(theirs[stages[-1]]["standing"])
  mine = EXAMPLES * ours["attacks"][len(stages) - 1]["accuracy"]  # the next came unasked
  assert standing < EXAMPLES * ours["clean"]["accuracy"] - 3
  assert mine <= standing + 1
