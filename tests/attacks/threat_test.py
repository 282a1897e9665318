"""Geometry of the threat models, against closed forms, NumPy and SciPy."""

import hypothesis
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from cases import refuses
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from norms import NORMS, assert_inside, norms

from urkle_tf.attacks import L1, L2, Linf, from_norm

SHAPE = (2, 3, 3, 1)

# Hypothesis draws bounds and exact middles often; a second strategy fills in.
pixels = hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
gradients = hnp.arrays(
  np.float32, SHAPE, elements=st.sampled_from([0.0, 1.0, -1.0, 1e-20, -1e-30, 1e20, 0.3, -7.0])
)
seeds = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
epsilons = st.floats(1e-2, 1.0)


@pytest.mark.parametrize("norm", NORMS)
@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
  *(pixels, gradients, epsilons, st.floats(1e-3, 3), st.sampled_from([1.0, 0.1, 1e-3]), seeds)
)
def test_start_and_steps_stay_inside(norm, images, gradient, epsilon, size, radius, seed):
  """And the start is never the image."""
  threat = from_norm(norm, epsilon)
  adversaries = threat.random_start(tf.constant(images), seed, radius)
  assert_inside(adversaries, images, norm, radius * epsilon)
  assert (norms(np.asarray(adversaries) - images, norm) > 0).all()
  for _ in range(2):
    adversaries = threat.step(adversaries, tf.constant(gradient), tf.constant(images), size)
    assert_inside(adversaries, images, norm, epsilon)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_start_moves_pixels_at_a_bound(norm, value):
  images = tf.fill([64, 4, 4, 1], value)
  epsilon = {"linf": 0.1, "l2": 0.5, "l1": 1.0}[norm]
  start = from_norm(norm, epsilon).random_start(images, [1, 2])
  assert np.mean(np.asarray(start) != value) > 0.999
  # As far out as anywhere: the bound has not eaten the perturbation.
  inner = from_norm(norm, epsilon).random_start(tf.fill([64, 4, 4, 1], 0.5), [1, 2])
  here = norms(start - images, norm).mean()
  assert here == pytest.approx(norms(inner - 0.5, norm).mean(), rel=0.05)


def test_start_is_uniform_on_the_ball():
  """Moments of the uniform distribution on each ball, from their closed forms."""
  images = tf.fill([20000, 3, 2, 1], 0.5)
  d, epsilon = 6, 0.2
  offset = {n: np.asarray(from_norm(n, epsilon).random_start(images, [3, 4])) - 0.5 for n in NORMS}
  assert np.mean(offset["linf"] ** 2) == pytest.approx(epsilon**2 / 3, rel=0.02)
  assert np.mean(offset["l2"] ** 2) == pytest.approx(epsilon**2 / (d + 2), rel=0.02)
  assert np.mean(np.abs(offset["l1"])) == pytest.approx(epsilon / (d + 1), rel=0.02)
  for norm in NORMS:
    radius = norms(offset[norm], norm) / epsilon
    assert np.mean(radius**d) == pytest.approx(0.5, abs=0.02)
    assert np.abs(offset[norm].mean(0)).max() < 0.005
    correlation = np.corrcoef(np.sign(offset[norm]).reshape(-1, d).T) - np.eye(d)
    assert np.abs(correlation).max() < 0.03


@pytest.mark.full
def test_start_under_xla_is_inside_and_not_the_image(rng):
  images = rng.uniform(-0.2, 1.2, size=(8, 6, 6, 2)).clip(0, 1).astype(np.float32)
  starts = lambda x: [from_norm(norm, 0.3).random_start(x, [1, 2]) for norm in NORMS]  # noqa: E731
  draw = tf.function(starts, jit_compile=True)
  for norm, start in zip(NORMS, draw(images)):
    assert_inside(start, images, norm, 0.3)
    assert (norms(start - images, norm) > 0.1).all()


def test_linf_start_is_uniform_on_ball_and_box():
  images = tf.fill([4000, 2, 2, 1], 0.05)
  start = np.asarray(Linf(0.1).random_start(images, [3, 4]))
  assert start.mean() == pytest.approx(0.075, rel=0.02)
  assert start.std() == pytest.approx(0.15 / np.sqrt(12), rel=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e20])
@pytest.mark.parametrize("norm", NORMS)
def test_direction_is_of_unit_norm_and_steepest(rng, norm, scale):
  """By duality, the steepest unit step gains the dual norm of the gradient."""
  gradient = rng.normal(size=(5, 4, 4, 3)).astype(np.float32)
  threat = L1(1.0, sparsity=0.999) if norm == "l1" else from_norm(norm, 0.5)
  direction = np.asarray(threat.normalise(tf.constant(gradient * np.float32(scale))), np.float64)
  np.testing.assert_allclose(norms(direction, norm), 1, rtol=1e-6)
  gain = (direction * gradient).reshape(5, -1).sum(1)
  dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
  np.testing.assert_allclose(gain, norms(gradient, dual), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_moves_nothing_and_radius_zero_is_the_image(rng, norm):
  images = tf.constant(rng.uniform(size=SHAPE), tf.float32)
  threat, point = from_norm(norm, 0.5), from_norm(norm, 0)
  start = threat.random_start(images, [1, 2])
  moved = threat.step(start, tf.zeros_like(start), images, 0.3)
  np.testing.assert_allclose(moved, start, atol=1e-7)
  moved = point.step(point.random_start(images, [1, 2]), images, images, 1.0)
  np.testing.assert_array_equal(moved, images)


def test_l1_direction_moves_the_largest_gradients(rng):
  gradient = rng.normal(size=(3, 5, 4, 1)).astype(np.float32)
  direction = np.asarray(L1(1.0, sparsity=0.75).normalise(tf.constant(gradient)))
  for g, u in zip(gradient.reshape(3, -1), direction.reshape(3, -1)):
    top = np.argsort(-np.abs(g))[:5]
    expected = np.zeros(20)
    expected[top] = g[top] / np.abs(g[top]).sum()
    np.testing.assert_allclose(u, expected, rtol=1e-5)


def test_l1_step_skips_pixels_that_a_bound_holds():
  gradient = tf.reshape(tf.constant([9.0, 8.0, -7.0, 1.0]), [1, 2, 2, 1])
  images = tf.reshape(tf.constant([1.0, 0.5, 0.0, 0.5]), [1, 2, 2, 1])
  moved = L1(0.3, sparsity=0.75).step(images, gradient, images, 0.2)
  np.testing.assert_allclose(tf.reshape(moved, [-1]), [1, 0.7, 0, 0.5], atol=1e-6)


def nearest(point, image, norm, epsilon):
  """The projection onto ball and box by a general solver."""
  offset, room = np.eye(len(image)), lambda v: epsilon**2 - v @ v
  bounds = [(-x, 1 - x) for x in image]
  if norm == "l1":  # the offset is p - q with p, q >= 0, which makes the ball linear
    offset, room = np.hstack([offset, -offset]), lambda v: epsilon - v.sum()
    bounds = [(0, 1 - x) for x in image] + [(0, x) for x in image]
  options = {"bounds": bounds, "constraints": [{"type": "ineq", "fun": room}], "method": "SLSQP"}
  options["options"] = {"ftol": 1e-14, "maxiter": 500}
  away = lambda v: np.sum((image + offset @ v - point) ** 2)  # noqa: E731
  found = scipy.optimize.minimize(away, np.zeros(len(bounds)), **options)
  return image + offset @ found.x


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_is_the_nearest_point(rng, norm):
  """Against SciPy's SLSQP, with and without active bounds."""
  images = rng.uniform(size=(24, 2, 3, 1))
  images[::2, 0] = rng.integers(0, 2, size=(12, 3, 1))
  size, epsilon = np.repeat([0.05, 0.3, 1.0], 8)[:, None, None, None], 0.4
  points = images + size * rng.normal(size=images.shape)
  given = tf.constant(points, tf.float32), tf.constant(images, tf.float32)
  result = from_norm(norm, epsilon).project(*given)
  for r, p, x in zip(np.asarray(result), points, images):
    expected = nearest(p.ravel(), x.ravel(), norm, epsilon)
    np.testing.assert_allclose(r.ravel(), expected, atol=2e-4)
    # SLSQP stops early at times; ours must be at least as near.
    assert np.sum((r - p) ** 2) <= np.sum((expected - p.ravel()) ** 2) + 1e-6


def test_linf_projection_is_the_nearest_point(rng):
  images, points = rng.uniform(size=SHAPE), rng.normal(size=SHAPE)
  expected = np.clip(np.clip(points, images - 0.2, images + 0.2), 0, 1)
  result = Linf(0.2).project(tf.constant(points, tf.float32), tf.constant(images, tf.float32))
  np.testing.assert_allclose(result, expected, atol=1e-7)


@pytest.mark.parametrize("norm, epsilon", [("linf", 8 / 255), ("l2", 0.5), ("l2", 9.0), ("l1", 12)])
def test_projection_at_real_sizes_is_on_the_sphere_and_repeatable(rng, norm, epsilon):
  images = rng.uniform(-0.2, 1.2, size=(16, 32, 32, 3)).clip(0, 1).astype(np.float32)
  points = images + rng.standard_t(2, size=images.shape).astype(np.float32)
  threat = from_norm(norm, epsilon)
  once = threat.project(tf.constant(points), tf.constant(images))
  assert_inside(once, images, norm, epsilon)
  np.testing.assert_allclose(norms(once - images, norm), epsilon, rtol=1e-5)
  np.testing.assert_allclose(threat.project(once, images), once, atol=1e-6)
  np.testing.assert_allclose(threat.distance(once, images), norms(once - images, norm), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_may_be_a_tensor(rng, norm):
  images = tf.constant(rng.uniform(size=SHAPE), tf.float32)
  points = images + tf.constant(rng.normal(size=SHAPE), tf.float32)
  threat = from_norm(norm, 0.9)
  compiled = tf.function(lambda epsilon: threat.with_epsilon(epsilon).project(points, images))
  for epsilon in [0.0, 0.2, 0.7]:
    expected = from_norm(norm, epsilon).project(points, images)
    np.testing.assert_allclose(compiled(tf.constant(epsilon)), expected, atol=1e-6)
  assert threat.epsilon == 0.9
  assert threat.with_epsilon(0.25).epsilon == 0.25


def test_with_epsilon_keeps_the_options():
  threat = L1(1.0, lower=-1.0, upper=2.0, sparsity=0.5)
  for other in [threat.with_epsilon(0.5), threat.with_epsilon(tf.constant(0.5))]:
    assert (other.lower, other.upper, other.sparsity) == (-1.0, 2.0, 0.5)


@pytest.mark.parametrize(
  "build, words",
  [
    (lambda: Linf(-0.1), "finite number of at least 0, got -0.1"),
    (lambda: L2(float("nan")), "finite number"),
    (lambda: L1("a lot"), "number such as 8/255"),
    (lambda: Linf(8), "write 8/255"),
    (lambda: Linf(0.1).with_epsilon(8.0), "write 8/255"),
    (lambda: L2(28.0).check(tf.zeros([2, 32, 32, 3])), "write 28/255"),
    (lambda: L1(1537.0).check(tf.zeros([2, 32, 32, 3])), "write 1537/255"),
    (lambda: Linf(0.1, lower=1, upper=0), "lower must be below upper, got lower=1 and upper=0"),
    (lambda: L1(1.0, sparsity=1.0), "sparsity"),
    (lambda: from_norm("linff", 0.1), "did you mean 'linf'"),
  ],
)
def test_mistakes_end_in_one_line(build, words):
  refuses(words, build)


def test_pixels_of_another_range_have_other_limits():
  assert Linf(8, lower=0, upper=255).epsilon == 8
  for threat in (L2(27.7), L1(1536.0)):  # half of the box, sqrt(3072) and 3072
    threat.check(tf.zeros([2, 32, 32, 3]))
  L2(128.0, lower=0, upper=255).check(tf.zeros([2, 32, 32, 3]))


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_autograph_reads_the_check(kind):
  """Else a `tf.function` of the user that attacks would print that it could not be transformed."""
  tf.autograph.to_graph(kind.check)
