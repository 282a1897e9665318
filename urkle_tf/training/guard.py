"""A guard against steps with NaN or infinite values."""

import tensorflow as tf

from urkle_tf import distribution


def finite(loss, norm):
  """Whether a step may be taken, a bool scalar.

  Args:
    loss: float32 scalar.
    norm: the gradient's norm, float32 scalar.
  """
  return tf.logical_and(tf.math.is_finite(loss), tf.math.is_finite(norm))


class Guard:
  """Takes a model's step, or undoes it if it is not finite, and counts such steps.

  Args:
    model: the `Trainer`.
    kept: variables of the model that its steps do not move.

  Attributes:
    skips: skipped steps, float32 [4]: in total, in the current sequence, in the longest sequence,
      and the last step of that sequence.  They are floats, so that they stay on an accelerator.
  """

  def __init__(self, model, kept=()):
    self._model = model
    self.skips = distribution.state([0.0, 0.0, 0.0, -1.0])
    self._kept = {id(variable) for variable in (self.skips, *kept)}

  def _moved(self):
    """The variables that a step moves besides the trained weights: statistics, averages."""
    return [v for v in self._model.non_trainable_weights if id(v) not in self._kept]

  def start(self):
    """The values at the start of a step that change before its gradient is known, for `take`."""
    return _values(self._moved())

  def take(self, take, step, allowed, before):
    """Takes a step if it is allowed; otherwise only the count of steps changes.

    Args:
      take: a function without arguments that applies the gradients and moves averages.
      step: the step's number, int32 scalar.
      allowed: the result of `finite`, the same on all replicas.
      before: the result of `start`.
    """
    self._count(step, 1.0 - tf.cast(allowed, tf.float32))
    moved, optimizer = self._moved(), self._model.optimizer
    if tf.distribute.has_strategy():
      slots = [v for v in optimizer.variables if v is not optimizer.iterations]
      trained = [*self._model.trainable_variables, *slots]
      before = before + _values(trained)
      take()
      _put_back([*moved, *trained], before, allowed)
      return

    def taken():
      take()
      return tf.constant(True)

    def taken_back():
      for variable, value in zip(moved, before, strict=True):
        variable.assign(value)
      optimizer.iterations.assign_add(1)
      return tf.constant(False)

    tf.cond(allowed, taken, taken_back)

  def _count(self, step, skipped):
    total, row, longest, last = tf.unstack(tf.convert_to_tensor(self.skips.value))
    row = skipped * (row + 1.0)
    last = tf.where(row > longest, tf.cast(step, tf.float32), last)
    self.skips.assign(tf.stack([total + skipped, row, tf.maximum(longest, row), last]))


def _values(variables):
  return [tf.convert_to_tensor(variable.value) for variable in variables]


def _put_back(variables, before, allowed):
  """Restores variables if a step was not allowed.

  A strategy's variables cannot be assigned in a branch, so a step is always taken, and then undone.
  """

  def put_back(strategy, allowed, before):
    for variable, value in zip(variables, before, strict=True):
      strategy.extended.update(
        variable.value,
        lambda part, allowed, value: part.assign(tf.where(allowed, part, value)),
        args=(allowed, value),
        group=False,
      )

  tf.distribute.get_replica_context().merge_call(put_back, args=(allowed, before))
