"""Optimisers and their schedule: linear warm-up, then a cosine to 0, per step or by the clock."""

import keras
import tensorflow as tf

from urkle_tf import errors, spec
from urkle_tf.networks import keras_private


@keras.saving.register_keras_serializable("urkle_tf")
class LARS(keras.optimizers.Optimizer):
  """Layer-wise adaptive rate scaling (You et al., 2017, algorithm 1): SGD for large batches.

  For the weights w of a layer and the gradient g of the whole batch

      a = trust |w| / (|g| + weight_decay |w|)
      v <- momentum v - learning_rate a (g + weight_decay w)
      w <- w + v

  so every layer moves by about learning_rate * trust times its length.  As in the paper, weight
  decay is part of the gradient.  There it affects the direction of a step, but hardly its length.
  Variables with fewer than two axes (biases, and the scales and shifts of batch norms) have a = 1
  and no weight decay.  If w or g is 0 everywhere, a = 1 too.

  Args:
    learning_rate: a number or a schedule.
    momentum: in [0, 1).
    trust: the paper's eta, above 0.
    weight_decay: at least 0.

  Raises:
    UserError: for an option out of its range.
  """

  def __init__(
    self, learning_rate=1.0, momentum=0.9, trust=0.001, weight_decay=0.0, name="lars", **kwargs
  ):
    errors.within("[0, 1)", "lars", momentum=momentum)
    errors.above(0, "lars", trust=trust)
    errors.at_least(0, "lars", weight_decay=weight_decay)
    super().__init__(learning_rate=learning_rate, name=name, **kwargs)
    # Not Keras's own `weight_decay`, which is decoupled.
    self.momentum, self.trust, self.coupled_decay = momentum, trust, weight_decay

  def build(self, variables):
    """Makes the velocities, one for each variable."""
    if self.built:
      return
    super().build(variables)
    self._velocities = self.add_optimizer_variables(variables, "velocity")

  def update_step(self, gradient, variable, learning_rate):
    """Moves one variable by the whole batch's gradient, computing in float32 for any dtype."""
    velocity = self._velocities[keras_private.position(self, variable)]
    weights, step = tf.cast(variable, tf.float32), tf.cast(gradient, tf.float32)
    if len(variable.shape) > 1:
      length, slope = tf.norm(weights), tf.norm(step)
      scale = self.trust * length / (slope + self.coupled_decay * length)
      both = tf.logical_and(length > 0, slope > 0)
      step = (step + self.coupled_decay * weights) * tf.where(both, scale, 1.0)
    step = self.momentum * tf.cast(velocity, tf.float32) - tf.cast(learning_rate, tf.float32) * step
    self.assign(velocity, step)
    self.assign(variable, weights + step)

  def get_config(self):
    """The constructor's arguments."""
    own = {"momentum": self.momentum, "trust": self.trust, "weight_decay": self.coupled_decay}
    return super().get_config() | own


class LayerwiseAdamW(keras.optimizers.Adam):
  """AdamW (Loshchilov and Hutter, 2019) with smaller learning rates for lower blocks.

  A weight in block i of the B blocks of the backbone (`networks.blocks`), counted from 1 at the
  input, has

      rate = learning_rate layer_decay^(B + 1 - i)

  as in BEiT (Bao et al., 2022); all other weights have the learning rate itself.  Weight decay is
  decoupled, and multiplied by the weight's own rate.

  Args:
    learning_rate: a number or a schedule.
    weight_decay: at least 0.
    layer_decay: above 0 and at most 1.
    blocks: a list of each block's variables, from the input on.
    **kwargs: arguments of `keras.optimizers.Adam`.

  Raises:
    UserError: if `layer_decay` is out of its range.
  """

  def __init__(self, learning_rate, weight_decay, layer_decay, blocks, **kwargs):
    errors.within("(0, 1]", "adamw", layer_decay=layer_decay)
    super().__init__(learning_rate, **kwargs)
    self.own_decay = weight_decay  # Keras's has one rate for all weights
    self._factors = {
      id(variable): layer_decay**below
      for below, variables in enumerate(reversed(blocks), 1)
      for variable in variables
    }

  def build(self, variables):
    """As in Adam; also stores the factor of each variable."""
    if not self.built:
      super().build(variables)
      self._in_order = [self._factors.get(id(variable), 1.0) for variable in variables]

  def update_step(self, gradient, variable, learning_rate):
    """Moves one variable, at its own rate."""
    rate = learning_rate * self._in_order[keras_private.position(self, variable)]
    if self.own_decay and keras_private.decays(self, variable):
      self.assign_sub(variable, variable * tf.cast(rate * self.own_decay, variable.dtype))
    super().update_step(gradient, variable, rate)


# Each takes the learning rate, the weight decay and the blocks of the backbone, then its options.


def _sgd(rate, decay, blocks, momentum=0.9, nesterov=False):
  errors.within("[0, 1)", "sgd", momentum=momentum)
  return keras.optimizers.SGD(rate, float(momentum), nesterov, weight_decay=decay)


def _adamw(rate, decay, blocks, beta_1=0.9, beta_2=0.999, layer_decay=None):
  errors.within("[0, 1)", "adamw", beta_1=beta_1, beta_2=beta_2)
  if layer_decay is None:
    return keras.optimizers.AdamW(rate, decay, beta_1, beta_2)
  if blocks is None:
    raise errors.UserError("adamw: layer_decay is for training a whole encoder: leave it out")
  return LayerwiseAdamW(rate, decay, layer_decay, blocks, beta_1=beta_1, beta_2=beta_2)


def _lars(rate, decay, blocks, momentum=0.9, trust=0.001):
  return LARS(rate, momentum, trust, decay)


class _ByClock(keras.optimizers.schedules.LearningRateSchedule):
  """A schedule that depends on the share of the training that is done, not on the step.

  Args:
    schedule: the learning rate as a function of that share, in [0, 1].
    share: a Keras variable that holds it.
  """

  def __init__(self, schedule, share):
    super().__init__()
    self._schedule, self._share = schedule, share

  def __call__(self, step):
    """The learning rate, float32 scalar."""
    return self._schedule(tf.convert_to_tensor(self._share.value))


OPTIMIZERS = {"adamw": _adamw, "lars": _lars, "sgd": _sgd}
_RATES = {"adamw": 0.001, "lars": 1.0, "sgd": 0.1}


def usual_rate(text):
  """The learning rate from random weights if none is given, for a spec as in `build`."""
  name = spec.parse(text)[0]
  errors.one_of("optimizer", name, OPTIMIZERS)
  return _RATES[name]


def build(text, learning_rate, steps, warmup_steps=0, weight_decay=0.0, clock=None, blocks=None):
  """Builds an optimiser.

  Args:
    text: spec: `"sgd(momentum=0.9)"`, `"adamw"` or `"lars(momentum=0.9, trust=0.001)"`.
    learning_rate: the highest value, above 0.
    steps: the steps of the whole training, warm-up included; None for a training by the clock.
    warmup_steps: steps of a linear rise from 0; by the clock, a share of the training, below 1.
    weight_decay: decoupled, and multiplied by the learning rate (in `LARS`, part of the gradient);
      batch norms and biases are left out.
    clock: the `Trainer`'s clock, if the learning rate follows it; None to follow the number of
      steps.
    blocks: the variables of each block of the backbone, for `layer_decay`; None without a backbone.

  Raises:
    UserError: for an unknown name, a learning rate that is not positive, a negative weight decay,
      or an option out of its range.
  """
  errors.above(0, None, learning_rate=learning_rate)
  errors.at_least(0, None, weight_decay=weight_decay)
  if clock is None:
    warmup_steps = min(warmup_steps, steps - 1)
  else:
    steps = 1.0
  schedule = keras.optimizers.schedules.CosineDecay(
    0.0 if warmup_steps else learning_rate,
    steps - warmup_steps,
    warmup_target=learning_rate if warmup_steps else None,
    warmup_steps=warmup_steps,
  )
  if clock is not None:
    schedule = _ByClock(schedule, clock)
  given = {"rate": schedule, "decay": float(weight_decay), "blocks": blocks}
  optimizer = spec.call(OPTIMIZERS, text, "optimizer", **given)
  if weight_decay:
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
  return optimizer
