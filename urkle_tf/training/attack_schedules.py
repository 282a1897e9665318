"""Schedules for the number of attack steps during a training.

Early in a training almost any adversary is good enough, so a schedule can save steps there.  The
product of the number of steps and their size stays the same.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from urkle_tf import distribution, errors, spec
from urkle_tf.attacks.pgd import PGD
from urkle_tf.networks.tuples import flat
from urkle_tf.training import metrics


class Constant:
  """The attack's own number of steps.

  Attributes:
    variables: state for checkpoints, a list of Keras variables.
  """

  variables: tuple[keras.Variable, ...] = ()

  def check(self, attack, scheme):
    """Raises `UserError` if the schedule does not fit the attack or the robustness scheme."""

  def held_out(self, size):
    """The number of `size` images that the training must not see."""
    return 0

  def steps(self, progress, attack):
    """The number of steps, an int32 scalar tensor; None for the attack's own.

    Args:
      progress: the share of the training that is done, float32 scalar in [0, 1].
      attack: the `PGD`.
    """


class Rising(Constant):
  """From `first` steps to the attack's own number, each for an equal part of the training.

  Args:
    first: at least 1.
  """

  def __init__(self, first=1):
    errors.whole(1, "rising", first=first)
    self.first = first

  def check(self, attack, scheme):
    _check(attack, "rising")
    if self.first > attack.steps:
      raise errors.UserError(
        f"rising: first={self.first} is more than the attack's {attack.steps} steps: give a "
        "smaller number, or more --attack_steps"
      )

  def steps(self, progress, attack):
    more = attack.steps - self.first
    # The margin makes a part begin with its first step, however `progress` is rounded.
    risen = tf.floor(progress * (more + 1) + 1e-4)
    return self.first + tf.minimum(tf.cast(risen, tf.int32), more)


class Controlled(Constant):
  """Takes as many steps as needed to find what a strong attack finds, without labels.

      ratio = mean_x objective(PGD-20 from x) / mean_x objective(the training's attack from x)

  `Control` measures this ratio at regular intervals, on one batch that the training never sees.
  Above `high` the number of steps grows by half; below `low` it shrinks by a quarter.

  Args:
    every: training steps between two measurements, at least 1.
    low: at least 1.
    high: above `low`.
    most: the largest number of attack steps, at least 1.
    images: how many of the training images are held out for it, at least 1; at most a tenth of
      them are.
  """

  def __init__(self, every=300, low=1.1, high=1.3, most=20, images=128):
    errors.whole(1, "controlled", every=every, most=most, images=images)
    if not 1 <= low < high:
      raise errors.UserError(
        f"controlled: low must be at least 1, and high above it, got {low} and {high}"
      )
    self.every, self.most, self._images = every, most, images
    self.low, self.high = low, high
    self._steps = keras.Variable(0, dtype="int32", trainable=False, name="attack_steps")
    self.variables = (self._steps,)

  def check(self, attack, scheme):
    _check(attack, "controlled")
    if self.most < attack.steps:
      raise errors.UserError(
        f"controlled: most={self.most} is less than the attack's {attack.steps} steps: give a "
        "larger number, or fewer --attack_steps"
      )
    if not scheme.terms:
      raise errors.UserError(
        "--attack_schedule=controlled needs an added term that is 0 at the clean image, and this "
        "robustness scheme has none: use --robustness=urkle or --robustness=trades"
      )

  def held_out(self, size):
    return max(1, min(self._images, size // 10))

  def steps(self, progress, attack):
    steps = tf.convert_to_tensor(self._steps.value)
    return tf.where(steps > 0, steps, attack.steps)  # 0 before the first measurement

  def adjust(self, ratio, steps):
    """Sets the number of steps after a measurement.

    Args:
      ratio: the ratio above.
      steps: the number of steps that the attack took.

    Returns:
      The new number.
    """
    if ratio > self.high:
      steps = min(self.most, max(steps + 1, int(1.5 * steps)))
    elif ratio < self.low:
      steps = max(1, min(steps - 1, int(0.75 * steps)))
    self._steps.assign(steps)
    return steps


class Control(metrics.Steps):
  """Measures for a `Controlled` schedule, logs the ratio, and warns while it is too high.

  Args:
    schedule: the `Controlled`.
    batch: a batch of the pipeline, of images that the training does not see.
    recorder: the `Recorder` of the run: `attack_ratio` joins its next row.
    agree: `distribution.agreement` of the strategy.
  """

  def __init__(self, schedule, batch, recorder, agree=lambda number: number):
    super().__init__()
    self._schedule, self._recorder, self._agree = schedule, recorder, agree
    self._batch, self._measured = batch, None

  def _measure(self, steps):
    model = self.model
    views, batch = model.views(self._batch, 0)
    aux = model.pretext.prepare(views, batch)
    objective = model.robustness.objective(model.encoder, model.pretext, views, aux)
    targets = flat(model.robustness.targets(views))
    seed = distribution.fold([model.seed, 2], 0)
    strong = PGD(model.attack.threat, steps=20)
    own, _ = model.attack.run(objective, targets, seed, steps=steps)
    best, _ = strong.run(objective, targets, seed)
    found = [tf.reduce_mean(objective(images)) for images in (best, own)]
    return found[0] / tf.maximum(found[1], 1e-12)

  def on_train_batch_end(self, batch, logs=None):
    """Measures when a period has ended, also inside several steps that Keras takes at once."""
    before, step = self._count(batch)
    if before // self._schedule.every == step // self._schedule.every:
      return
    with self._recorder.paused():
      if self._measured is None:
        self._measured = tf.function(self._measure, autograph=False)
      steps = self._schedule.steps(1.0, self.model.attack)
      ratio = float(self._agree(float(self._measured(steps))))
      if not np.isfinite(ratio):
        return
      new = self._schedule.adjust(ratio, int(steps))
    self._recorder.extra["attack_ratio"] = round(ratio, 4)
    if ratio > self._schedule.high:
      logging.warning(
        "PGD-20 finds %.1f times what the attack of this training finds in %d steps: it now takes "
        "%d, and the figures logged so far look better than they are",
        *(ratio, int(steps), new),
      )


def _check(attack, name):
  if "steps" not in attack.takes:
    raise errors.UserError(
      f"--attack_schedule={name} changes the number of steps, but that of {attack.name} is fixed: "
      "use --attack=pgd"
    )


_SCHEDULES = {"constant": Constant, "rising": Rising, "controlled": Controlled}


def from_spec(text):
  """The schedule of a spec: `constant`, `rising(first=1)` or `controlled(every=300)`."""
  return spec.call(_SCHEDULES, text, "attack schedule")
