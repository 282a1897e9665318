"""Noise that belongs to the global example, seeds, gathering and strategies."""

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from scipy import stats
from small_models import small_classifier, tiny_encoder

from urkle_tf import distribution

SEED = [3, 4]


@pytest.mark.parametrize("draw", [distribution.uniform, distribution.normal])
def test_noise_of_two_replicas_is_that_of_one(on_two, draw):
  whole = draw(SEED, [6, 3, 2]).numpy()
  halves = on_two(lambda _: draw(SEED, [3, 3, 2]), whole)
  np.testing.assert_array_equal(halves, whole)
  assert len(np.unique(whole)) == whole.size  # no row is another's copy
  # Of a batch whose size is not known beforehand.
  halves = on_two(lambda half: draw(SEED, tf.shape(half)), whole)
  np.testing.assert_array_equal(halves, whole)


@pytest.mark.parametrize("draw", [distribution.uniform, distribution.normal])
def test_noise_is_the_same_with_xla_and_with_dynamic_shapes(draw):
  whole = draw(SEED, [5, 4]).numpy()
  compiled = tf.function(lambda: draw(SEED, [5, 4]), jit_compile=True)()
  # XLA's logarithm and cosine may round otherwise in the last digit; uniform has neither.
  atol = 0 if draw is distribution.uniform else 1e-5
  np.testing.assert_allclose(compiled, whole, rtol=0, atol=atol)
  unknown = [tf.TensorSpec([2], tf.int32)]
  dynamic = tf.function(lambda shape: draw(SEED, shape), input_signature=unknown)
  np.testing.assert_array_equal(dynamic([5, 4]), whole)


@pytest.mark.parametrize("seed", [3, [3], [3, 4, 5]])
def test_a_seed_of_another_shape_ends_in_one_line(seed):
  refuses("a seed must be two integers", distribution.fold, seed, 0)
  images, classifier = tf.zeros([2, 8, 8, 1]), small_classifier(tiny_encoder())
  refuses("a seed must be two integers", classifier.log_probabilities, images, seed)


def test_normal_noise_is_standard_normal():
  noise = distribution.normal(SEED, [400, 500]).numpy().astype(np.float64)
  n = noise.size
  # Five standard errors of each moment of a standard normal sample.
  assert abs(noise.mean()) < 5 / n**0.5
  assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
  assert abs(stats.skew(noise.ravel())) < 5 * (6 / n) ** 0.5
  assert abs(stats.kurtosis(noise.ravel())) < 5 * (24 / n) ** 0.5
  assert stats.kstest(noise.ravel()[:20000], "norm").pvalue > 1e-4
  assert np.isfinite(noise).all()
  assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 5 / n**0.5


def test_uniform_noise_fills_its_range():
  noise = distribution.uniform(SEED, [400, 500], -2.0, 3.0).numpy().astype(np.float64)
  assert -2 <= noise.min() <= noise.max() < 3
  assert stats.kstest(noise.ravel()[:20000], "uniform", (-2, 5)).pvalue > 1e-4
  assert abs(noise.mean() - 0.5) < 5 * (25 / 12 / noise.size) ** 0.5


def test_fold_gives_independent_streams():
  rows = ((), (0,), (1,), (0, 1), (1, 0))
  seeds = {numbers: distribution.fold(SEED, *numbers) for numbers in rows}
  seeds["another"] = distribution.fold([4, 3], 1)
  assert len({tuple(seed.numpy()) for seed in seeds.values()}) == len(seeds)
  np.testing.assert_array_equal(seeds[()], SEED)
  np.testing.assert_array_equal(distribution.fold(seeds[(0,)], 1), seeds[0, 1])
  noise = np.stack([distribution.normal(seed, [1, 4000]).numpy()[0] for seed in seeds.values()])
  correlation = np.corrcoef(noise) - np.eye(len(seeds))
  assert np.abs(correlation).max() < 5 / 4000**0.5


def test_fold_takes_tensors_in_graphs():
  graph = tf.function(lambda step: distribution.fold(SEED, step))
  for step in (0, 7):
    np.testing.assert_array_equal(graph(tf.constant(step)), distribution.fold(SEED, step))


def test_gather_joins_the_replicas_and_sends_gradients_back(on_two):
  assert distribution.replicas() == 1
  assert distribution.replica_id() == 0
  np.testing.assert_array_equal(distribution.gather(tf.constant([[1.0], [2.0]])), [[1.0], [2.0]])
  weights = tf.constant([[1.0], [10.0], [100.0], [1000.0]])

  def replica(own):
    with tf.GradientTape() as tape:
      tape.watch(own)
      everyone = distribution.gather(own)
      loss = tf.reduce_sum(weights * everyone**2)
    return tf.concat([everyone, tape.gradient(loss, own)], 0)

  rows = on_two(replica, np.float32([[1], [2], [3], [4]])).ravel()
  np.testing.assert_array_equal(rows[:4], [1, 2, 3, 4])
  np.testing.assert_array_equal(rows[6:10], [1, 2, 3, 4])
  # Each replica's loss counts, so that the gradient is twice 2 w x.
  np.testing.assert_array_equal(rows[4:6], [4.0, 80.0])
  np.testing.assert_array_equal(rows[10:], [1200.0, 16000.0])


def test_strategies_by_name():
  assert distribution.strategy("one").num_replicas_in_sync == 1
  if not tf.config.list_logical_devices("GPU"):
    assert distribution.strategy("auto").num_replicas_in_sync == 1


@pytest.mark.parametrize(
  "name, words", [("miror", "did you mean 'mirrored'?"), ("two", "one, tpu"), (None, "None")]
)
def test_unknown_strategies_end_in_one_line(name, words):
  refuses(f"unknown strategy & {words}", distribution.strategy, name)
