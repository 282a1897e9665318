"""Loops that compile, against sums and roots by hand; eagerly and compiled."""

import numpy as np
import pytest
import tensorflow as tf

from urkle_tf import loops


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def run(request):
  return (lambda f: tf.function(f)()) if request.param else lambda f: f()


def test_steps_are_counted_from_0(run):
  add = lambda number, state: (state[0] + number, 2 * state[1])  # noqa: E731
  found = run(lambda: loops.repeat(4, add, (tf.constant(0), tf.constant(1.0))))
  assert [value.numpy() for value in found] == [0 + 1 + 2 + 3, 16]


def test_a_loop_ends_early(run):
  add = lambda _, total: total + 3  # noqa: E731
  found = run(lambda: loops.repeat(100, add, tf.constant(0), going=lambda total: total < 10))
  assert found.numpy() == 12


def test_bisection_ends_above_the_root_and_near_it(run):
  squares = tf.constant([2.0, 0.25])
  low, high = tf.zeros(2), tf.fill([2], 2.0)
  found = run(lambda: loops.bisect(20, lambda x: x * x >= squares, low, high)).numpy()
  gap = found - np.sqrt([2.0, 0.25])
  assert np.all((gap > -1e-7) & (gap < 2 * 2.0**-19))


def test_bisection_of_integers_is_exact(run):
  low, high = tf.constant([-1, -1]), tf.constant([2**30, 40])
  found = run(lambda: loops.bisect(31, lambda n: n >= tf.constant([7, 40]), low, high))
  assert found.numpy().tolist() == [7, 40]
