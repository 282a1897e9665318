"""The verdicts of the checks, by hand, of 100 images of class 0."""

import types

import numpy as np
import pytest
import tensorflow as tf
from small_models import array_source

from urkle_tf import attacks
from urkle_tf.attacks import losses
from urkle_tf.evaluation import checks


def made(**fields):
  """`_Checks` of images that are all right as they are."""
  found = object.__new__(checks._Checks)
  found.__dict__ |= {"_labels": np.zeros(100, np.int64), "_right": np.ones(100, bool)}
  found.__dict__ |= {"_tolerance": 2, "_epsilon": 0.1, "_threat": attacks.Linf(0.1), **fields}
  return found


def beyond(count):
  """All images but the first ones: bool [100]."""
  return np.arange(100) >= count


def scores(wrong):
  """Log-probabilities that are wrong for the first images."""
  return np.log(np.where(beyond(wrong)[:, None], [0.9, 0.1], [0.2, 0.8]))


@pytest.mark.parametrize(
  "wrong, fallen, passed",
  [
    ((0, 30, 20, 10), 40, False),  # 30 points stronger than one step, of which 20 are on its way
    ((0, 30, 20, 10), 25, True),  # by 15 points: no fault of the step
    ((0, 5, 10, 10), 40, True),  # nothing that the end of the step does not break too
  ],
)
def test_one_step(wrong, fallen, passed):
  check = made(_score=scores)._check_one_step(wrong, beyond(fallen), np.full(100, -2.0))
  assert check["passed"] is passed
  assert check["accuracy_one"] == pytest.approx(0.9)
  assert check["accuracy_many"] == pytest.approx(1 - fallen / 100)
  assert check["broken_within"] == pytest.approx((max(wrong) - 10) / 100)
  assert check["loss_one"] == pytest.approx(-0.9 * np.log(0.9) - 0.1 * np.log(0.2))
  assert check["loss_many"] == 2


def test_chance_decides_over_one_image_in_fifty():
  """At least over one, and the first images are checked."""
  source = array_source(np.zeros((300, 2, 2, 1), np.uint8), np.zeros(300, int))
  scorer = lambda images: {"z": np.log([[0.9, 0.1]] * len(images))}  # noqa: E731
  fields = {"source": source, "scorer": scorer, "modes": ("z",), "norm": "linf", "epsilon": 0.1}
  context = types.SimpleNamespace(model=None, eot=1, batch_size=250, seed=0, **fields)
  found = [checks._Checks(context, examples) for examples in (10, 999)]
  assert [one._tolerance for one in found] == [1, 6]
  assert [one._count for one in found] == [10, 300]


def test_what_each_check_is_given(monkeypatch):
  """PGD with 20 steps breaks images 0 to 29 of the 90 that are right, the margin 30 to 49."""
  found = made(_right=beyond(10), _mode="deterministic")
  asked, given = [], {}

  def broken(find, plan, epsilon, mask, stream):
    asked.append((plan.steps, plan.restarts, plan.loss.__name__, mask.sum(), stream))
    return mask & ~beyond(30 if len(asked) == 1 else 50), "values"

  found.__dict__ |= {"_compile": lambda plan: plan, "_broken": broken}
  found._gradients = lambda: ("zeros", "points")
  names = ("gradients", "one_step", "epsilon", "effort", "black_box", "random_noise", "saturation")
  for name in names:
    keep = lambda *arguments, name=name: given.setdefault(name, arguments)  # noqa: E731
    monkeypatch.setattr(found, f"_check_{name}", keep, raising=False)
  found._count = 100
  assert len(list(found.all(beyond(5)))) == 7
  assert asked == [(20, 1, "cross_entropy", 90, 0), (100, 2, "margin", 70, 1)]
  assert given["gradients"] == ("zeros",)
  counts = {
    name: [np.sum(part) for part in parts if isinstance(part, np.ndarray)]
    for name, parts in given.items()
  }
  assert [given["one_step"][i] for i in (0, 2)] == ["points", "values"]
  wanted = {"one_step": [70], "epsilon": [70], "effort": [95, 50], "black_box": [50]}
  assert counts == {"gradients": [], "saturation": [], "random_noise": [50], **wanted}


def test_an_image_is_broken_by_any_candidate_and_scored_by_its_worst():
  """Five images in batches of two; the first is wrong as it is, and not attacked."""
  found = made(_count=5, _batch_size=2, _seed=tf.constant([1, 2]), _labels=np.zeros(5, int))
  found._images, seeds = np.arange(5, dtype=np.float32), []
  found._clean = np.tile(np.log([0.9, 0.1]), (5, 1))
  table = {1: (0.3, 0.7), 2: (0.8, 0.6), 3: (0.4, 0.2), 4: (0.95, 0.92)}  # p of two candidates

  def find(images, labels, seed, *radius):
    seeds.append(tuple(seed.numpy()))
    return np.array([[table[int(i)][k] for i in images] for k in (0, 1)]), 0.0

  found._score = lambda p: np.log(np.stack([p, 1 - p], 1))
  plan = found._pgd(losses.margin, 3)
  for stream in (0, 1):
    broken, values = found._broken(find, plan, 0.1, np.arange(5) > 0, stream)
    np.testing.assert_array_equal(broken, [False, True, False, True, False])
    np.testing.assert_allclose(np.exp(values), [0.9, 0.3, 0.6, 0.2, 0.9])
  assert len(seeds) == len(set(seeds)) == 4


@pytest.mark.parametrize(
  "front, dead",
  [
    (lambda x: x, 1 / 16),
    (lambda x: tf.cast(tf.cast(8 * x, tf.int32), tf.float32), 1),  # no gradient
    (lambda x: x + tf.sqrt(0 * x), 1),  # a gradient of NaN
  ],
)
def test_points_of_one_step_and_the_share_of_its_zeros(rng, front, dead):
  """Of a linear classifier, one of whose 16 pixels has no weight; the last image is wrong."""
  weights = rng.normal(size=(16, 2)).astype(np.float32)
  weights[3] = 0
  images = rng.uniform(0.4, 0.6, size=(6, 4, 4, 1)).astype(np.float32)
  labels = np.arange(6) % 2
  found = made(_images=images, _labels=labels, _count=6, _batch_size=4, _mode="deterministic")
  found.__dict__ |= {"_right": np.arange(6) < 5, "_seed": tf.constant([1, 2])}
  model = types.SimpleNamespace(represent=lambda x: (front(x), None))
  model.head = lambda z: tf.reshape(z, [-1, 16]) @ weights
  zeros, points = found._one_step(model)
  np.testing.assert_allclose(zeros, [dead] * 5 + [1])
  slope = np.sign(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
  toward = slope * (1 - 2 * labels[:, None, None, None])
  toward[5 if dead < 1 else 0 :] = 0
  for share, moved in zip((0.25, 0.5, 0.75, 1), points - images, strict=True):
    np.testing.assert_allclose(moved, 0.1 * share * toward, atol=2e-4)


def test_zeros_are_those_of_the_models_own_gradients():
  found = made(_one_step={"crossing": ("a", "points"), "own": ("b", "others")}.get)
  found._classifier = types.SimpleNamespace(frozen=lambda: "crossing")
  assert found._gradients() == ("a", "points")
  found._classifier.own_gradients = lambda: "own"
  assert found._gradients() == ("b", "points")


def test_calls_have_their_own_numbers_of_samples():
  """Five images in batches of two, which are their own scores; noise decides nothing."""
  images, asked = np.eye(2, dtype=np.float32)[[1, 0, 1, 1, 0]].reshape(5, 1, 1, 2), []

  def predict(loc, scale, seed, samples):
    asked.append(samples)
    return tf.reshape(loc, [-1, 2])

  model = types.SimpleNamespace(represent=lambda x: (x, None), from_representation=predict)
  model.samples = 7
  found = made(_classifier=model, _images=images, _labels=np.zeros(5, int), _count=5)
  found.__dict__ |= {"_batch_size": 2, "_mode": "sampled", "_eot": 3}
  np.testing.assert_array_equal(found._served(tf.constant([1, 2])), [1, 0, 1, 1, 0])
  found._scores(model, images, tf.constant([1, 2]))
  assert set(asked[:-1]) == {7}
  assert asked[-1] == 3


@pytest.mark.parametrize("lost, passed", [(2, True), (3, False)])
def test_effort(lost, passed):
  check = made()._check_effort(beyond(40), beyond(40 + lost))
  assert check["passed"] is passed
  assert check["accuracy"] == pytest.approx(0.6)
  assert check["accuracy_more"] == pytest.approx(0.6 - lost / 100)


@pytest.mark.parametrize("lost, passed", [(4, True), (6, False)])
def test_black_box(lost, passed):
  asked = []

  def broken(find, plan, epsilon, standing, stream):
    asked.append((plan.attack.queries, epsilon))
    return standing & ~beyond(20 + lost), None

  check = made(_compile=lambda plan: None, _broken=broken)._check_black_box(beyond(20))
  assert asked == [(500, 0.1)]
  assert check["passed"] is passed
  assert check["accuracy"] == pytest.approx(0.8)
  assert check["accuracy_square"] == pytest.approx(0.8 - lost / 100)


@pytest.mark.parametrize(
  "wrong, fallen, passed", [(2, 0, True), (3, 0, False), (3, 3, True), (3, 2, True)]
)
def test_random_noise(wrong, fallen, passed):
  """What PGD breaks too is no surprise."""
  images, moved = np.full((100, 2, 2, 1), 0.5, np.float32), []

  def score(noisy):
    moved.append(noisy - images)
    return scores(wrong)

  noise = made(_score=score, _images=images, _seed=tf.constant([1, 2]))
  check = noise._check_random_noise(beyond(fallen))
  assert check["passed"] is passed
  assert check["accuracy_noise"] == pytest.approx(1 - wrong / 100)
  assert len(moved) == 10
  np.testing.assert_allclose(np.abs(moved), 0.1, atol=1e-6)
  assert abs(np.mean(moved)) < 0.01  # up and down


@pytest.mark.parametrize(
  "norm, epsilon, classes, radii, left, passed",
  [
    ("linf", 0.1, 10, [0.2, 0.1**0.5, 0.5], 9, True),
    ("linf", 0.1, 2, [0.2, 0.1**0.5, 0.5], 11, False),  # of two classes, a tenth too
    ("linf", 0.4, 10, [0.5], 11, False),  # beyond that, a ball reaches no more
    ("l2", 0.1, 20, [0.2, 0.2**0.5, 1.0], 6, False),  # more than chance
    ("l1", 0.1, 20, [0.2, 0.4**0.5, 2.0], 4, True),
  ],
)
def test_epsilon(norm, epsilon, classes, radii, left, passed):
  """It grows until a ball holds a grey image, of four pixels, whatever the image."""
  asked, wanted = [], [0.8, *[0.6, 0.3][: len(radii) - 1], left / 100]

  def broken(find, plan, epsilon, standing, stream):
    asked.append((epsilon, stream))
    return standing & ~beyond(100 - round(100 * wanted[len(asked)])), None

  images, classifier = np.zeros((100, 2, 2, 1)), types.SimpleNamespace(classes=classes)
  found = made(_images=images, _norm=norm, _epsilon=epsilon, _classifier=classifier)
  found._broken = broken
  check = found._check_epsilon(None, None, beyond(20))
  assert check["passed"] is passed
  assert [size for size, _ in asked] == pytest.approx(radii)
  assert len({stream for _, stream in asked}) == len(radii)
  assert check["epsilons"] == pytest.approx([epsilon, *radii])
  assert check["accuracies"] == pytest.approx(wanted)


@pytest.mark.parametrize(
  "flips, single, mean, passed",
  [
    (4, 16, None, True),
    (6, 16, None, False),  # two calls disagree
    (0, 14, None, False),  # 86% with one draw, 80% with several
    (0, 30, None, True),
    (0, 16, 2, True),
    (0, 16, 3, False),  # the noise hid them from PGD
  ],
)
def test_noise(flips, single, mean, passed):
  served = []

  def classes(seed):
    served.append(np.asarray(seed).tolist())
    return np.where(beyond(flips), 0, len(served))

  def broken(find, plan, epsilon, standing, stream):
    count = {"one": single, "mean": 20 + (mean or 0)}[find]
    return standing & ~beyond(count), None

  fields = {"_eot": 8, "_seed": tf.constant([1, 2]), "_served": classes, "_broken": broken}
  fields["_compile"] = lambda plan, mode=None, eot=None: "mean" if mode else {1: "one"}[eot]
  fields["_modes"] = ("sampled",) if mean is None else ("sampled", "deterministic")
  check = made(**fields)._check_noise(None, ~beyond(20), beyond(20))
  assert check["passed"] is passed
  assert served[0] != served[1]
  figures = (check["flips"], check["accuracy_one_draw"], check["accuracy_draws"])
  assert figures == pytest.approx((flips / 100, 1 - single / 100, 0.8))
  assert check.get("broken_by_mean") == (mean and pytest.approx(mean / 100))


@pytest.mark.parametrize("dead, passed", [(10, True), (11, False)])
def test_gradients(dead, passed):
  """Those of images that are wrong as they are do not count."""
  zeros = np.where(beyond(dead), 0.5, 0.995)
  found = made(_classifier=types.SimpleNamespace(metadata={}))
  check = found._check_gradients(zeros)
  assert check["passed"] is passed
  assert check["images_without"] == pytest.approx(dead / 100)
  assert check["zero"] == pytest.approx(zeros.mean())
  found._right = beyond(dead)
  assert found._check_gradients(zeros)["images_without"] == 0


@pytest.mark.parametrize("sure, passed", [(10, True), (11, False)])
def test_saturation(sure, passed):
  clean = np.where(beyond(sure)[:, None], [-1e-6, -13.8], [0.0, -100.0])
  check = made(_clean=clean)._check_saturation()
  assert check["passed"] is passed
  assert check["saturated"] == pytest.approx(sure / 100)
