"""LARS against the paper's algorithm in NumPy and a step worked by hand; the schedule."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses, slow

from urkle_tf.training import checkpoints, optimizers

SHAPES = {"kernel": (3, 4), "filter": (2, 2, 1, 3), "bias": (4,), "gamma": (3,)}


def variables(dtype="float32", seed=0):
  rng = np.random.default_rng(seed)
  return [
    keras.Variable(rng.normal(size=shape), dtype=dtype, name=name) for name, shape in SHAPES.items()
  ]


def gradients(steps, seed=1):
  rng = np.random.default_rng(seed)
  draw = lambda: [rng.normal(size=shape).astype("float32") for shape in SHAPES.values()]  # noqa: E731
  return [draw() for _ in range(steps)]


def in_numpy(weights, all_gradients, rates, momentum=0.9, trust=0.001, decay=0.0):
  """You et al. (2017), algorithm 1, layer by layer."""
  weights = [np.asarray(w, np.float64) for w in weights]
  velocities = [np.zeros_like(w) for w in weights]
  for step, rate in zip(all_gradients, rates, strict=True):
    for layer, (w, g) in enumerate(zip(weights, step, strict=True)):
      local, direction = 1.0, g
      if w.ndim > 1:
        local = trust * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
        direction = g + decay * w
      velocities[layer] = momentum * velocities[layer] + rate * local * direction
      weights[layer] = w - velocities[layer]
  return weights


def test_lars_by_hand():
  # |w| = 5, |g| = 10: a = 0.1 * 5 / (10 + 0.2 * 5) = 1 / 22.
  weights, bias = keras.Variable([[3.0, 4.0]]), keras.Variable([1.0, 2.0])
  lars = optimizers.LARS(2.2, momentum=0.5, trust=0.1, weight_decay=0.2)
  steps = [tf.constant([[6.0, 8.0]]), tf.constant([0.5, 0.0])]
  lars.apply(steps, [weights, bias])
  # w - 2.2 / 22 * (g + 0.2 w) = w - 0.1 * [6.6, 8.8]
  np.testing.assert_allclose(weights, [[2.34, 3.12]], rtol=1e-6)
  np.testing.assert_allclose(bias, [-0.1, 2.0], rtol=1e-5, atol=1e-6)  # 2.2 * 0.5, no decay
  lars.apply([tf.zeros([1, 2]), tf.zeros([2])], [weights, bias])
  # a = 1 without a gradient: v = 0.5 * 0.1 * [6.6, 8.8] + 2.2 * 0.2 * w; the bias coasts.
  wanted = np.array([[2.34, 3.12]]) * (1 - 0.44) - [[0.33, 0.44]]
  same((weights, bias), (wanted, [-0.65, 2.0]), rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, *slow(True)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_is_the_papers_loop(compiled, decay):
  weights = variables()
  before = [w.numpy() for w in weights]
  lars = optimizers.build("lars(momentum=0.8, trust=0.02)", 5.0, 4, 2, decay)
  lars.build(weights)
  apply = tf.function(lambda steps: lars.apply(steps, weights), jit_compile=compiled)
  rates = []
  for step in gradients(4):
    rates.append(float(lars.learning_rate))
    apply([tf.constant(g) for g in step])
  assert rates == pytest.approx([0.0, 2.5, 5.0, 2.5])  # linear, then a cosine
  expected = in_numpy(before, gradients(4), rates, 0.8, 0.02, decay)
  for found, wanted, start in zip(weights, expected, before, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
    assert np.abs(wanted - start).max() > 1e-2


def test_the_length_of_a_gradient_does_not_matter_to_lars():
  def end(factor):
    weights, lars = variables()[:2], optimizers.LARS(1.0)
    for step in gradients(2):
      lars.apply([tf.constant(factor * g) for g in step[:2]], weights)
    return weights

  for factor in (1e-15, 1e15):
    same(end(1.0), end(factor), rtol=1e-4)


def test_lars_starts_from_zero_weights():
  kernel = keras.Variable(np.zeros((2, 2)))
  optimizers.LARS(0.1).apply([tf.ones([2, 2])], [kernel])
  np.testing.assert_allclose(kernel, np.full((2, 2), -0.1), rtol=1e-6)


def test_lars_on_weights_of_low_precision():
  weights = variables("bfloat16")
  before = [w.value.numpy().astype("float64") for w in weights]
  lars = optimizers.LARS(20.0, trust=0.01)
  lars.apply([tf.cast(g, tf.bfloat16) for g in gradients(1)[0]], weights)
  given = [tf.cast(tf.cast(g, tf.bfloat16), tf.float32).numpy() for g in gradients(1)[0]]
  for found, wanted in zip(weights, in_numpy(before, [given], [20.0], trust=0.01), strict=True):
    np.testing.assert_allclose(found.value.numpy().astype("float64"), wanted, rtol=2**-8)


def test_lars_on_two_replicas_is_lars_on_the_sum(mirrored):
  """Each replica gives a share of the gradient, whose length differs from that of the sum."""
  shares = gradients(3, seed=2), gradients(3, seed=3)
  with mirrored.scope():
    weights = variables()
    lars = optimizers.LARS(3.0, trust=0.05, weight_decay=0.1)
    lars.build(weights)
  before = [w.numpy() for w in weights]
  apply = tf.function(lambda step: lars.apply(step, weights))
  for one, other in zip(*shares, strict=True):
    own = [
      lambda context, pair=p: tf.constant(pair[context.replica_id_in_sync_group])
      for p in zip(one, other, strict=True)
    ]
    step = [mirrored.experimental_distribute_values_from_function(value) for value in own]
    mirrored.run(apply, (step,))
  sums = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(*shares, strict=True)]
  same(weights, in_numpy(before, sums, [3.0] * 3, 0.9, 0.05, 0.1), rtol=2e-5, atol=1e-6)


def test_lars_resumes_from_a_checkpoint(tmp_path):
  steps = [[tf.constant(g) for g in step] for step in gradients(4)]
  ends = []
  for interrupted in (False, True):
    weights, lars = variables(), optimizers.build("lars", 9.0, 4, weight_decay=0.01)
    lars.build(weights)
    for number, step in enumerate(steps):
      if interrupted and number == 2:
        state = checkpoints.Checkpoints(tmp_path, [*weights, *lars.variables])
        state.save(2)
        weights, lars = variables(seed=5), optimizers.build("lars", 9.0, 4, weight_decay=0.01)
        lars.build(weights)
        assert checkpoints.Checkpoints(tmp_path, [*weights, *lars.variables]).restore() == 2
      lars.apply(step, weights)
    ends.append([w.numpy() for w in weights])
  same(*ends)


def test_lars_as_a_keras_object():
  lars = optimizers.LARS(0.5, momentum=0.7, trust=0.02, weight_decay=0.1)
  again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(lars))
  assert isinstance(again, optimizers.LARS)
  assert again.get_config() == lars.get_config()
  assert again.coupled_decay == 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_biases_and_batch_norms_alone(name):
  weights = variables()
  before = [w.numpy() for w in weights]
  optimizer = optimizers.build(name, 0.1, 10, weight_decay=0.5)
  optimizer.apply([tf.zeros_like(w.value) for w in weights], weights)
  for index, (found, start) in enumerate(zip(weights, before, strict=True)):
    np.testing.assert_allclose(found, start * (0.95 if index < 2 else 1), rtol=1e-6)


@pytest.mark.parametrize(
  "text, options",
  [
    ("sgd", {"momentum": 0.9, "nesterov": False}),
    ("sgd(momentum=0, nesterov=true)", {"momentum": 0, "nesterov": True}),  # a whole number
    ("adamw", {"beta_1": 0.9, "beta_2": 0.999}),
    ("adamw(beta_1=0.8, beta_2=0.95)", {"beta_1": 0.8, "beta_2": 0.95}),
    ("lars", {"momentum": 0.9, "trust": 0.001}),
  ],
)
def test_an_optimizers_options_and_usual_ones(text, options):
  found = optimizers.build(text, 0.1, 10)
  assert {name: getattr(found, name) for name in options} == options


def test_a_warm_up_longer_than_the_training_reaches_the_rate_in_its_last_step():
  optimizer, rates = optimizers.build("sgd", 0.1, 3, warmup_steps=5), []
  for step in range(3):
    optimizer.iterations.assign(step)
    rates.append(float(optimizer.learning_rate))
  assert rates == pytest.approx([0, 0.05, 0.1])


def test_layer_decay_is_adamw_at_the_rate_of_each_layer():
  """Three dense layers and one beside them, against AdamW in NumPy."""
  rng = np.random.default_rng(2)
  three = [
    [keras.Variable(rng.normal(size=size), name=name) for name, size in layer]
    for layer in ([("kernel", (n, m)), ("bias", m)] for n, m in ((4, 3), (3, 3), (3, 2)))
  ]
  head = [keras.Variable(np.ones((2, 2)), name="kernel")]
  weights = [variable for layer in three for variable in layer] + head
  spec = "adamw(layer_decay=0.5, beta_1=0.8, beta_2=0.95)"
  optimizer = optimizers.build(spec, 0.1, 4, 2, 0.3, blocks=three)
  optimizer.build(weights)
  before = [variable.numpy().astype(np.float64) for variable in weights]
  rng, rates, steps = np.random.default_rng(3), [], []
  for _ in range(4):
    rates.append(float(optimizer.learning_rate))
    steps.append([rng.normal(size=variable.shape).astype("float32") for variable in weights])
    optimizer.apply([tf.constant(g) for g in steps[-1]], weights)
  assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05])
  for place, found in enumerate(weights):
    share = (0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0)[place]  # 0.5^3 at the input; the head's is 1
    decay = 0.3 if found.name == "kernel" else 0.0
    w, m, v = before[place], 0.0, 0.0
    for t, (rate, gradients_of_step) in enumerate(zip(rates, steps, strict=True), 1):
      g = gradients_of_step[place]
      m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
      w = w - share * rate * decay * w
      w = w - share * rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-7)
    np.testing.assert_allclose(found, w, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
  "decay, blocks, message",
  [
    (0, [], "layer_decay must be in (0, 1], got 0"),
    (0.75, None, "layer_decay is for training a whole encoder: leave it out"),
  ],
)
def test_a_layer_decay_that_makes_no_sense(decay, blocks, message):
  refuses(message, optimizers.build, f"adamw(layer_decay={decay})", 0.1, 4, blocks=blocks)
