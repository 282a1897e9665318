"""What a `Trainer` refuses, each in one line that says what to do."""

import keras

from urkle_tf import errors
from urkle_tf.attacks.base import Attack
from urkle_tf.networks import keras_private
from urkle_tf.networks.encoders import Encoder, ExportedEncoder
from urkle_tf.pretexts.base import Pretext
from urkle_tf.robustness.base import Robustness
from urkle_tf.training import attack_schedules


def cell(encoder, pretext, scheme, attack, schedule, ends):
  """Raises `UserError` if the parts of a `Trainer` make no sense together.

  Args:
    encoder: an `Encoder`.
    pretext: a `Pretext`.
    scheme: a `Robustness`.
    attack: an `Attack` or None.
    schedule: a schedule of the attack's steps.
    ends: whether the end of the training is known.
  """
  _kinds(encoder, pretext, scheme, schedule)
  scheme.check(pretext)
  if scheme.adversarial or scheme.certified:
    if not isinstance(attack, Attack):
      raise errors.UserError(
        f"this robustness scheme needs an attack, got {attack!r}: give Trainer(attack=PGD(...))"
      )
    if scheme.certified and attack.threat.norm != "linf":
      raise errors.UserError(
        f"the KL is bounded in l_inf, not in {attack.threat.norm}: leave out certified, or give "
        "--norm=linf"
      )
  if scheme.adversarial:
    attack.check("training")
    schedule.check(attack, scheme)
  if not ends and scheme.strength(0.0) is not None:
    raise errors.UserError(
      "this robustness scheme weakens the augmentation over the training: give Trainer(..., "
      "steps=) and pipeline.views(..., strength=trainer.strength)"
    )


def _kinds(encoder, pretext, scheme, schedule):
  for name, given, base in (
    ("GaussianEncoder", encoder, Encoder),
    ("Pretext", pretext, Pretext),
    ("Robustness", scheme, Robustness),
    ("schedule", schedule, attack_schedules.Constant),
  ):
    if not isinstance(given, base):
      raise errors.UserError(f"give Trainer a {name} object, not {given!r}")
  if isinstance(encoder, ExportedEncoder) and (scheme.sigma or scheme.dual):
    raise errors.UserError(
      "this robustness scheme needs a GaussianEncoder, not a loaded encoder: make one with the "
      "same backbone, and call its start_from(loaded.network, FOLDER)"
    )
  if pretext.built:  # its heads are another Trainer's
    raise errors.UserError(
      f"this {type(pretext).__name__} already belongs to another Trainer: make a new one"
    )


def precision(model):
  """Raises `UserError` if a layer of a model computes in float16."""
  half = [x.name for x in keras_private.layers(model) if x.compute_dtype == "float16"]
  if half:  # a skipped step would never lower the scale of its loss
    raise errors.UserError(
      f"{half[0]!r} computes in float16, whose gradients need a scaled loss: make encoder and "
      "Trainer under the policy mixed_bfloat16, which needs none"
    )


def optimizer(given):
  """Raises `UserError` if a Keras optimizer accumulates gradients, or scales the loss."""
  if given.gradient_accumulation_steps:
    raise errors.UserError(
      "a Trainer's optimizer cannot accumulate gradients: leave gradient_accumulation_steps out; "
      "compile(accumulate=N) takes each batch in N parts"
    )
  scales = isinstance(given, keras.optimizers.LossScaleOptimizer)
  if scales or given.loss_scale_factor:  # clip_norm would see scaled gradients
    raise errors.UserError(
      "a Trainer's optimizer cannot scale the loss: leave LossScaleOptimizer and "
      "loss_scale_factor out; float32 and mixed_bfloat16 need neither"
    )


def losses(owner, found):
  """The losses of a pretext or scheme; raises `UserError` if one of its `terms` is missing."""
  names = sorted(found) if isinstance(found, dict) else [type(found).__name__]
  if not isinstance(found, dict) or not set(owner.terms) <= set(found):
    raise errors.UserError(
      f"{type(owner).__name__} names the terms {sorted(owner.terms)}, but returned {names}: return "
      "a dict with a loss for each"
    )
  return found
