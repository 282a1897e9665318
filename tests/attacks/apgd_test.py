"""APGD against its published schedule and a plain NumPy loop; known maxima are in pgd_test."""

import numpy as np
import pytest
import tensorflow as tf
from norms import recorded, total

from urkle_tf import distribution
from urkle_tf.attacks import APGD, PGD, apgd, from_norm

SEED = [1, 2]


@pytest.mark.parametrize(
  "steps, wanted",
  [
    (100, [0, 22, 41, 57, 70, 80, 87, 93, 99]),
    (50, [0, 11, 21, 29, 35, 40, 44, 47, 50]),
    (5, [0, 2, 3, 4, 5]),
    (1, [0, 1]),
  ],
)
def test_checkpoints_are_the_published_ones(steps, wanted):
  assert apgd.checkpoints(steps) == wanted


def wave(z):
  """Many maxima per image, so that all that the schedule can do happens."""
  return tf.sin(9 * total(z)) + 0.3 * tf.cos(17 * z[:, 0, 0, 0]) + 0.1 * total(z**2)


def wave_and_gradient(z):
  s = z.sum((1, 2, 3))
  gradient = np.zeros_like(z) + (9 * np.cos(9 * s))[:, None, None, None] + 0.2 * z
  gradient[:, 0, 0, 0] -= 0.3 * 17 * np.sin(17 * z[:, 0, 0, 0])
  return np.sin(9 * s) + 0.3 * np.cos(17 * z[:, 0, 0, 0]) + 0.1 * (z**2).sum((1, 2, 3)), gradient


@pytest.mark.parametrize("norm, rho", [("linf", 0.75), ("linf", 0.5), ("linf", 0.25), ("l2", 0.5)])
def test_equals_algorithm_1_written_plainly(rng, norm, rho):
  """Image by image in float64, far from the pixel bounds for l2."""
  steps, epsilon = 25, {"linf": 0.1, "l2": 0.2}[norm]
  x = rng.uniform(0.3, 0.7, size=(12, 2, 2, 1)).astype(np.float32)
  threat = from_norm(norm, epsilon)
  start = threat.random_start(tf.constant(x), distribution.fold(SEED, 0)).numpy()
  marks = apgd.checkpoints(steps)

  def project(z, center):
    if norm == "linf":
      return np.clip(z, center - epsilon, center + epsilon)
    return center + (z - center) * min(1, epsilon / np.linalg.norm(z - center))

  def direction(g):
    return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

  paths, halvings = [], 0
  for center, first in zip(np.float64(x), np.float64(start)):
    f = lambda z: float(wave_and_gradient(z[None])[0][0])  # noqa: E731
    gradient = lambda z: wave_and_gradient(z[None])[1][0]  # noqa: E731
    size, current, before = 2 * epsilon, first, first
    best, at_mark, halved_last = first, f(first), False
    path = []
    rises, last_value = 0, f(first)
    for k in range(steps):
      path.append(current)
      if k > 0:
        rises += f(current) > last_value
        best = current if f(current) > f(best) else best
      last_value = f(current)
      if k in marks[1:]:
        window = k - marks[marks.index(k) - 1]
        halve = rises < rho * window or (not halved_last and f(best) == at_mark)
        if halve:
          size, current, last_value = size / 2, best, f(best)
          halvings += 1
        halved_last, at_mark, rises = halve, f(best), 0
      share = 1.0 if k == 0 else 0.75
      z = project(current + size * direction(gradient(current)), center)
      new = project(current + share * (z - current) + (1 - share) * (current - before), center)
      before, current = current, new
    paths.append([*path, current])
  assert halvings > 10

  objective, seen = recorded(wave)
  APGD(threat, steps, rho=rho).run(objective, x, SEED)
  np.testing.assert_allclose(np.stack([points for _, points in seen], 1), paths, atol=1e-3)


def test_steps_of_l1_follow_how_many_pixels_the_best_has_changed():
  """Croce and Hein (2021), algorithm 1, for an epsilon of 6, 100 pixels and 100 steps."""
  images = tf.fill([3, 10, 10, 1], 0.5)
  schedule = apgd._Sparsity(APGD(from_norm("l1", 6.0), steps=100), images)
  state = schedule.start()
  np.testing.assert_allclose(state["size"], [6, 6, 6])
  np.testing.assert_allclose(state["share"], [0.2, 0.2, 0.2], rtol=1e-6)

  def checked(step, changed, state, size=None):
    """(state, its figures, who goes back) if the best iterates have `changed` pixels by then."""
    differs = np.arange(100) < np.reshape(changed, [3, 1])
    best = tf.constant(np.where(differs, 0.6, 0.5).reshape(3, 10, 10, 1), tf.float32)
    state = {**state, "best": best, "size": state["size"] if size is None else tf.constant(size)}
    after, back = schedule.check(tf.constant(step), None, state)
    figures = [np.asarray(after[name]) for name in ("size", "share", "changed")]
    return after, figures, np.asarray(back).tolist()

  for step in (0, 1, 3, 5):  # it looks every 4 steps
    _, (size, share, changed), back = checked(step, [90, 96, 100], state)
    assert back == [False] * 3
    np.testing.assert_allclose([size, share, changed], [[6] * 3, [0.2] * 3, [100] * 3], rtol=1e-6)
  state, figures, back = checked(4, [90, 96, 100], state, size=[2.0, 6.0, 0.7])
  assert back == [True, False, False]  # 90 < 95
  wanted = [[6, 4, 0.6], [0.6, 0.64, 1 / 1.5], [90, 96, 100]]
  np.testing.assert_allclose(figures, wanted, rtol=1e-6)
  _, figures, back = checked(8, [86, 91, 50], state)
  assert back == [False, True, True]  # 86 > 85.5, 91 < 91.2
  wanted = [[4, 6, 6], [86 / 150, 91 / 150, 1 / 3], [86, 91, 50]]
  np.testing.assert_allclose(figures, wanted, rtol=1e-6)


def test_a_step_of_l1_moves_the_share_of_its_example(rng):
  images, gradient = np.full((3, 10), 0.5), rng.permuted(np.tile(np.arange(1, 11), (3, 1)), axis=1)
  counts, sizes, wanted = [2, 5, 1], [0.1, 0.3, 0.2], images.copy()
  for row, (count, size) in enumerate(zip(counts, sizes)):
    top = np.argsort(-gradient[row])[:count]
    wanted[row, top] += size * gradient[row, top] / gradient[row, top].sum()
  images, gradient = (tf.reshape(tf.cast(x, tf.float32), [3, 5, 2, 1]) for x in (images, gradient))
  schedule = apgd._Sparsity(APGD(from_norm("l1", 4.0)), images)
  state = {"share": tf.constant([0.2, 0.5, 0.04]), "size": tf.constant(sizes)}
  moved = schedule.move(tf.constant(1), images, gradient, state)
  np.testing.assert_allclose(np.reshape(moved, [3, 10]), wanted, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.2), ("l2", 0.6), ("l1", 1.5)])
def test_climbs_as_high_as_pgd_among_many_maxima_and_higher_with_restarts(rng, norm, epsilon):
  x = rng.uniform(size=(32, 3, 3, 1)).astype(np.float32)
  weights = rng.normal(size=(9, 6)).astype(np.float32)
  rough = lambda z: tf.reduce_sum(tf.sin(4 * tf.reshape(z, [-1, 9]) @ weights), 1)  # noqa: E731
  threat = from_norm(norm, epsilon)

  def reached(attack):
    return tf.function(lambda: attack.run(rough, x, SEED)[1]["objective"])().numpy()

  ours, pgd = reached(APGD(threat, 40)), reached(PGD(threat, 40, keep="best"))
  assert ours.mean() > 0.95 * pgd.mean()
  assert (ours > rough(x).numpy()).all()
  more = reached(APGD(threat, 40, restarts=3))
  assert (more >= ours - 1e-5).all()
  assert more.mean() > ours.mean()
