"""Measurements against NumPy, other libraries and cases with a known answer."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import refuses, slow
from norms import distances
from scipy import stats
from sklearn import metrics
from small_models import array_source, linear_classifier, linear_network, saved_model

import urkle_tf
from urkle_tf import distribution, export
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import (
  adversaries,
  attacked,
  calibration,
  corruptions,
  foreign,
  representation,
  scoring,
  smoothing,
)
from urkle_tf.evaluation import plans as planning
from urkle_tf.evaluation.candidates import Worst, choose
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.measurements.representation import Representation
from urkle_tf.evaluation.measurements.smoothing import Smoothing
from urkle_tf.evaluation.report import pictures
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.saved import foreign_models


def predictions(rng, n=400, classes=5):
  logits = 3 * rng.normal(size=(n, classes)).astype(np.float32)
  labels = rng.integers(classes, size=n)
  logits[np.arange(n), labels] += 1.5
  return logits, tf.nn.log_softmax(logits).numpy(), labels


def test_nll_and_accuracy_are_scikit_learns(rng):
  _, values, labels = predictions(rng)
  found = calibration.scores(values, labels)
  assert found["nll"] == pytest.approx(metrics.log_loss(labels, np.exp(values)), rel=1e-5)
  assert found["accuracy"] == metrics.accuracy_score(labels, values.argmax(1))


def test_nll_is_not_capped():
  values = np.array([[0.0, -5000.0], [0.0, -7000.0]], np.float32)
  assert calibration.nll(values, np.array([1, 1])) == 6000


def test_ece_is_that_of_tensorflow_probability(rng):
  logits, values, labels = predictions(rng)
  wanted = tfp.stats.expected_calibration_error(15, logits, labels_true=labels.astype(np.int32))
  assert calibration.scores(values, labels)["ece"] == pytest.approx(float(wanted), abs=1e-6)


def test_ece_of_known_cases():
  # Confidence 0.9 and right 3 times of 4: the gap is 0.15.
  values = np.log(np.tile([[0.9, 0.1]], (4, 1)))
  found = calibration.scores(values, np.array([0, 0, 0, 1]))
  assert found["ece"] == pytest.approx(0.15)
  bars = {"count": 4, "confidence": 0.9, "accuracy": 0.75}  # in the 14th of 15 bins
  for name, values_of_bins in found["reliability"].items():
    assert values_of_bins == pytest.approx([*[0] * 13, bars[name], 0])
  certain = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
  assert calibration.scores(certain, np.array([0, 1]))["ece"] == 0
  assert calibration.scores(certain, np.array([1, 0]))["ece"] == 1


def test_brier_is_a_numpy_loop(rng):
  _, values, labels = predictions(rng, n=50)
  total = 0.0
  for row, label in zip(np.exp(values.astype(np.float64)), labels, strict=True):
    total += sum((p - (k == label)) ** 2 for k, p in enumerate(row))
  assert calibration.brier(values, labels) == pytest.approx(total / 50, rel=1e-6)


@pytest.mark.parametrize(
  "right, total, low, high",
  [  # Newcombe (1998), table I, method 3
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_interval_is_the_published_one(right, total, low, high):
  found = calibration.wilson(right, total)
  assert found == pytest.approx([low, high], abs=5e-5)
  assert calibration.wilson(total - right, total) == pytest.approx([1 - high, 1 - low], abs=5e-5)


# Linear classifiers, whose robust accuracy has a closed form.

SHAPE = (4, 4, 1)


def grey_source(rng, n=300):
  """Images away from the pixel bounds, which would make the closed form more complicated."""
  images = rng.integers(100, 156, size=(n, *SHAPE)).astype(np.uint8)
  return array_source(images, rng.integers(2, size=n))


def robust_share(source, weights, bias, norm, epsilon):
  return np.mean(distances(weights, bias, source.images / 255, source.labels, norm) > epsilon)


def linear_problem(rng):
  weights = rng.normal(size=(16, 2)).astype(np.float32)
  source = grey_source(rng)
  x = source.images.reshape(source.size, -1) / 255
  middle = np.median(x @ (weights[:, 0] - weights[:, 1]))
  bias = np.array([-middle, 0], np.float32)
  # Labels of the model itself, with some noise.
  own = (x @ weights + bias).argmax(1)
  source.labels = np.where(rng.uniform(size=source.size) < 0.1, 1 - own, own)
  return source, weights, bias


def attack_rows(model, source, norm, epsilons, attacks="pgd", standing=False, **options):
  threat = urkle_tf.attacks.from_norm(norm, epsilons[0])
  plans = planning.read(attacks, threat, steps=20, classes=model.classes)
  context = Context(source, norm, epsilons, model, **{"batch_size": 64, **options})
  return attacked.measure(context, plans, standing)


@pytest.mark.parametrize("norm, epsilons", [("linf", [0.005, 0.02]), *slow(("l2", [0.02, 0.08]))])
def test_a_linear_classifier_has_its_closed_form_sampled_or_not(rng, norm, epsilons):
  # The difference of two logits is symmetric around that of the mean of z: the limit of many
  # samples decides as z = mu does, whatever the scale.
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 0.05, stochastic=True, samples=1)
  rows, details = attack_rows(model, source, norm, epsilons, eot=5)
  modes = [("sampled", 5, 0.03), ("deterministic", 1, 0.0)]
  cases = [(epsilon, *mode) for epsilon in epsilons for mode in modes]
  share = lambda radius: robust_share(source, weights, bias, norm, radius)  # noqa: E731
  for (epsilon, mode, eot, tolerance), row, detail in zip(cases, rows, details, strict=True):
    assert (row["epsilon"], row["mode"], row["eot"]) == (epsilon, mode, eot)
    low, high = share(1.01 * epsilon) - tolerance, share(0.98 * epsilon) + tolerance
    right, of_label = detail
    assert low <= row["accuracy"] == right.mean() <= min(high, row["own_accuracy"])
    assert mode == "sampled" or row["own_accuracy"] <= high
    assert row["nll"] == pytest.approx(-of_label.mean(), rel=1e-5)
  assert share(0) > share(epsilons[0]) + 0.1 > share(epsilons[1]) + 0.2  # the radii differ
  if norm == "l2":
    return
  # A call with one sample decides by the sign of a Normal around the worst margin.
  difference = weights[:, 0] - weights[:, 1]
  away = distances(weights, bias, source.images / 255, source.labels, "linf")
  worst = (away - 0.02) * np.abs(difference).sum()
  normal = stats.norm.cdf(worst / (0.05 * np.linalg.norm(difference)))
  assert abs(normal.mean() - share(0.02)) > 0.04  # a call is another classifier than the limit
  assert rows[2]["served_accuracy"] == pytest.approx(normal.mean(), abs=0.03)
  assert rows[2]["accuracy_all_draws"] < rows[2]["served_accuracy"] - 0.05
  assert (rows[2]["served_samples"], rows[2]["draws"]) == (1, 10)
  assert "served_accuracy" not in rows[3]


def test_each_mode_is_judged_on_what_broke_the_other(rng, monkeypatch):
  # An attack on the sampled classifier that finds nothing, and one on z = mu that is exact.
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 0.05, stochastic=True)
  original = adversaries.adversary

  def adversary(classifier, plan, mode, eot, alone):
    if mode == "sampled":
      return lambda images, *_: (images[None], 1.0)
    return original(classifier, plan, mode, eot, alone)

  monkeypatch.setattr(attacked, "adversary", adversary)
  (sampled, deterministic), _ = attack_rows(model, source, "linf", [0.02])
  unattacked = robust_share(source, weights, bias, "linf", 0)
  robust = robust_share(source, weights, bias, "linf", 0.02)
  assert unattacked > robust + 0.2
  assert sampled["own_accuracy"] == pytest.approx(unattacked, abs=0.03)
  assert sampled["accuracy"] == pytest.approx(robust, abs=0.03)
  assert deterministic["accuracy"] == pytest.approx(robust, abs=0.005)
  assert (sampled["zero_gradients"], deterministic["zero_gradients"]) == (1.0, 0.0)


def test_seeds_are_those_of_plan_batch_and_mode(rng, monkeypatch):
  """At every radius the same, and without the other mode too."""
  source, weights, bias = linear_problem(rng)
  model, seen = linear_classifier(weights, bias, 0.05, stochastic=True), []

  def adversary(classifier, plan, mode, eot, alone):
    def find(images, labels, seed, *_):
      seen.append((mode, *seed.numpy()))
      return images[None], 0.0

    return find

  monkeypatch.setattr(attacked, "adversary", adversary)
  calls = 2 * -(-source.size // 64)  # of a mode, at a radius
  attack_rows(model, source, "linf", [0.01, 0.02], "pgd,fgsm", eot=1, samples=1)
  both = set(seen)
  assert (len(seen), len(both)) == (4 * calls, 2 * calls)
  assert len({call[1:] for call in both}) == 2 * calls
  seen.clear()
  attack_rows(model, source, "linf", [0.01], "pgd,fgsm", modes=("deterministic",), samples=1)
  assert set(seen) == {call for call in both if call[0] == "deterministic"}


def test_noise_is_fresh_at_every_step(rng, monkeypatch):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 1.0, stochastic=True)
  plan = planning.read("pgd(steps=40)", urkle_tf.attacks.Linf(0.02))[0]
  seen = []
  frozen = type(model.frozen())
  original = frozen.from_representation

  def spy(self, loc, scale, seed=None, samples=None):
    tf.py_function(lambda value: seen.append(tuple(value.numpy())), [seed], [])
    return original(self, loc, scale, seed=seed, samples=samples)

  monkeypatch.setattr(frozen, "from_representation", spy)
  find = adversaries.adversary(model, plan, "sampled", eot=1)
  images = tf.constant(source.images[:8] / 255, tf.float32)
  labels = tf.constant(source.labels[:8])
  arguments = (images, labels, tf.constant([1, 2]), tf.constant(0.02), tf.constant(0.001))
  first = find(*arguments)[0].numpy()
  assert len(set(seen)) == len(seen) == 41  # the steps, and the value at the end
  np.testing.assert_array_equal(first, find(*arguments)[0])  # and the same in a second run
  assert len(set(seen)) == 41

  # --noise=fixed, and attacks that compare values between evaluations.
  (plan,) = planning.read("pgd(steps=3)", urkle_tf.attacks.Linf(0.02))
  plan = dataclasses.replace(plan, fixed_noise=True)
  find = adversaries.adversary(model, plan, "sampled", eot=1)
  seen.clear()
  find(*arguments)
  assert (len(seen), len(set(seen))) == (4, 1)


@pytest.mark.full
def test_standing_images_alone_give_the_same_worst_case(rng):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 1e-3, stochastic=False)
  options = {"attacks": "fgsm,pgd", "batch_size": 50}
  whole, _ = attack_rows(model, source, "linf", [0.005, 0.02], **options)
  standing, _ = attack_rows(model, source, "linf", [0.005, 0.02], standing=True, **options)
  # Each of the two attacks is exact here.
  for one, other in zip(whole, standing, strict=True):
    assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.005)
    assert ("own_accuracy" in other) == (other is standing[0])  # the others stand on its finds
  assert standing[0]["own_accuracy"] == pytest.approx(whole[0]["own_accuracy"], abs=0.005)
  clean_right = round(robust_share(source, weights, bias, "linf", 0) * source.size)
  assert standing[0]["attacked"] == clean_right < source.size
  # What broke within the smaller radius is not attacked within the larger.
  assert standing[1]["attacked"] == round(standing[0]["accuracy"] * source.size)
  assert [row["attacked"] for row in whole] == [source.size] * 4


@pytest.mark.parametrize(
  "modes", [("deterministic",), pytest.param(("sampled", "deterministic"), marks=pytest.mark.full)]
)
def test_autoattack_is_its_stages_and_the_worst_of_them(rng, modes):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 0.05, stochastic=True)
  epsilons = [0.005, 0.02]
  options = {"attacks": "pgd,autoattack(steps=8, queries=10)", "eot": 5, "modes": modes}
  rows, details = attack_rows(model, source, "linf", epsilons, **options)
  assert len(details) == len(rows)
  names = ["pgd", "apgd_ce", "apgd_t", "fab_t", "square", "autoattack"]
  assert [row["name"] for row in rows] == [name for name in names for _ in range(2 * len(modes))]
  for epsilon in epsilons:
    for mode in modes:
      _, *stages, whole = [row for row in rows if (row["epsilon"], row["mode"]) == (epsilon, mode)]
      accuracies = [row["accuracy"] for row in stages]
      assert accuracies == sorted(accuracies, reverse=True)  # each counts those before it
      assert whole["accuracy"] == accuracies[-1]
      wanted = robust_share(source, weights, bias, "linf", epsilon)
      assert whole["accuracy"] == pytest.approx(wanted, abs=0.03 if mode == "sampled" else 0.005)
      assert whole["stages"] == names[1:-1]
      assert whole["seconds"] == pytest.approx(sum(row["seconds"] for row in stages), abs=0.02)
      assert [row["targets"] for row in stages] == [0, 1, 1, 0]
      assert "targeted margin" in stages[1]["note"]  # two classes
      assert stages[1]["attacked"] <= stages[0]["attacked"] < source.size
  assert rows[0]["attacked"] == source.size  # PGD is no stage
  own = ["own_accuracy" in row for row in rows]  # that of a stage would count earlier ones too
  assert own == [True] * 3 * len(modes) + [False] * 9 * len(modes)
  needed = set(rows[0]) - {"loss", "targets", "own_accuracy", "own_interval", "noise"}
  assert needed <= set(rows[-len(modes)])  # of the same mode


def test_targets_are_tried_one_after_the_other(rng):
  # The most likely wrong class is out of reach; the next one is near, in the other direction.
  source = grey_source(rng, n=12)
  source.labels = np.zeros(12, np.int64)
  weights = np.repeat(np.float32([[0, -0.01, 5]]), 16, 0)
  model = linear_classifier(weights, np.float32([0, -1, -46]), 1e-3, stochastic=False)
  found = {}
  for count in (1, 2):
    spec = f"apgd_t(steps=4, targets={count})"
    (row,), _ = attack_rows(model, source, "linf", [0.2], spec)
    assert (row["targets"], row["attacked"], row["steps"]) == (count, 12, 4)
    found[count] = row["accuracy"], row["own_accuracy"]
  assert found == {1: (1, 1), 2: (0, 0)}


def test_worst_prefers_what_is_misclassified():
  labels = np.array([0, 0, 0])
  worst = Worst(np.log(np.full((3, 3), 1 / 3)) + [[1e-3, 0, 0]], labels)
  # Wrong, though p(y) is higher than it was; wrong; right, with p(y) higher: not taken.
  candidates = np.log([[0.34, 0.5, 0.16], [0.30, 0.29, 0.41], [0.40, 0.30, 0.30]])
  assert worst.update(np.array([0, 1, 2]), candidates).tolist() == [True, True, False]
  assert worst.right.tolist() == [False, False, True]
  again = worst.update(np.array([0]), np.log([[0.45, 0.44, 0.11]]))  # right: cannot undo it
  assert again.tolist() == [False]


def test_what_the_choosing_draws_prefer_is_scored_by_others():
  labels = np.zeros(4, np.int64)
  right, wrong = np.log([0.9, 0.1]), np.log([0.2, 0.8])
  clean_values = np.tile(right, (4, 1))
  votes = np.zeros((4, 3), np.int64)
  worst = Worst(clean_values, labels, clean_values, votes)
  everything = np.arange(4)
  choice = np.stack([wrong, wrong, right, np.log([0.8, 0.2])])
  scored = np.stack([wrong, right, wrong, np.log([0.95, 0.05])])
  taken = worst.update(everything, choice, scored, np.array([[1, 1, 0]] * 4))
  assert taken.tolist() == [True, True, True, True]
  # Luck with the choosing draws (the second) breaks nothing; the verdict is the others'.
  assert worst.right.tolist() == [False, True, False, True]
  np.testing.assert_array_equal(worst.of_label, scored[:, 0])
  # What is broken stays broken, however much worse the choosing draws find something else.
  worse = np.log([[0.01, 0.99]] * 4)
  fine = np.log([[0.99, 0.01]] * 4)
  assert worst.update(everything, worse, fine, votes).tolist() == [False, True, False, True]
  assert worst.right.tolist() == [False, True, False, True]
  np.testing.assert_array_equal(worst.votes[:, 0], [1, 0, 1, 0])
  other = Worst(clean_values, labels, clean_values, votes)
  other.merge(worst)
  assert other.right.tolist() == [False, True, False, True]
  np.testing.assert_array_equal(other.scored, worst.scored)


def test_a_batch_s_candidate_is_chosen_by_the_choosing_draws_alone():
  images = np.zeros((3, 1, 1, 1), np.float32)
  first = np.log([[0.3, 0.7], [0.6, 0.4], [0.9, 0.1]])
  second = np.log([[0.6, 0.4], [0.7, 0.3], [0.95, 0.05]])
  labels = np.zeros(3, np.int64)
  candidates = [(images + 1, first), (images + 2, second)]
  choice, chosen, changed = choose(np.log([[0.9, 0.1]] * 3), labels, images, candidates)
  np.testing.assert_array_equal(chosen.ravel(), [1, 1, 0])
  assert changed.tolist() == [True, True, False]
  np.testing.assert_array_equal(choice[:2], first[:2])


def test_what_chooses_a_candidate_does_not_score_it():
  clean, found = np.log([[0.9, 0.1]]), {"choosing": [0.2, 0.8], "scoring": [0.7, 0.3]}
  values = {name: {"sampled": np.log([p])} for name, p in found.items()}
  votes = np.zeros((1, 10), np.int64)

  class Scorer:
    choosing = staticmethod(lambda images: values["choosing"])
    with_votes = staticmethod(lambda images: (values["scoring"], votes))

  image, label, states = np.zeros((1, 2, 2, 1)), np.array([0]), {}
  states["worst", "sampled"] = Worst(clean, label, clean, votes)
  runs = {"sampled": lambda: (image[None], 0.0)}
  record = attacked._attack(runs, Scorer(), states, np.array([0]), image, label, ())
  for name, wanted in (("choice", "choosing"), ("scored", "scoring")):
    np.testing.assert_array_equal(record[f"worst.sampled.{name}"], values[wanted]["sampled"])


def test_served_figures_are_a_plain_loop():
  labels = np.array([0, 1, 2])
  votes = np.zeros((3, 12), np.int64)
  votes[1, :9], votes[2, 2:] = 1, 2
  votes[0, 11] = 5  # beyond the first ten calls
  found = calibration.served(votes, labels, 20)
  assert found["served_accuracy"] == pytest.approx((11 + 9 + 10) / 36)
  assert found["accuracy_all_draws"] == pytest.approx(1 / 3)
  assert found["interval_all_draws"] == calibration.wilson(1, 3)
  assert found["served_interval"] == pytest.approx(calibration.wilson(30 / 12, 3))
  assert (found["served_samples"], found["draws"]) == (20, 10)


def test_stream_gives_full_batches_of_what_is_wanted(rng):
  source = grey_source(rng, n=23)
  mask = np.arange(23) % 3 != 0
  parts = list(scoring.stream(source, 5, mask))
  assert [len(positions) for positions, _, _ in parts] == [5, 5, 5]
  positions = np.concatenate([part[0] for part in parts])
  np.testing.assert_array_equal(positions, np.flatnonzero(mask))
  images = np.concatenate([part[1] for part in parts])
  np.testing.assert_allclose(images, source.images[positions] / 255, atol=1e-6)
  np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), source.labels[mask])
  assert [len(p) for p, _, _ in scoring.stream(source, 10)] == [10, 10, 3]
  assert list(scoring.stream(source, 10, np.zeros(23, bool))) == []


def test_stream_reads_nothing_after_the_last_that_is_wanted(rng, monkeypatch):
  source, read = grey_source(rng, n=23), []
  batches = scoring.pipeline.batches

  def watched(*arguments):
    for batch in batches(*arguments):
      read.append(len(batch["image"]))
      yield batch

  monkeypatch.setattr(scoring.pipeline, "batches", watched)
  (part,) = scoring.stream(source, 5, np.arange(23) < 4)
  assert len(part[0]) == 4
  assert sum(read) <= 10  # the batch that shows that it is the last may be read too


def test_scorer_approaches_the_limit_classifier(rng):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 0.5, stochastic=True)
  images = (source.images[:7] / 255).astype(np.float32)
  found = scoring.Scorer(model, 10, samples=5000)(images)
  assert found["sampled"].shape == found["deterministic"].shape == (7, 2)
  # The difference of the logits is Normal: integrate the sigmoid over it.
  logits = images.reshape(7, -1) @ weights + bias
  difference = weights[:, 0] - weights[:, 1]
  nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
  spread = 0.5 * np.linalg.norm(difference)
  values = (logits[:, 0] - logits[:, 1])[:, None] + spread * nodes
  wanted = (node_weights / (1 + np.exp(-values))).sum(1) / math.sqrt(2 * math.pi)
  np.testing.assert_allclose(np.exp(found["sampled"][:, 0]), wanted, atol=0.02)
  np.testing.assert_allclose(found["deterministic"], tf.nn.log_softmax(logits), atol=1e-5)


def test_draws_that_choose_are_others_and_votes_are_those_of_calls(rng):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(weights, bias, 0.5, stochastic=True, samples=4)
  images = (source.images[:7] / 255).astype(np.float32)
  found = scoring.Scorer(model, 10, samples=30)
  scores = found.both(images)
  assert scores.votes.shape == (7, 10)  # at least 10 calls
  assert np.abs(scores.values["sampled"] - scores.choice["sampled"]).min() > 1e-5
  np.testing.assert_array_equal(scores.values["deterministic"], scores.choice["deterministic"])
  loc, scale = model.represent(images)
  probabilities = []
  for call in range(10):
    seed = distribution.fold([0, 0], scoring.SCORE_STREAM, call)
    noise = tf.random.stateless_normal([1, 4, 16], seed).numpy()
    logits = (loc[:, None] + scale[:, None] * noise) @ weights + bias
    probabilities.append(tf.nn.softmax(logits).numpy().mean(1))
  np.testing.assert_array_equal(scores.votes, np.argmax(probabilities, 2).T)
  mean = np.log(np.mean(probabilities, 0))
  np.testing.assert_allclose(scores.values["sampled"], mean, atol=1e-4)


def test_values_that_are_not_finite_are_refused(rng):
  source, weights, bias = linear_problem(rng)
  model = linear_classifier(np.full_like(weights, np.nan), bias, 0.1, stochastic=True)
  refuses("NaN or infinite", scoring.Scorer(model, 4), (source.images[:4] / 255).astype(np.float32))


def test_attack_specs():
  plans = planning.read("pgd(steps=7, restarts=2), fgsm,pgd", urkle_tf.attacks.Linf(0.1), steps=20)
  wanted = [("pgd", 7, 2), ("fgsm", 1, 1), ("pgd", 20, 1)]
  assert [(p.name, p.steps, p.restarts) for p in plans] == wanted
  assert plans[0].step_size(0.07) == pytest.approx(2.5 * 0.07 / 7)
  assert plans[1].step_size(0.07) == 0.07
  texts = ["pgd(step_size=2/255)", "pgd(start=0.5, steps=3)"]
  fixed, started = planning.read(texts, urkle_tf.attacks.Linf(0.1), step_size=0.5)
  assert fixed.step_size(0.07) == 2 / 255
  assert (fixed.options, started.options) == ("step_size=0.007843", "start=0.5")


@pytest.mark.parametrize(
  "text, classes, message",
  [
    ("pgb", 2, "unknown attack 'pgb'; did you mean 'pgd'"),
    ("pgd(step=3)", 2, "did you mean 'steps'"),
    ("", 2, "give --attacks"),
    ("apgd_ce(targets=3)", 2, "unknown option of apgd_ce 'targets'"),
    ("apgd_dlr", 2, "at least 3 classes, but there are 2"),
    ("apgd_t", 1, "one class is never wrong"),
  ],
)
def test_wrong_attacks_are_one_line(text, classes, message):
  refuses(message, planning.read, text, urkle_tf.attacks.Linf(0.1), classes=classes)


# A model that looks its scores up in a table: nothing of it has a gradient.


@pytest.mark.full
def test_a_model_without_gradients_is_attacked_without_them(tmp_path):
  levels = 10

  def serve(images):
    # One class for each tenth of the sum of the first row, far from linear in it.
    total = tf.reduce_sum(images[:, 0], [1, 2])
    return tf.gather(5 * tf.eye(levels), tf.cast(total * 4, tf.int32) % levels)

  options = {"attacks": "pgd,autoattack(queries=30)", "epsilon": 0.3, "checks": False}
  options |= {"examples": 40, "output_dir": str(tmp_path / "report")}
  found = urkle_tf.assess(saved_model(serve, tmp_path / "model"), **options)
  rows = found["attacks"]
  assert [row["name"] for row in rows] == ["square", "autoattack", "hop_skip_jump"]
  assert rows[1]["stages"] == ["square"]
  assert rows[2]["attacked"] == round(40 * rows[1]["accuracy"])
  assert found["config"]["added_attacks"] == ["hop_skip_jump"]
  assert found["config"]["skipped_attacks"] == ["pgd", "apgd_ce", "apgd_t", "fab_t"]
  text = (tmp_path / "report" / "report.md").read_text()
  assert "Not run, since the model has no gradient: pgd, apgd_ce, apgd_t, fab_t." in text

  # An attack by gradients, if it runs all the same, gets gradients of zero.
  source = sources.load("digits", "test", examples=8)
  model = foreign.look_at(foreign_models.load(tmp_path / "model"), source)
  assert not model.differentiable
  (plan,) = planning.read("pgd(steps=2)", urkle_tf.attacks.Linf(0.1))
  find = adversaries.adversary(model, plan, "deterministic")
  images = tf.constant(source.images / 255, tf.float32)
  radius_and_step = tf.constant(0.1), tf.constant(0.01)
  given = images, tf.constant(source.labels), tf.constant([1, 2])
  candidates, zeros = find(*given, *radius_and_step)
  assert float(zeros) == 1.0
  assert np.abs(candidates[0] - images).max() <= 0.1 + 1e-6


# The part without labels.


def test_nearest_is_a_loop(rng):
  keys, queries = rng.normal(size=(2, 40, 3))
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
  wanted = [
    max((cosine(query, key), j) for j, key in enumerate(keys) if j != i)[1]
    for i, query in enumerate(queries)
  ]
  np.testing.assert_array_equal(representation.nearest(queries, keys)[:, 0], wanted)


def test_the_representation_of_one_image_has_rank_and_drift_0(rng):
  """Its rank was NaN, which no report can hold, and its drift 1e11."""
  context = Context(grey_source(rng, n=1), "linf", [0.02], network=linear_network(SHAPE, 0.5))
  found = representation.measure(context, Representation(steps=1))
  assert (found["effective_rank"], found["drift"]) == (0, 0)


@pytest.mark.parametrize(
  ("measure", "options"),
  [
    (representation.measure, Representation(steps=1)),
    (smoothing.measure, Smoothing(samples=9, guess=2, examples=1)),
  ],
  ids=["representation", "smoothing"],
)
def test_an_encoder_that_returns_nan_has_no_figures(rng, measure, options):
  """They were NaN, and writing the report ended in a traceback."""
  network = linear_network(SHAPE, 0.5, np.full((16, 2), np.nan, np.float32))
  context = Context(grey_source(rng, n=3), "linf", [0.02], network=network, kind="encoder")
  said = "the encoder returns NaN or infinite values: check its weights"
  refuses(said, measure, context, options)


def test_the_worst_kl_of_a_linear_encoder_is_its_closed_form(rng):
  # loc = A x with constant scale s: KL = ||A d||^2 / (2 s^2), largest at a corner of the ball.
  matrix = np.zeros((16, 2), np.float32)
  matrix[:8, 0] = [1, -2, 3, 1, 1, -1, 2, 1]  # rows that do not overlap: the corner maximises both
  matrix[8:, 1] = [2, 2, -1, 1, 1, 1, -1, 3]
  network = linear_network(SHAPE, 0.5, matrix)
  context = Context(grey_source(rng, n=12), "linf", [0.02], network=network, batch_size=5)
  found = representation.measure(context, Representation(steps=20))
  wanted = sum(np.abs(matrix).sum(0) ** 2) * 0.02**2 / (2 * 0.5**2)
  assert found["kl_mean"] == pytest.approx(wanted, rel=1e-3)
  assert found["kl_max"] == pytest.approx(wanted, rel=1e-3)
  assert found["kl_mean_part"] == pytest.approx(found["kl_mean"], rel=1e-3)
  assert found["sigma"] == found["sigma_min"] == found["sigma_max"] == 0.5
  x = grey_source(np.random.default_rng(0), n=12).images.reshape(12, -1) / 255 @ matrix
  assert found["snr"] == pytest.approx(np.mean(np.abs(x)) / 0.5, rel=1e-4)
  assert found["loc_std"] == pytest.approx(x.std(0).mean(), rel=1e-4)
  eigenvalues = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
  expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
  assert found["effective_rank"] == pytest.approx(expected, rel=1e-3)
  assert found["rank_examples"] == 12
  distances = [np.linalg.norm(x[i] - x[j]) for i in range(12) for j in range(12) if i != j]
  moved = 0.02 * np.linalg.norm(np.abs(matrix).sum(0))
  assert found["drift"] == pytest.approx(moved / np.mean(distances), rel=1e-3)
  assert found["examples"] == 12
  # All images have the same KL, so both forms of the regulariser agree.
  assert found["regulariser_per_nat"] == pytest.approx(math.sqrt(wanted / 2), rel=1e-3)
  assert found["regulariser_tight_per_nat"] == pytest.approx(math.sqrt(wanted / 2), rel=1e-3)
  assert "M" not in found


def test_an_images_own_figures_and_both_forms_of_the_regulariser():
  # A square pixel grid of one weight each; black images cannot get darker, and have half the KL's
  # root: loc = sum of signed pixels, of which the negative ones cannot move down.
  weights = np.array([[1.0]] * 12 + [[-1.0]] * 4, np.float32)
  network = linear_network(SHAPE, 0.2, weights)
  pixels = np.full((6, *SHAPE), 128, np.uint8)
  pixels[::2] = 0
  source = array_source(pixels, [0] * 6)
  context = Context(source, "linf", [0.05], network=network, kind="encoder", batch_size=4)
  context.save_images = True
  found = representation.measure(context, Representation(steps=20, loss_cap=3.0))
  arrays = context.arrays
  moved = 0.05 * np.array([12, 16] * 3)  # black images: the 12 pixels that may rise
  kl = moved**2 / (2 * 0.2**2)
  np.testing.assert_allclose(arrays["representation_kl"], kl, rtol=1e-3)
  np.testing.assert_allclose(arrays["representation_sigma"], 0.2, rtol=1e-6)
  grey = 128 / 255 * 8
  np.testing.assert_allclose(arrays["representation_snr"], np.array([0, grey] * 3) / 0.2, rtol=1e-5)
  change = arrays["representation_adversaries"] - pixels / np.float32(255)
  np.testing.assert_allclose(np.abs((change.reshape(6, 16) @ weights)[:, 0]), moved, rtol=1e-3)
  between = [abs(a - b) for i, a in enumerate([0, grey] * 3) for b in ([0, grey] * 3)[i + 1 :]]
  np.testing.assert_allclose(arrays["representation_drift"], moved / np.mean(between), rtol=1e-3)
  assert found["M"] == 3.0
  assert found["regulariser"] == pytest.approx(3 * math.sqrt(kl.mean() / 2), rel=1e-3)
  assert found["regulariser_tight"] == pytest.approx(3 * np.sqrt(kl / 2).mean(), rel=1e-3)
  assert found["regulariser_tight"] < found["regulariser"] - 0.02


def test_neighbours_that_flip_by_hand():
  """Black and white pixels move one way only: (1, 0, 0) to (0.7, 0.3, 0.3), and so on."""
  pixels = np.zeros((3, 16), np.uint8)
  for row in range(3):
    pixels[row, : row + 1] = 255
  network = linear_network(SHAPE, 0.5, np.eye(16, 3, dtype=np.float32))
  source = array_source(pixels.reshape(3, *SHAPE), [0] * 3)
  context = Context(source, "linf", [0.3], network=network, kind="encoder")
  context.save_images = True
  found = representation.measure(context, Representation(steps=10))
  # The first image's cosines are 0.71 with (1, 1, 0) and 0.58 with (1, 1, 1); attacked, 0.86 and
  # 0.92.  The others stay nearest to each other.
  assert context.arrays["representation_neighbour_flips"].tolist() == [True, False, False]
  assert found["neighbour_flips"] == pytest.approx(1 / 3)
  assert found["kl_mean"] == pytest.approx(3 * 0.3**2 / (2 * 0.5**2), rel=1e-4)


# The whole.


SMALL = {"examples": 60, "attack_steps": 3, "batch_size": 40}
SMALL |= {"representation_examples": 30, "checks": False}


def test_report_is_the_contracts(exported, tmp_path, capsys):
  place = {"classifier": str(exported / "sampled"), "output_dir": str(tmp_path / "report")}
  # Each epsilon once.
  arguments = {**place, **SMALL, "epsilons": [0.05, 0.1, 0.05], "save_images": True, "eot": 4}
  result = urkle_tf.assess(**arguments)
  stored = json.loads((tmp_path / "report" / "report.json").read_text())
  assert stored == json.loads(json.dumps(result))
  assert set(stored) == {"clean", "attacks", "representation", "config", "versions"}
  assert {"accuracy", "nll", "ece", "brier", "examples"} <= set(stored["clean"])
  assert stored["clean"]["examples"] == 60
  rows = [(row["name"], row["epsilon"], row["mode"]) for row in stored["attacks"]]
  wanted = itertools.product(("pgd", "fgsm"), (0.05, 0.1), ("sampled", "deterministic"))
  assert rows == list(wanted)
  for row in stored["attacks"]:
    needed = "name norm epsilon steps restarts eot mode accuracy interval nll ece brier"
    assert set(needed.split()) <= set(row)
    assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert row["accuracy"] <= stored["clean"]["accuracy"] + 1e-9 or row["mode"] != "sampled"
    assert row["eot"] == (4 if row["mode"] == "sampled" else 1)
  needed = "kl_mean kl_max sigma snr drift neighbour_flips"
  assert set(needed.split()) <= set(stored["representation"])
  assert stored["representation"]["examples"] == 30
  assert str(tmp_path) not in json.dumps(stored)

  text = (tmp_path / "report" / "report.md").read_text()
  assert text.count("| pgd | linf") == text.count("| fgsm | linf") == 4
  _, served = text.split("## As it is served")
  # What a caller sees of the sampled classifier: clean, and a row of each attack and radius.
  for row in [stored["clean"], *stored["attacks"]]:
    assert ("served_accuracy" in row) == (row["mode"] == "sampled")
    if row["mode"] == "sampled":
      assert row["accuracy_all_draws"] <= row["served_accuracy"]
      assert f"| {100 * row['served_accuracy']:.2f} (" in served
  assert not (tmp_path / "report" / "partial").exists()
  for figure in ("accuracy_vs_epsilon.png", "examples.png"):
    assert f"figures/{figure}" in text
    assert (tmp_path / "report" / "figures" / figure).read_bytes()[:4] == b"\x89PNG"

  with np.load(tmp_path / "report" / "images.npz") as arrays:
    images = sources.load("digits", "test", examples=60).images / 255
    for number, row in enumerate(stored["attacks"]):
      found = arrays[f"adversaries_{number}"]
      assert np.abs(found - images).max() <= row["epsilon"] + 1e-6
      assert arrays[f"right_{number}"].mean() == row["accuracy"]
    assert np.abs(arrays["adversaries_2"] - images).max() > 0.09
    # The saved images are the ones that the figure is about.
    model = export.load_classifier(exported / "sampled")
    logits = model.logits(arrays["adversaries_3"]).numpy()  # pgd, 0.1, deterministic
    np.testing.assert_array_equal(logits.argmax(1) == arrays["labels"], arrays["right_3"])

  # The same command finds it finished; another one is refused.
  capsys.readouterr()
  assert urkle_tf.assess(**arguments) == stored
  assert "is finished" in capsys.readouterr().out
  refuses("--seed=0", urkle_tf.assess, **arguments | {"seed": 1})


@pytest.mark.full
def test_bound_and_corruptions_in_a_report(exported, tmp_path):
  options = {"loss_cap": 4.0, "corruptions": "pixelate,frost", "severities": [1, 5], **SMALL}
  options |= {"attacks": "fgsm", "eot": 2, "output_dir": str(tmp_path / "report")}
  report = urkle_tf.assess(str(exported / "sampled"), **options)
  part = report["bound"]
  assert (part["M"], part["examples"], part["samples"], part["epsilon"]) == (4.0, 60, 200, 0.1)
  assert part["value"] == pytest.approx(part["clean_loss"] + part["regulariser"])
  assert part["measured_adversarial_loss"] <= part["value_tight"] <= part["value"]
  assert part["vacuous"] is (part["value"] >= 4.0)

  part = report["corruptions"]
  source = sources.load("digits", "test", examples=60)
  images = corruptions.corrupt(np.float32(source.images) / 255, "pixelate", 5, np.arange(60), 0)
  right = export.load_classifier(exported / "sampled").logits(images).numpy().argmax(1)
  row = part["deterministic"]["by_type"]["pixelate"]["severities"]["5"]
  assert row["accuracy"] == np.mean(right == source.labels)
  assert sum(part["reliability"]["count"]) == 2 * 2 * 60
  figures = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
  assert {"corruptions.png", "reliability.png"} <= figures
  panels = [title for title, _ in pictures.reliability_panels(report)]
  assert panels == ["clean", "corrupted", "fgsm, linf, 0.1"]


@pytest.mark.full
def test_one_mode_is_measured_alone(exported, tmp_path, monkeypatch):
  arguments = {"classifier": str(exported / "sampled"), "eot": 2, "attacks": "fgsm", **SMALL}
  arguments |= {"corruptions": "contrast", "severities": [3.0], "representation_examples": 0}
  both = urkle_tf.assess(**arguments)
  sampled = urkle_tf.assess(**arguments, modes="sampled")
  assert [row["mode"] for row in sampled["attacks"]] == ["sampled"]
  assert "deterministic" not in sampled["corruptions"]
  assert sampled["clean"] == {k: v for k, v in both["clean"].items() if k != "deterministic"}
  assert (both["config"].get("modes"), sampled["config"]["modes"]) == (None, "sampled")

  def forbidden(*_, **__):
    raise AssertionError("z was sampled")

  monkeypatch.setattr(Classifier, "from_noise", forbidden)
  output = {"output_dir": str(tmp_path / "report"), "measure": "checks(examples=10)"}
  alone = urkle_tf.assess(**arguments, **output, modes="deterministic")
  assert [row["mode"] for row in alone["attacks"]] == ["deterministic"]
  assert alone["attacks"][0]["own_accuracy"] == both["attacks"][1]["own_accuracy"]
  assert alone["clean"]["mode"] == "deterministic"
  assert both["clean"]["deterministic"].items() <= alone["clean"].items()
  assert both["corruptions"]["deterministic"].items() <= alone["corruptions"].items()
  assert len(alone["checks"]) == 7  # all except that of noise
  text = (tmp_path / "report" / "report.md").read_text()
  assert "z = mu" in text
  assert "sampled" not in text
  assert "As it is served" not in text


@pytest.mark.full
def test_a_report_of_another_model_is_never_returned(exported, tmp_path):
  model = export.load_classifier(exported / "deterministic")
  place = str(export.export_classifier(model, tmp_path / "classifier", {"epsilon": 0.1}))
  arguments = {"output_dir": str(tmp_path / "report"), "attacks": "fgsm"}
  arguments |= SMALL | {"representation_examples": 0}
  result = urkle_tf.assess(place, **arguments)
  assert [row["mode"] for row in result["attacks"]] == ["deterministic"]
  assert result["clean"]["mode"] == "deterministic"
  assert "representation" not in result
  model.head.get_layer("dense1").bias.assign_add(np.ones(10, np.float32))
  export.export_classifier(model, place, {"epsilon": 0.1})
  refuses("another model", urkle_tf.assess, place, **arguments)


def test_an_encoder_alone_needs_no_labels(exported, tmp_path):
  place = {"encoder": str(exported / "encoder"), "output_dir": str(tmp_path / "report")}
  # The cap is less than ln(10): of an encoder no classes are known.
  result = urkle_tf.assess(save_images=True, loss_cap=1.5, **place, **SMALL)
  assert set(result) == {"representation", "config", "versions"}
  part = result["representation"]
  assert (part["norm"], part["epsilon"]) == ("l2", 0.5)  # those of the training
  assert 0 < part["kl_mean"] <= part["kl_max"]
  assert part["regulariser"] == pytest.approx(1.5 * math.sqrt(part["kl_mean"] / 2), rel=1e-5)
  with np.load(tmp_path / "report" / "images.npz") as arrays:
    assert arrays["representation_kl"].mean() == pytest.approx(part["kl_mean"], rel=1e-5)
    assert arrays["representation_adversaries"].shape == (30, 8, 8, 1)


def test_nothing_of_a_deleted_report_is_taken_for_a_part_of_the_next(exported, tmp_path):
  """Its broken images were shown, --html found its page written, --against read its images."""
  left = [tmp_path / name for name in ("images.npz", "report.html", "figures/examples.png")]
  (tmp_path / "figures").mkdir()
  for file in (*left, tmp_path / "report.md", tmp_path / "figures" / "own.png"):
    file.touch()
  encoder, small = str(exported / "encoder"), SMALL | {"representation_examples": 2}
  urkle_tf.assess(encoder=encoder, output_dir=str(tmp_path), **small)
  assert not any(file.exists() for file in left)
  assert {file.name for file in tmp_path.glob("figures/*")} == {"latent_map.png", "own.png"}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"classifier": "nowhere"}, "no folder 'nowhere'"),
    ({"classifier": None}, "give --classifier=FOLDER"),
    ({"encoder": "too"}, "one of them"),
    ({"image_size": 16}, "takes images of 8x8x1, but 'digits' has 16x16x1: give --image_size=8"),
    ({"eot": 0}, "--eot must be at least 1"),
    ({"attack_step_size": 0}, "--attack_step_size must be above 0, got 0"),
    ({"modes": "samplad"}, "unknown mode of this model 'samplad'; did you mean 'sampled'"),
    ({"modes": "deterministic", "loss_cap": 4.0}, "leave out --loss_cap or --modes"),
    ({"classifier": "deterministic", "modes": "sampled"}, "mode of this model 'sampled' (known: d"),
    ({"measure": "bound"}, "bound needs the option 'loss_cap'"),
    ({"measure": "bound(loss_cap=4, examples=0)"}, "bound: examples must be at least 1, got 0"),
    ({"loss_cap": 2.3}, "--loss_cap must be a number above ln(10) = 2.3026 for 10 classes"),
    ({"classifier": "deterministic", "loss_cap": 3.0}, "deterministic: leave out --loss_cap"),
    ({"classifier": None, "encoder": "encoder", "loss_cap": 0}, "must be in (0, inf), got 0"),
    (
      {"classifier": None, "encoder": "encoder", "representation_examples": 0},
      "nothing is measured",
    ),
    (
      {"classifier": None, "encoder": "encoder", "loss_cap": 3.0, "representation_examples": 0},
      "--loss_cap of an encoder alone needs --representation_examples above 0",
    ),
    ({"corruptions": "forst"}, "did you mean 'frost'"),
    ({"severities": [1]}, "--severities has no effect without --corruptions"),
    ({"norm": "l2"}, "--norm=l2 needs --epsilon, because the default, 0.1, is a radius in linf"),
    ({"measure": "representation(restarts=0)"}, "representation: restarts must be at least 1"),
    ({"noise": "frish"}, "unknown noise 'frish'; did you mean 'fresh'"),
    ({"representation_examples": -1}, "examples must be an integer of at least 0, got -1"),
  ],
)
def test_mistakes_leave_no_folder(exported, tmp_path, monkeypatch, changes, message):
  monkeypatch.chdir(exported)
  arguments = {"classifier": "sampled", "output_dir": str(tmp_path / "report")}
  refuses(message, urkle_tf.assess, **arguments | changes)
  assert not (tmp_path / "report").exists()


def test_other_classes_are_refused(rng):
  source = grey_source(rng, n=4)
  refuses("knows 10 classes, but 'grey' has 2", compatibility.check_classes, 10, None, source)
  refuses("'cat' and 'b'", compatibility.check_classes, 2, ["a", "cat"], source)
  compatibility.check_classes(2, ["a", "b"], source)
  source.class_names = ["1", "2"]
  compatibility.check_classes(2, ["0", "1"], source)  # counted from 0 or from 1
  compatibility.check_classes(2, ["01", "02"], source)
  source.class_names = ["10", "9"]  # as a folder sorts them
  refuses("'9' and '10'", compatibility.check_classes, 2, ["9", "10"], source)
  source.class_names = None
  refuses("no labels", compatibility.check_labelled, source)
  source.class_names = ["a"]
  refuses("one class, 'a'", compatibility.check_labelled, source)
