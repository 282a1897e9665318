"""The share of a training that is done, and values that rise with it."""

import tensorflow as tf

from urkle_tf import distribution


class Progress:
  """The share of a training that is done, by the number of steps or by the clock.

  Args:
    steps: the steps of the whole training; None keeps the share at 0.
    by_clock: whether `clock` gives the share, instead of the number of steps.

  Attributes:
    clock: a variable in [0, 1], set by the code that measures the time; None without `by_clock`.
  """

  def __init__(self, steps, by_clock):
    self._steps, self.clock = steps, distribution.state(0.0) if by_clock else None

  def __call__(self, step):
    """The share of the training before step number `step`, a float32 scalar in [0, 1]."""
    if self.clock is not None:
      return tf.convert_to_tensor(self.clock.value)
    return tf.minimum(1.0, tf.cast(step, tf.float32) / self._steps) if self._steps else tf.zeros([])

  def risen(self, step, warmup):
    """A factor that rises linearly from 1 / warmup (by the clock, from 0) to 1, and stays there.

    Args:
      step: the step's number.
      warmup: a number of steps; by the clock, a share of the training, in [0, 1].
    """
    if self.clock is not None:
      return tf.minimum(1.0, self(step) / warmup) if warmup else tf.ones([])
    return tf.minimum(1.0, tf.cast(step + 1, tf.float32) / max(warmup, 1))
