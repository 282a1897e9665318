"""How much of a training lies behind, and what rises with it."""

import tensorflow as tf

from urkle_tf import distribution


class Progress:
  """How much of a training lies behind, by the number of steps or by the clock.

  Args:
    steps: of the whole training; None keeps all that changes over it as it is at the start.
    by_clock: whether `clock` says it, and not the number of steps.

  Attributes:
    clock: a variable in [0, 1], which whoever measures the time sets; None without `by_clock`.
  """

  def __init__(self, steps, by_clock):
    self._steps, self.clock = steps, distribution.state(0.0) if by_clock else None

  def __call__(self, step):
    """What lies behind step number `step`: float32 scalar in [0, 1]."""
    if self.clock is not None:
      return tf.convert_to_tensor(self.clock.value)
    return tf.minimum(1.0, tf.cast(step, tf.float32) / self._steps) if self._steps else tf.zeros([])

  def risen(self, step, warmup):
    """Rises linearly from 1 / warmup to 1, and stays there; by the clock from 0.

    Args:
      step: its number.
      warmup: a number of steps; by the clock a share of the training, in [0, 1].
    """
    if self.clock is not None:
      return tf.minimum(1.0, self(step) / warmup) if warmup else tf.ones([])
    return tf.minimum(1.0, tf.cast(step + 1, tf.float32) / max(warmup, 1))
