"""The moving average of what a training exports."""

import contextlib

import keras
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import averages


class Averages:
  """Moving averages of weights and batch statistics, which can replace them.

  Args:
    weights: Keras variables, all built.
    ema: decay per step, at least 0 and below 1; None if there are no weights.

  Attributes:
    weights: the same.
    variables: their averages, in the same order: state for checkpoints.

  Raises:
    UserError: if `ema` is out of its range.
  """

  def __init__(self, weights, ema):
    if ema is not None:
      errors.within("[0, 1)", None, ema=ema)
    self.weights, self._ema = weights, ema
    self.variables = [
      keras.Variable(weight.numpy(), dtype=weight.dtype, trainable=False) for weight in weights
    ]

  def move(self, step):
    """Moves each average towards its weight (`networks.averages`), after step number `step`."""
    if self.weights:
      kept = averages.decay(self._ema, tf.cast(step, tf.float32))
      averages.move(self.variables, self.weights, kept)

  @contextlib.contextmanager
  def in_place(self, strategy):
    """A context within which the weights are their averages.

    Args:
      strategy: the strategy of the weights.
    """
    kept = [distribution.plain(weight) for weight in self.weights]

    def assign(values):
      with strategy.scope():
        for weight, value in zip(self.weights, values, strict=True):
          weight.assign(value)

    assign([distribution.plain(average) for average in self.variables])
    try:
      yield
    finally:
      assign(kept)
