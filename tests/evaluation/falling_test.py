"""Images that fall leave the batch at once: nothing else changes, and less is computed."""

import dataclasses
import itertools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from norms import norms
from small_models import digits

from urkle_tf import attacks
from urkle_tf.attacks import losses
from urkle_tf.data import sources
from urkle_tf.evaluation import adversaries, attacked, falling, scoring
from urkle_tf.evaluation import plans as planning
from urkle_tf.evaluation.context import Context
from urkle_tf.networks import classifier

COUNT = 40
RADII = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
SPECS = ["apgd_ce(steps=12)", "apgd_t(steps=12, targets=2)"]
SPECS += ["fab_t(steps=12, targets=2)", "square(queries=60)"]


class Model:
  """Random features of pixels, linear in them by least squares; it counts the rows of its calls."""

  modes, classes, samples, metadata, image_shape = ("deterministic",), 10, 1, {}, (8, 8, 1)
  stochastic = False

  def __init__(self):
    rng = np.random.default_rng(0)
    self._first = rng.normal(size=(64, 100)).astype(np.float32) / 8
    images, labels = digits()
    x = np.maximum(images[:1400].reshape(1400, 64) @ self._first, 0)
    weights = np.linalg.solve(x.T @ x + 3 * np.eye(100), x.T @ np.eye(10)[labels[:1400]])
    self._last, self.rows = 10 * weights.astype(np.float32), []

  def frozen(self):
    return self

  def represent(self, images):
    return images, images

  def head(self, images, training=False):
    tf.py_function(lambda x: self.rows.append(len(x)), [images], [])
    return tf.nn.relu(tf.reshape(images, [-1, 64]) @ self._first) @ self._last


@pytest.fixture(scope="module")
def model():
  return Model()


@pytest.fixture(scope="module")
def given(model):
  """Test images that the model gets right, and their labels."""
  images, labels = digits()
  images, labels = images[1400:], labels[1400:]
  right = np.flatnonzero(np.argmax(model.head(tf.constant(images)), 1) == labels)[:COUNT]
  return tf.constant(images[right]), tf.constant(labels[right])


USUAL = (SPECS[1], "linf")


@pytest.mark.parametrize(
  "spec, norm",
  [USUAL, *slow(*(case for case in itertools.product(SPECS, RADII) if case != USUAL))],
)
def test_what_stays_goes_the_same_way(model, given, spec, norm):
  (images, labels), epsilon = given, RADII[norm]
  (plan,) = planning.read(spec, attacks.from_norm(norm, epsilon), classes=10)
  plan = dataclasses.replace(plan, ensemble="any")  # on what stands
  assert falling.possible(plan)
  clean = model.head(images)
  aim = (losses.wrong_class(clean, labels, 0)[None],) if plan.targets else ()
  arguments = (images, labels, tf.constant([1, 2]), *plan.radius_and_step(epsilon), *aim)
  found, margins, rows = {}, {}, {}
  for alone in (False, True):
    # In three parts, of which the rests are gathered.
    mode = falling.Mode(model, "deterministic", batch_size=15) if alone else None
    find = adversaries.adversary(model, plan, "deterministic", alone=mode)
    assert isinstance(find, falling.Falling) == alone
    model.rows.clear()
    candidates, zeros = find(*arguments)
    rows[alone] = sum(model.rows)
    assert not alone or max(model.rows) <= 15
    assert 0 <= float(zeros) < 0.5
    found[alone] = candidates[0]
    margins[alone] = np.max([losses.margin(model.head(x), labels) for x in candidates], 0)
  assert (margins[True] > 0)[margins[False] > 0].all()  # no weaker
  stays = margins[True] <= 0
  assert 3 < stays.sum() < COUNT - 3
  np.testing.assert_allclose(found[True][stays], np.asarray(found[False])[stays], atol=1e-5)
  assert (norms(found[True] - images, norm) <= epsilon * (1 + 1e-5)).all()
  assert rows[True] < rows[False]
  # Half of the images: what they find does not depend on the others.
  aim = [targets[:, : COUNT // 2] for targets in aim]
  half, _ = find(images[: COUNT // 2], labels[: COUNT // 2], *arguments[2:5], *aim)
  np.testing.assert_allclose(half[0], found[True][: COUNT // 2], atol=1e-5)


def test_targets_side_by_side_find_what_they_find_one_by_one(model, given):
  """Of an image that none of them hits: the same points.  FAB draws nothing at random."""
  images, labels = given
  (plan,) = planning.read("fab_t(steps=12)", attacks.Linf(0.1), classes=10)
  find = falling.Falling(plan, falling.Mode(model, "deterministic", batch_size=4 * COUNT))
  assert [find.at_once(count) for count in (1, COUNT, 3 * COUNT, 9 * COUNT)] == [9, 4, 1, 1]
  clean = model.head(images)
  targets = tf.stack([losses.wrong_class(clean, labels, rank) for rank in range(3)])
  arguments = (images, labels, tf.constant([1, 2]), *plan.radius_and_step(0.1))
  single = [find(*arguments, target[None])[0] for target in targets]
  model.rows.clear()
  together, _ = find(*arguments, targets)
  assert max(model.rows) == 3 * COUNT
  assert model.rows[-1] < 3 * COUNT
  assert not any(count % 3 for count in model.rows)  # with a target of an image its others leave
  stands, still = (
    np.max([losses.margin(model.head(x), labels) for x in candidates], 0) <= 0
    for candidates in (np.concatenate(single), together)
  )
  np.testing.assert_array_equal(stands, still)
  assert 3 < stands.sum() < COUNT - 3
  firsts = np.stack([found[0] for found in single])
  np.testing.assert_allclose(together[:3, stands], firsts[:, stands], atol=1e-5)


class Noisy(classifier._Predictions):
  """The model on pixels with noise."""

  modes, stochastic, samples, latent_dim, classes = ("sampled",), True, 20, 64, 10
  metadata, image_shape = {}, (8, 8, 1)

  def __init__(self, model):
    self.head = model.head
    scale = lambda x: 0.1 * tf.ones_like(x)  # noqa: E731
    flat = keras.layers.Flatten()
    self.network = lambda x, training: {"loc": flat(x), "scale": scale(flat(x))}

  def frozen(self):
    return self


@pytest.mark.parametrize(
  "spec, epsilon", [("square(queries=60)", 0.2), *slow(("apgd_ce(steps=12)", 0.1))]
)
def test_under_noise_what_falls_leaves_too(model, given, spec, epsilon):
  """Fixed noise follows its image; a point found under fresh noise is one under much noise."""
  images, labels = given
  (plan,) = planning.read(spec, attacks.Linf(epsilon), classes=10)
  plan, noisy = dataclasses.replace(plan, ensemble="any"), Noisy(model)
  arguments = (images, labels, tf.constant([1, 2]), *plan.radius_and_step(epsilon))
  margins, rows, found = [], [], []
  for alone in (None, falling.Mode(noisy, "sampled", eot=10, batch_size=15)):
    find = adversaries.adversary(noisy, plan, "sampled", eot=10, alone=alone)
    model.rows.clear()
    found.append(np.asarray(find(*arguments)[0]))
    rows.append(sum(model.rows))
    scores = [noisy.log_probabilities(x, seed=[5, 6], samples=500) for x in found[-1]]
    margins.append(np.max([losses.margin(x, labels) for x in scores], 0))
  whole, left = margins
  assert rows[1] < rows[0]
  assert (left > 0).sum() >= (whole > 0).sum() - 1
  stays = (left <= 0) & (found[1][0] != images).numpy().any((1, 2, 3))
  assert stays.sum() > 3
  assert (left > 0).sum() > 3
  if plan.fixed_noise:
    np.testing.assert_allclose(found[1][0][stays], found[0][0][stays], atol=1e-5)


class Above(Model):
  """Puts class 1 above class 0 by a constant, and class 2 at 0; it counts the rows of its calls."""

  classes = 3

  def __init__(self, gap):
    self.gap, self.rows = gap, []

  def head(self, images, training=False):
    tf.py_function(lambda x: self.rows.append(len(x)), [images], [])
    return [[1.0, 1.0 + self.gap, 0.0]] + 0.0 * tf.reduce_sum(images, [1, 2, 3])[:, None]


@pytest.mark.parametrize("gap, leaves", [(0.02, False), (0.5, True)])
def test_an_image_leaves_only_where_rounding_cannot_bring_it_back(gap, leaves):
  """What scores an adversary in the end may differ from what is attacked by its rounding."""
  (plan,) = planning.read("apgd_ce(steps=12)", attacks.Linf(0.1), classes=3)
  plan = dataclasses.replace(plan, ensemble="any")
  model = Above(gap)
  mode = falling.Mode(model, "deterministic")
  find = adversaries.adversary(model, plan, "deterministic", alone=mode)
  images, labels = tf.fill([4, 8, 8, 1], 0.5), tf.zeros([4], tf.int64)
  candidates, zeros = find(images, labels, tf.constant([1, 2]), *plan.radius_and_step(0.1))
  assert (sum(model.rows) < 4 * 12) is leaves
  assert len(candidates) == (1 if leaves else 2)  # what is broken by a little, too
  assert zeros == 1  # the share of a constant's gradients


@pytest.mark.parametrize("further, leaves", [(-1.0, False), (1.0, True)])
def test_an_image_leaves_only_if_further_noise_breaks_it_too(further, leaves):
  """The noise of the run breaks all; what it draws later, in its graph, decides."""
  (plan,) = planning.read("square(queries=60)", attacks.Linf(0.1), classes=2)
  rows = []

  def scores(images, noise):
    tf.py_function(lambda x: rows.append(len(x)), [images], [])
    return tf.concat([tf.zeros_like(noise), noise], 1)

  noise = lambda count, seed: tf.fill([count, 1], 1.0 if tf.executing_eagerly() else further)  # noqa: E731
  mode = types.SimpleNamespace(scores=scores, noise=noise, noisy=True, batch_size=4)
  find = falling.Falling(plan, mode)
  images, labels = tf.fill([4, 8, 8, 1], 0.5), tf.zeros([4], tf.int64)
  candidates, _ = find(images, labels, tf.constant([1, 2]), *plan.radius_and_step(0.1))
  assert (sum(rows) < 4 * 60) is leaves
  assert len(candidates) == (1 if leaves else 2)  # the end and the last point; none is broken


def test_what_can_run_this_way():
  (plan,) = planning.read("apgd_ce(steps=12)", attacks.Linf(0.1), classes=3)
  plan = dataclasses.replace(plan, ensemble="any")
  assert falling.possible(plan)
  assert not falling.possible(dataclasses.replace(plan, average="logits"))
  (plan,) = planning.read("apgd_ce(steps=12, restarts=2)", attacks.Linf(0.1), classes=3)
  assert not falling.possible(dataclasses.replace(plan, ensemble="any"))


def test_few_images_are_not_padded_to_a_whole_batch(model):
  seen, scorer = [], scoring.Scorer(model, 16)
  images = digits()[0][:16]
  whole = scorer(images)["deterministic"]
  for count in (9, 8, 3):
    model.rows.clear()
    few = scorer(images[:count])["deterministic"]
    seen.append(model.rows[-1])
    np.testing.assert_allclose(few, whole[:count], atol=1e-5)
  assert seen == [16, 8, 3]


def test_an_evaluation_that_is_cut_says_what_was_left_out(model, monkeypatch):
  source = sources.load("digits", "test", examples=20)
  texts = "pgd(steps=2),autoattack(steps=2, targets=2, queries=3)"
  plans = planning.read(texts, attacks.Linf(0.1), classes=10)
  clock = [0.0]
  monkeypatch.setattr(attacked.time, "monotonic", lambda: clock[0])
  run = attacked._Search.run

  def slow(self, *arguments):
    done = run(self, *arguments)
    clock[0] += 40
    return done

  monkeypatch.setattr(attacked._Search, "run", slow)
  context = Context(source, "linf", [0.1], model, batch_size=10)
  rows, details = attacked.measure(context, plans, minutes=1)
  assert [row["name"] for row in rows] == ["pgd", "apgd_ce"]
  assert len(details) == 2
  assert context.notes["left_out"] == [f"{name} 0.1" for name in ("apgd_t", "fab_t", "square")]
  rows, _ = attacked.measure(context, plans, minutes=1e-9)
  assert [row["name"] for row in rows] == ["pgd"]  # one row at least
