"""Loops that compile: a number of steps, and bisection."""

import tensorflow as tf


def repeat(count, step, state, going=None, name=None):
  """The state after some steps.

  Args:
    count: the number of steps, an int or int32 scalar.
    step: (number of the step from 0, state) -> the next state, of the same structure.
    state: tensors at the start, in any structure.
    going: state -> bool scalar, false to end early; None for all steps.
    name: the name of the loop in the graph; None for any.
  """

  def more(number, state):
    left = number < count
    return left if going is None else left & going(state)

  _, state = tf.while_loop(
    more,
    lambda number, state: (number + 1, step(number, state)),
    (tf.constant(0), state),
    parallel_iterations=1,
    name=name,
  )
  return state


def bisect(halvings, holds, low, high):
  """The upper end of an interval in which a condition becomes true, after some halvings.

  Args:
    halvings: their number.
    holds: a value for each example -> bool of the same shape: false at `low`, true at `high`.
    low: float32 or int32, the lower ends.
    high: the upper ends, of the same type and shape.
  """

  def halve(_, ends):
    low, high = ends
    middle = high - (high - low) // 2 if high.dtype.is_integer else 0.5 * (low + high)
    found = holds(middle)
    return tf.where(found, low, middle), tf.where(found, middle, high)

  return repeat(halvings, halve, (low, high))[1]
