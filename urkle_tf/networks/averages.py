"""Moving averages of weights and batch statistics."""

import tensorflow as tf


def decay(usual, updates, now=None):
  """The decay of a moving average that begins as the plain mean (Tarvainen and Valpola, 2017).

  m = k / (k + 1) in update k = 0, 1, ..., while that is below the usual decay, which gives the mean
  of all values so far.  Otherwise the meaningless batch statistics of the initialisation would
  linger.

  Args:
    usual: in [0, 1).
    updates: k, float32 scalar.
    now: the decay after the first updates, float32 scalar; None for `usual`.

  Returns:
    m, float32 scalar.
  """
  early = updates / (updates + 1.0)
  return tf.where(early < usual, early, usual if now is None else now)


def move(averages, variables, kept):
  """Moves each average: average <- m average + (1 - m) variable, with m = `kept`."""
  for average, variable in zip(averages, variables, strict=True):
    m = tf.cast(kept, average.dtype)
    average.assign(m * average.value + (1 - m) * variable.value)
