"""Momentum encoders: copies of models that follow them by a moving average."""

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import averages


class MovingAverage(keras.layers.Layer):
  """Copies of models, whose weights and batch statistics follow them by a moving average.

      copy <- m copy + (1 - m) model

  with m as in `averages.decay`.

  Every copy is a Keras model without trainable weights.  All state is in variables, including the
  number of updates.

  Args:
    models: functional Keras models, all built.
    momentum: the usual m, in [0, 1).

  Attributes:
    models: the copies, in the same order.

  Raises:
    UserError: if a model cannot be copied.
  """

  def __init__(self, models, momentum, name="average"):
    super().__init__(name=name)
    self._momentum = momentum
    self.models = [_copy(model) for model in models]
    self.updates = self.add_weight(
      name="updates", shape=(), initializer="zeros", dtype="float32", trainable=False
    )
    self.built = True

  def update(self, models, momentum):
    """Moves every copy towards its model.

    Args:
      models: the models that were copied.
      momentum: m once the first updates are over, float32 scalar in [0, 1].
    """
    passed = tf.convert_to_tensor(self.updates.value)
    kept = averages.decay(self._momentum, passed, momentum)
    for model, copy in zip(models, self.models, strict=True):
      averages.move(copy.weights, model.weights, kept)
    self.updates.assign(passed + 1.0)


def _copy(model):
  try:
    copy = keras.models.clone_model(model)
  except (TypeError, ValueError, NotImplementedError) as error:
    raise errors.UserError(
      f"the model {model.name!r} cannot be copied for a momentum encoder "
      f"({errors.reason(error)}): define get_config in its custom layers"
    ) from error
  copy.set_weights(model.get_weights())
  copy.trainable = False
  return copy
