"""The means of the figures that steps report."""

import keras
import tensorflow as tf

from urkle_tf import distribution


class Means(keras.metrics.Metric):
  """The means of several numbers over steps, in one variable.

  Every replica adds the same numbers, so reading them needs no exchange.  A Keras metric for each
  number would exchange its own sum and count.

  Args:
    names: the names of the numbers.
  """

  def __init__(self, names):
    super().__init__(name="means")
    self.names = list(names)
    # The sums, and last the number of steps.
    self._sums = distribution.state(tf.zeros(len(self.names) + 1), "sums")

  def update_state(self, values, taken=True):
    """Adds a step.

    Args:
      values: {name: float32 scalar}, the same on every replica.
      taken: bool scalar; if False, the step does not count.
    """
    row = tf.stack([*(values[name] for name in self.names), tf.ones([])])
    self._sums.assign_add(tf.where(taken, row, tf.zeros_like(row)))

  @property
  def count(self):
    """The number of steps, a float32 scalar."""
    return self._sums[-1]

  def result(self):
    """{name: float32 scalar}; NaN if there was no step, since a loss of 0 would look like one."""
    return dict(zip(self.names, tf.unstack(self._sums[:-1] / self.count), strict=True))

  def reset_state(self):
    """Forgets all steps."""
    self._sums.assign(tf.zeros_like(self._sums))
