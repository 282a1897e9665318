"""Optimisers and their schedule: linear warm-up, then cosine to 0, per step."""

import keras

from urkle_tf import errors, spec


def _sgd(momentum=0.9, nesterov=False):
  return keras.optimizers.SGD, {"momentum": momentum, "nesterov": nesterov}


def _adamw(beta_1=0.9, beta_2=0.999):
  return keras.optimizers.AdamW, {"beta_1": beta_1, "beta_2": beta_2}


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}


def build(text, learning_rate, steps, warmup_steps=0, weight_decay=0.0):
  """Builds an optimiser.

  Args:
    text: spec: `"sgd(momentum=0.9)"` or `"adamw"`.
    learning_rate: the highest value, above 0.
    steps: of the whole training, warm-up included.
    warmup_steps: of linear rise from 0.
    weight_decay: decoupled, times the learning rate; batch norms and biases are left out.

  Raises:
    UserError: for an unknown name, or a learning rate that is not positive.
  """
  if not learning_rate > 0:
    raise errors.UserError(f"--learning_rate must be above 0, got {learning_rate}")
  make, options = spec.call(OPTIMIZERS, text, "optimizer")
  warmup_steps = min(warmup_steps, steps - 1)
  schedule = keras.optimizers.schedules.CosineDecay(
    0.0 if warmup_steps else learning_rate,
    steps - warmup_steps,
    warmup_target=learning_rate if warmup_steps else None,
    warmup_steps=warmup_steps,
  )
  optimizer = make(schedule, weight_decay=float(weight_decay), **options)
  if weight_decay:
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
  return optimizer
