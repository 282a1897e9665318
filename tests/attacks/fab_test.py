"""FAB and the projections it steps by, against their conditions, closed forms and foolbox."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from norms import DUAL, NORMS, ORDER, assert_inside, linear_maximum, norms, recorded, total
from scipy import optimize
from small_models import sequential

from urkle_tf.attacks import FAB, L2, Linf, from_norm, losses

SEED = [1, 2]


# The smallest change that gains so much of a linear function.


def smallest(w, room, gain, norm):
  """The smallest norm of d with w . d = gain and 0 <= d <= room, in float64 (w > 0).

  It is the radius within which no d gains more.
  """
  w, room = np.float64(w).ravel(), np.float64(room).ravel()
  more = lambda radius: w @ linear_maximum(1 - room, w, norm, radius) - gain  # noqa: E731
  return optimize.brentq(more, 0, np.linalg.norm(room, ORDER[norm]))


@pytest.mark.parametrize("norm", NORMS)
def test_reach_is_the_smallest_change(rng, norm):
  x = rng.uniform(size=(60, 1, 6, 1)).astype(np.float32)
  x[:10, 0, :2], x[10:20, 0, 2:4] = 0, 1  # at a bound already
  w = rng.normal(size=x.shape).astype(np.float32)
  most = np.where(w > 0, 1 - x, x)
  gain = rng.uniform(-1, 1, size=60) * 0.95
  room = np.where(gain[:, None, None, None] > 0, most, 1 - most)
  gain *= (abs(w) * room).sum((1, 2, 3))
  d = from_norm(norm, 0.1).reach(tf.constant(x), tf.constant(w), tf.constant(gain, tf.float32))
  d = np.asarray(d, np.float64)
  np.testing.assert_allclose((w * d).sum((1, 2, 3)), gain, atol=1e-5)
  assert -1e-6 <= (x + d).min() <= (x + d).max() <= 1 + 1e-6
  wanted = [smallest(abs(a), b, abs(c), norm) for a, b, c in zip(w, room, gain)]
  np.testing.assert_allclose(norms(d, norm), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_reach_of_many_pixels_with_equal_and_tiny_slopes(rng, norm):
  x = rng.uniform(size=(12, 10, 10, 3)).astype(np.float32)
  w = rng.choice([1.0, 0.5, 0.25, 1e-3, 1e-6], size=x.shape).astype(np.float32)
  w[6:] = 2.0 ** -rng.uniform(0, 40, size=w[6:].shape)  # no two alike, over twelve magnitudes
  slopes, room = np.float64(w).reshape(12, -1), np.float64(1 - x).reshape(12, -1)
  gain = np.linspace(0.05, 0.95, 12) * (slopes * room).sum(1)
  d = from_norm(norm, 0.1).reach(tf.constant(x), tf.constant(w), tf.constant(gain, tf.float32))
  d = np.asarray(d, np.float64).reshape(12, -1)
  np.testing.assert_allclose((slopes * d).sum(1), gain, rtol=1e-5)
  assert ((d >= 0) & (d <= room + 1e-6)).all()
  wanted = [smallest(a, b, c, norm) for a, b, c in zip(slopes, room, gain)]
  np.testing.assert_allclose(norms(d, norm), wanted, rtol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_reach_of_a_case_by_hand_and_of_the_impossible(norm):
  # 2 a + b = 1.2 with a <= 0.5: linf 0.4 each; l2 would be a = 0.48, b = 0.24; l1 a = 0.5, then b.
  x = tf.reshape([0.5, 0.0, 0.3], [1, 1, 3, 1])
  w = tf.reshape([2.0, 1.0, 0.0], [1, 1, 3, 1])
  reach = from_norm(norm, 0.1).reach
  wanted = {"linf": [0.4, 0.4, 0], "l2": [0.48, 0.24, 0], "l1": [0.5, 0.2, 0]}[norm]
  np.testing.assert_allclose(tf.reshape(reach(x, w, tf.constant([1.2])), [3]), wanted, atol=1e-6)
  # 1.6: l2 would be a = 0.64 without the bound.
  found = [tf.reshape(reach(x, w, tf.constant([gain])), [3]) for gain in (1.6, 9.0)]
  np.testing.assert_allclose(found, [[0.5, 0.6, 0], [0.5, 1, 0]], atol=1e-6)
  np.testing.assert_array_equal(reach(x, 0 * w, tf.constant([1.0])), tf.zeros_like(x))
  small = reach(x, 1e-25 * w, tf.constant([1.2e-25]))  # whose squares vanish in float32
  np.testing.assert_allclose(small, reach(x, w, tf.constant([1.2])), atol=1e-6)


# Boundaries whose distance is known.


@pytest.mark.parametrize("norm", ["linf", *slow("l2", "l1")])
def test_finds_the_distance_of_a_linear_boundary(rng, norm):
  x = rng.uniform(0.4, 0.6, size=(8, 4, 4, 1)).astype(np.float32)
  w = rng.normal(size=(4, 4, 1)).astype(np.float32)
  bias = float((x * w).sum((1, 2, 3)).max()) + 0.1
  known = (bias - (x * w).sum((1, 2, 3))) / np.linalg.norm(w.ravel(), DUAL[norm])
  epsilon = float(np.median(known))
  attack = FAB(from_norm(norm, epsilon), steps=20)
  objective = lambda z: total(z * w) - bias  # noqa: E731
  y, info = tf.function(lambda x: attack.run(objective, x, SEED))(tf.constant(x))
  if norm != "l1":  # the way to the boundary does not touch the box
    assert known.max() < (0.4 if norm == "linf" else 1.0)
    np.testing.assert_allclose(info["distance"], known, rtol=3e-3)
    broken = known < epsilon * 0.99
    assert ((info["objective"].numpy() > 0) >= broken).all()
  assert (info["distance"].numpy() >= known * 0.9999).all()
  assert (info["objective"].numpy()[known > epsilon * 1.001] <= 0).all()
  assert (norms(y - x, norm) <= epsilon + 1e-5).all()
  assert float(info["zero_gradients"]) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_distance_where_the_box_binds(rng, norm):
  x = rng.uniform(size=(6, 1, 6, 1)).astype(np.float32)
  x[:, 0, :2] = [[0], [1]]
  w = (np.sign(rng.normal(size=x.shape)) * rng.uniform(0.5, 2, size=x.shape)).astype(np.float32)
  room = np.where(w > 0, 1 - x, x)
  gain = 0.7 * (abs(w) * room).sum((1, 2, 3))
  level = (x * w).sum((1, 2, 3)) + gain
  wanted = [smallest(abs(a), b, c, norm) for a, b, c in zip(w, room, gain)]
  free = gain / norms(w, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])
  assert (np.array(wanted) > 1.02 * free).any()  # or the box does not matter
  attack = FAB(from_norm(norm, 0.3), steps=30)
  run = tf.function(lambda x: attack.run(lambda z: total(z * w) - level, x, SEED))
  y, info = run(tf.constant(x))
  np.testing.assert_allclose(info["distance"], wanted, rtol=5e-3)
  assert_inside(y, x, norm, 0.3)
  assert float(info["zero_gradients"]) == 0


@pytest.mark.parametrize("steps", [1, 8])
def test_the_nearest_broken_point_is_kept_and_none_leaves_the_box(rng, steps):
  x = rng.uniform(size=(12, 2, 2, 1)).astype("float32")
  wave = lambda z: tf.sin(9 * total(z)) - 0.5 * tf.cos(17 * z[:, 0, 0, 0]) - 0.8  # noqa: E731
  objective, seen = recorded(wave)
  _, info = FAB(Linf(0.5), steps=steps).run(objective, x, [0, 1])
  values, points = (np.stack(parts) for parts in zip(*seen, strict=True))
  assert points.min() >= 0
  assert points.max() <= 1
  distances = np.where(values > 0, np.abs(points - x).max((2, 3, 4)), np.inf).min(0)
  np.testing.assert_allclose(info["distance"], distances, atol=1e-6)
  assert np.isfinite(distances).sum() > (values[0] > 0).sum()  # the last point counts too


def test_a_step_by_hand():
  """The boundary lies at 0.6 of the first pixel, the images at 0.5; the second has no slope."""
  images = tf.fill([2, 1, 2, 1], 0.5)
  points = np.float32([[0.8, 0.6], [0.597, 0.6]]).reshape(2, 1, 2, 1)
  state = {"point": tf.constant(points), "nearest": images, "zeros": tf.zeros([])}
  state["distance"] = tf.fill([2], np.float32(np.inf))
  attack = FAB(from_norm("l2", 0.5), steps=2, overshoot=1.05, backward=0.9, bias=0.1)
  objective = lambda z: z[:, 0, 0, 0] - 0.6  # noqa: E731
  state = attack.advance(objective, images, state, 0)
  # The first point lies beyond the boundary: a tenth of its way is taken back, to (0.77, 0.59).
  # That is 0.17 beyond, and 0.17 / (0.17 + 0.1) exceeds the bias.
  first = 0.9 * np.array([0.77 - 1.05 * 0.17, 0.59]) + 0.1 * np.array([0.5 + 1.05 * 0.1, 0.5])
  # The second is 0.003 before it, and is itself where the step begins.
  share = 0.003 / (0.003 + 0.1)
  second = (1 - share) * np.array([0.597 + 1.05 * 0.003, 0.6]) + share * np.array([0.605, 0.5])
  np.testing.assert_allclose(np.reshape(state["point"], [2, 2]), [first, second], atol=1e-5)
  nearest = np.array([[0.8, 0.6], [0.5, 0.5]])  # the second was not broken
  np.testing.assert_allclose(np.reshape(state["nearest"], [2, 2]), nearest, atol=1e-5)
  np.testing.assert_allclose(state["distance"], [np.hypot(0.3, 0.1), np.inf], atol=1e-5)
  share = attack.finish(objective, images, state)["zero_gradients"]
  assert share == 0.25  # one step of two, half of the pixels


def test_restarts_begin_at_random_points_within_half_of_epsilon():
  images = tf.fill([40, 2, 2, 1], 0.5)
  first, *others = (FAB(Linf(0.2)).begin(images, i, SEED)["point"] for i in (0, 1, 2))
  np.testing.assert_array_equal(first, images)
  for start in others:
    assert 0.09 < np.abs(start - images).max() <= 0.1


@pytest.fixture(scope="module")
def problem():
  """A smooth network of three classes, images and the classes it gives them."""
  keras.utils.set_random_seed(3)
  hidden = keras.layers.Dense(16, activation="tanh")
  network = sequential((5, 5, 1), keras.layers.Flatten(), hidden, keras.layers.Dense(3))
  x = np.random.default_rng(4).uniform(0.2, 0.8, size=(16, 5, 5, 1)).astype(np.float32)
  return network, x, network(x).numpy().argmax(1)


@pytest.mark.full
def test_l2_distances_are_no_longer_than_foolboxs(problem):
  foolbox = pytest.importorskip("foolbox")
  network, x, labels = problem
  model = foolbox.TensorFlowModel(network, bounds=(0, 1), device="CPU:0")
  attack = foolbox.attacks.L2DeepFoolAttack(steps=50)
  _, theirs, found = attack(model, tf.constant(x), tf.constant(labels), epsilons=None)
  assert found.numpy().all()
  theirs = norms(theirs.numpy() - x, "l2")
  attack = FAB(L2(2.0), steps=40)

  @tf.function
  def distance(targets):  # target by target, as DeepFool looks at every class
    objective = lambda z: losses.targeted_margin(network(z), labels, targets)  # noqa: E731
    return attack.run(objective, x, SEED)[1]["distance"]

  ours = np.min([distance(tf.constant((labels + k) % 3)) for k in (1, 2)], 0)
  assert (ours <= theirs * 1.01).all()
  assert ours.mean() < theirs.mean()


@pytest.mark.full
def test_results_lie_within_epsilon_and_say_the_distance(problem):
  network, x, labels = problem
  labels = labels.copy()
  labels[0] = (labels[0] + 1) % 3  # broken as it is
  distances = {}
  for restarts in (1, 3):
    attack = FAB(Linf(0.05), steps=10, restarts=restarts)
    objective = lambda z: losses.margin(network(z), labels)  # noqa: E731
    y, info = tf.function(lambda x, a=attack, o=objective: a.run(o, x, SEED))(tf.constant(x))
    distance = distances[restarts] = info["distance"].numpy()
    np.testing.assert_array_equal(y[0], x[0])
    assert distance[0] == 0
    inside = distance <= 0.05
    assert 0 < inside.sum() < 16
    np.testing.assert_array_equal(network(y).numpy().argmax(1)[inside] != labels[inside], True)
    np.testing.assert_allclose(norms(y - x, "linf")[inside], distance[inside], atol=1e-6)
    np.testing.assert_allclose(norms(y - x, "linf")[~inside], 0.05, atol=1e-6)
    np.testing.assert_allclose(info["objective"], objective(y), atol=1e-5)
  assert (distances[3] <= distances[1] + 1e-6).all()
