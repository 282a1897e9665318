"""The attacks against known maxima, NumPy loops and foolbox."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import slow
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from norms import NORMS, assert_inside, linear_maximum, norms, recorded, total
from small_models import sequential

from urkle_tf import distribution
from urkle_tf.attacks import APGD, FAB, FGSM, L2, NFGSM, PGD, RSFGSM, Linf, from_norm, from_spec

# How far the attacks of a training go, in epsilon: one of them leaves the ball, in linf.
REACH = {"pgd": 1, "fgsm": 1, "rs_fgsm": 1, "n_fgsm": 3}
RADIUS = {"linf": 0.1, "l2": 1.0, "l1": 4.0}


@pytest.fixture(scope="module")
def classifier():
  """A small smooth network in inference mode, images [n, 6, 6, 2] -> logits [n, 3]."""
  keras.utils.set_random_seed(1)
  convolution = keras.layers.Conv2D(8, 3, activation="tanh")
  norm, flat = keras.layers.BatchNormalization(), keras.layers.Flatten()
  return sequential((6, 6, 2), convolution, norm, flat, keras.layers.Dense(3))


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(5).uniform(size=(8, 6, 6, 2)).astype(np.float32)


LABELS = np.arange(8) % 3


def cross_entropy(classifier):
  """The loss of a class per image, so that rows of any slice keep their labels."""

  def objective(x):
    logits = tf.cast(classifier(x, training=False), tf.float32)
    return tf.reduce_logsumexp(3 * logits, 1) - 3 * logits[:, 0]

  return objective


def test_the_size_of_a_step_is_scaled_with_epsilon_unless_it_is_given():
  attack, x = PGD(Linf(0.1), steps=1, step_size=0.02, start=0.1), tf.fill([2, 3, 3, 1], 0.5)
  for options, size in (({}, 0.02), ({"epsilon": 0.05}, 0.01), ({"step_size": 0.003}, 0.003)):
    start, _ = attack.run(total, x, [0, 1], **{**options, "step_size": 0.0})
    end, _ = attack.run(total, x, [0, 1], **options)
    np.testing.assert_allclose(end - start, np.full(x.shape, size), atol=1e-6)


def test_a_start_that_is_given_or_carried_is_inside():
  """Where it is the best point of a run, it is the result."""
  attack, x = PGD(Linf(0.1), steps=1, keep="best", carry=True), tf.fill([2, 3, 3, 1], 0.95)
  found, _ = attack.run(total, x, [0, 1], step_size=0.0, carried=tf.ones([3, 3, 1]))
  assert_inside(found, x, "linf", 0.1)
  found, _ = APGD(Linf(0.1), steps=1).run(total, x, [0, 1], start=lambda seed: x + 0.5)
  assert_inside(found, x, "linf", 0.1)


# The whole attack stays inside, whatever is attacked.


@pytest.mark.parametrize("norm", ["l2", *slow("linf", "l1")])
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
  hnp.arrays(np.float32, (2, 3, 3, 1), elements=st.floats(0, 1, width=32)),
  hnp.arrays(np.float32, (2, 3, 3, 1), elements=st.floats(-100, 100, width=32)),
  st.floats(0.01, 1),
  st.integers(0, 2**31 - 1),
)
def test_stays_inside_and_never_starts_at_the_image(norm, x, gradient, epsilon, seed):
  threat = from_norm(norm, epsilon)
  for name in REACH if norm == "linf" else REACH.keys() - {"n_fgsm"}:
    objective, seen = recorded(lambda z: total(gradient * z))
    adversaries = from_spec(name, threat, steps=3)(objective, x, [seed, 1]).numpy()
    points = [points for _, points in seen]
    assert (norms(points[0] - x, norm) > 0).all()
    for there in [*points, adversaries]:
      assert_inside(there, x, norm, REACH[name] * epsilon)


# Objectives whose maxima are known.


@pytest.mark.parametrize("kind", [PGD, APGD])
@pytest.mark.parametrize(
  "norm, epsilon",
  [("linf", 0.1), ("linf", 0.7), ("l2", 0.3), ("l2", 3.0), ("l1", 0.4), ("l1", 9.0)],
)
def test_reaches_the_maximum_of_a_linear_objective(rng, kind, norm, epsilon):
  x = rng.uniform(size=(4, 5, 4, 3)).astype(np.float32)
  x[0, :2], x[1, :2] = 0, 1
  g = rng.normal(size=x.shape).astype(np.float32)
  budget = {"steps": 200, "step_size": epsilon / 4} if kind is PGD else {}
  attack = kind(from_norm(norm, epsilon), **budget)
  run = tf.function(lambda z: attack.run(lambda z: total(g * z), z, [1, 2]), autograph=False)
  y, info = run(tf.constant(x))
  offset, slopes = np.float64(y) - x, np.float64(g)
  flat = np.float64(x).reshape(4, -1), slopes.reshape(4, -1)
  expected = np.reshape([linear_maximum(a, b, norm, epsilon) for a, b in zip(*flat)], x.shape)
  rtol = 1e-4 if kind is PGD else 5e-3 if norm == "l1" else 1e-3
  np.testing.assert_allclose(total(slopes * offset), total(slopes * expected), rtol=rtol)
  if kind is PGD and norm != "l1":  # l1 maxima with near ties are near in value, not in place
    np.testing.assert_allclose(offset, expected, atol=1e-3)
  if kind is APGD:
    np.testing.assert_allclose(info["objective"], total(g * y), rtol=1e-3, atol=1e-3)
  assert_inside(y, x, norm, epsilon)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.2), ("l2", 0.6)])
def test_reaches_the_maximum_of_a_concave_quadratic(rng, norm, epsilon):
  """-(x - c)^2 is largest at the projection of c, which lies in the box as c does."""
  x, c = rng.uniform(size=(2, 4, 4, 4, 1))
  step = epsilon / 100
  # Along the sphere of l2 each step takes off about 1.5% of the way that is left: 300 steps leave
  # more than one step's length of it, 800 do not.
  attack = PGD(from_norm(norm, epsilon), steps=800, step_size=step, keep="best")
  target = tf.constant(c, tf.float32)
  y = tf.function(lambda z: attack(lambda z: -total((z - target) ** 2), z, [1, 2]))(x)
  if norm == "linf":
    expected = np.clip(c, x - epsilon, x + epsilon)
  else:
    length = norms(c - x, "l2")[:, None, None, None]
    expected = x + (c - x) * np.minimum(1, epsilon / length)
  np.testing.assert_allclose(y, expected, atol=1.01 * step)


def test_a_convex_quadratic_is_largest_at_a_corner(rng):
  """(x - c)^2 with c out of reach: every pixel moves away from c as far as it can."""
  x = rng.uniform(size=(4, 4, 4, 1))
  c = np.where(rng.uniform(size=x.shape) < 0.5, x - 0.3, x + 0.3)
  y = PGD(Linf(0.2), steps=5)(lambda z: total((z - tf.constant(c, tf.float32)) ** 2), x, [1, 2])
  expected = np.clip(np.where(c < x, x + 0.2, x - 0.2), 0, 1)
  np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("attack", [PGD, FGSM, RSFGSM])
@pytest.mark.parametrize("norm", NORMS)
def test_leaves_a_stationary_clean_image(norm, attack):
  """A divergence between x' and x: zero, with zero gradient, at the image itself."""
  x = tf.fill([4, 4, 4, 1], 0.5)
  threat = from_norm(norm, 0.2)
  y, info = attack(threat).run(lambda z: total((z - x) ** 2), x, [1, 2])
  if norm == "l1":  # largest where all of it is one pixel; a step moves one of 16
    assert (norms(y - x, "l2") > 0.1).all()
    assert float(info["zero_gradients"]) < 1
  else:
    known = {"linf": 16 * 0.2**2, "l2": 0.2**2}[norm]
    np.testing.assert_allclose(total((y - x) ** 2), known, rtol=5e-3)
    assert float(info["zero_gradients"]) < 0.01


# Against the same thing written plainly.


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_numpy_loop(rng, norm):
  """tanh(w . x) by hand in float64; images far from the bounds for l2."""
  x = rng.uniform(0.4, 0.6, size=(3, 3, 3, 2))
  w = rng.normal(size=(3, 3, 2))
  epsilon = 0.3 if norm == "l2" else 0.45
  threat = from_norm(norm, epsilon)
  attack = PGD(threat, steps=6, step_size=0.07, start=0.5)
  y = attack(lambda z: tf.tanh(total(z * tf.constant(w, tf.float32))), x, [7, 8])

  image = tf.constant(x, tf.float32)
  z = np.float64(threat.random_start(image, distribution.fold([7, 8], 0), 0.5))
  for _ in range(6):
    gradient = (1 - np.tanh((z * w).sum((1, 2, 3))) ** 2)[:, None, None, None] * w
    if norm == "linf":
      z = np.clip(z + 0.07 * np.sign(gradient), x - epsilon, x + epsilon)
    else:
      z = z + 0.07 * gradient / norms(gradient, "l2")[:, None, None, None]
      length = norms(z - x, "l2")[:, None, None, None]
      z = x + (z - x) * np.minimum(1, epsilon / length)
    z = np.clip(z, 0, 1)
  np.testing.assert_allclose(y, z, atol=2e-6)


def test_fgsm_and_rs_fgsm_are_their_formulas(rng):
  x = rng.uniform(size=(4, 5, 5, 1)).astype(np.float32)
  g = rng.normal(size=x.shape).astype(np.float32)
  threat = Linf(0.1)
  objective = lambda z: total(g * z)  # noqa: E731
  y = FGSM(threat)(objective, x, [1, 2])
  np.testing.assert_allclose(y, np.clip(x + 0.1 * np.sign(g), 0, 1), atol=1.01e-3 * 0.1)
  y = RSFGSM(threat)(objective, x, [1, 2])
  start = threat.random_start(tf.constant(x), distribution.fold([1, 2], 0)).numpy()
  expected = np.clip(np.clip(start + 0.125 * np.sign(g), x - 0.1, x + 0.1), 0, 1)
  np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("warm", [None, 0.04])
def test_n_fgsm_is_its_formula(rng, warm):
  x = rng.uniform(size=(400, 5, 5, 1)).astype(np.float32)
  g = rng.normal(size=x.shape).astype(np.float32)
  epsilon = warm or 0.1
  objective, seen = recorded(lambda z: total(g * z))
  y, info = NFGSM(Linf(0.1)).run(objective, x, [1, 2], epsilon=warm and tf.constant(warm))
  ((_, start),) = seen
  np.testing.assert_allclose(y, np.clip(start + epsilon * np.sign(g), 0, 1), atol=1e-6)
  np.testing.assert_allclose(info["objective"], total(g * start), rtol=1e-5)
  # Uniform noise of twice epsilon, where the pixel bounds leave it room.
  inner = (start - x)[(x > 0.2) & (x < 0.8)] / epsilon
  np.testing.assert_allclose(np.quantile(inner, [0, 0.25, 0.5, 1]), [-2, -1, 0, 2], atol=0.06)
  assert np.abs(y - x).max() == pytest.approx(3 * epsilon, rel=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_foolbox(classifier, images, norm):
  """The same start, step and number of steps give foolbox's adversaries."""
  foolbox = pytest.importorskip("foolbox")
  x = images if norm == "linf" else 0.4 + 0.2 * images  # its l2 differs at the bounds
  epsilon, labels = {"linf": 0.1, "l2": 0.3}[norm], tf.constant(LABELS)
  threat = from_norm(norm, epsilon)
  start = threat.random_start(tf.constant(x), distribution.fold([3, 4], 0))
  kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
  theirs = kind(abs_stepsize=epsilon / 4, steps=7, random_start=True)
  theirs.get_random_start = lambda x0, _: type(x0)(start)
  model = foolbox.TensorFlowModel(classifier, bounds=(0, 1), device="CPU:0")
  _, expected, _ = theirs(model, tf.constant(x), labels, epsilons=epsilon)

  def objective(z):
    logits = classifier(z, training=False)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

  y = PGD(threat, steps=7, step_size=epsilon / 4)(objective, x, [3, 4])
  np.testing.assert_allclose(y, expected, atol=1e-5)


# What is kept.


def wave(z):
  """Many maxima per image, and far larger slopes than the steps below can follow."""
  return tf.sin(40 * total(z)) + 0.3 * tf.cos(17 * z[:, 0, 0, 0])


@pytest.mark.parametrize(
  "attack",
  [
    PGD(Linf(0.1), steps=4, keep="best"),
    PGD(Linf(0.1), steps=4, restarts=3),  # which implies it
    APGD(Linf(0.1), steps=7),
  ],
)
def test_best_is_the_best_of_all_that_was_seen(rng, attack):
  x = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32)
  objective, seen = recorded(wave)
  y, info = attack.run(objective, x, [1, 2])
  length = attack.steps + 1  # the gradients and the last iterate of each run
  assert len(seen) == attack.restarts * length
  values = np.stack([values for values, _ in seen])
  np.testing.assert_allclose(info["objective"], values.max(0), rtol=1e-6)
  expected = np.stack([seen[k][1][i] for i, k in enumerate(values.argmax(0))])
  np.testing.assert_array_equal(y, expected)
  assert len(np.unique(values[::length], axis=0)) == attack.restarts  # each starts elsewhere
  # The last iterate is worse somewhere, or the test shows nothing.
  assert (values[attack.steps] < values[:length].max(0) - 0.01).any()
  if isinstance(attack, APGD):
    np.testing.assert_array_equal(info["last"], seen[-1][1])
    assert float(info["zero_gradients"]) == 0


def test_last_needs_no_forward_pass_beyond_the_gradients(rng):
  x = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32)
  objective, seen = recorded(wave)
  _, info = PGD(Linf(0.1), steps=5).run(objective, x, [1, 2])
  assert len(seen) == 5
  np.testing.assert_allclose(info["objective"], seen[-1][0])


def test_zero_gradients_are_reported(images):
  """Half of the pixels do not matter; for half of the images nothing does."""
  mask = np.zeros((8, 6, 6, 2), np.float32)
  mask[:4, :3] = 1
  for kind in (APGD, FAB, PGD):
    attack = kind(Linf(0.1), steps=4, restarts=2)
    y, info = attack.run(lambda z: total(mask * z), images, [1, 2])
    assert float(info["zero_gradients"]) == pytest.approx(0.75)
  start = PGD(Linf(0.1), steps=1)(lambda z: total(0 * z), images, [1, 2])
  expected = attack.threat.random_start(tf.constant(images), distribution.fold([1, 2], 0))
  np.testing.assert_array_equal(start, expected)
  assert np.all(np.asarray(y)[:4, :3] >= images[:4, :3])


# Seeds, compilation, replicas, precision.


def test_seeds_repeat_and_none_differs(images):
  attack = PGD(L2(0.5), steps=1)

  def run(seed):
    return attack(lambda z: total(z**2), images, seed).numpy()

  np.testing.assert_array_equal(run([1, 2]), run([1, 2]))
  assert np.abs(run([1, 2]) - run([1, 3])).max() > 1e-3
  assert np.abs(run(None) - run(None)).max() > 1e-3
  compiled = tf.function(lambda: attack(lambda z: total(z**2), images))
  assert np.abs(compiled().numpy() - compiled().numpy()).max() > 1e-3


@pytest.mark.parametrize("jit", [False, *slow(True)])
@pytest.mark.parametrize("norm", NORMS)
def test_compiled_equals_eager(classifier, images, norm, jit):
  attack = PGD(from_norm(norm, RADIUS[norm]), steps=3, restarts=2 if norm == "linf" else 1)
  # XLA turns the same random bits into other floats: give both the same starts.
  starts = attack.threat.random_start(tf.constant(images), [3, 4])
  attack.threat.random_start = lambda x, seed, radius: starts
  objective = cross_entropy(classifier)
  run = lambda x, seed: attack.run(objective, x, seed)  # noqa: E731
  compiled = tf.function(run, jit_compile=jit, autograph=False)
  y, info = compiled(tf.constant(images), tf.constant([1, 2]))
  expected, expected_info = run(images, [1, 2])
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(info["objective"], expected_info["objective"], rtol=1e-4)


def test_the_loop_is_a_loop(classifier, images):
  """A graph's size does not grow with the steps or restarts, nor does its memory."""

  def size(**options):
    attack = PGD(Linf(0.1), **options)
    function = tf.function(lambda x: attack(cross_entropy(classifier), x, [1, 2]))
    graph = function.get_concrete_function(tf.TensorSpec(images.shape)).graph.as_graph_def()
    return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)

  assert size(steps=2) == size(steps=50)
  assert size(steps=2, restarts=2) == size(steps=2, restarts=20)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_size_may_be_unknown(images, norm):
  attack = PGD(from_norm(norm, RADIUS[norm]), steps=2, restarts=2)
  run = lambda x: attack.run(lambda z: total(z**2), x, [1, 2])  # noqa: E731
  unknown = [tf.TensorSpec([None, 6, 6, 2])]
  function = tf.function(run, input_signature=unknown, autograph=False)
  for n in [8, 3]:
    y, info = function(images[:n])
    assert y.shape == (n, 6, 6, 2)
    assert info["objective"].shape == (n,)


def test_bfloat16_networks_get_float32_adversaries(images):
  hidden = keras.layers.Dense(4, activation="tanh", dtype="mixed_bfloat16")
  last = keras.layers.Dense(1, dtype="bfloat16")
  network = sequential((6, 6, 2), keras.layers.Flatten(), hidden, last)
  assert network(images).dtype == tf.bfloat16
  objective = lambda z: network(z)[:, 0]  # noqa: E731
  y, info = PGD(Linf(0.1), steps=3).run(objective, images, [1, 2])
  assert y.dtype == info["objective"].dtype == tf.float32
  assert float(info["zero_gradients"]) < 0.1
  assert (objective(y).numpy() > objective(images).numpy()).all()


def test_weights_get_neither_gradients_nor_updates(classifier, images):
  objective = cross_entropy(classifier)
  before = [w.numpy() for w in classifier.weights]
  attack = PGD(Linf(0.1), steps=2)
  fixed = attack(objective, images, [1, 2])

  @tf.function
  def gradients(find):
    with tf.GradientTape(persistent=True) as tape:
      y = attack(objective, images, [1, 2]) if find else fixed
      loss = tf.reduce_mean(objective(y))
    weights = [w.value for w in classifier.trainable_variables]
    return tape.gradient(loss, weights), tape.gradient(y, weights)

  (through, adversary), (without, _) = gradients(True), gradients(False)
  same(through, without, atol=1e-6, rtol=1e-7)
  assert all(g is None for g in adversary)
  same(classifier.weights, before)
