"""Writes rows of metrics and checkpoints during a `fit`, and ends it early if it must."""

from typing import Any

import keras
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.training import preemption


class NotFinite(errors.UserError):
  """Too many consecutive steps were skipped, because their loss or gradient was not finite.

  Attributes:
    first: the number of the first of them, from 0.
    last: the number of the last of them.
  """

  def __init__(self, first, last):
    super().__init__(
      f"steps {first + 1} to {last + 1} have a loss or a gradient that is not finite, and were "
      "skipped: lower --learning_rate, or give --clip_norm=1 or more --warmup_epochs"
    )
    self.first, self.last = first, last


class Steps(keras.callbacks.Callback):
  """Counts the steps of a `fit`.

  Reading the optimizer's count waits for the device, so it is read once an epoch.
  """

  def on_epoch_begin(self, epoch, logs=None):
    """Reads how many steps were taken so far."""
    self._begun = self._step = int(distribution.plain(self.model.optimizer.iterations))

  def _count(self, batch):
    """(the step before an execution, the one after it); Keras may take several at once."""
    before, self._step = self._step, self._begun + batch + 1
    return before, self._step


class Metrics(Steps):
  """Writes a row of means every `log_every` steps and at each epoch's end, and checkpoints.

  Means are over the steps since the last row.  A checkpoint directly follows a row, except after a
  signal; then it also holds the partial means, so a resumed run loses no step.  This callback must
  be the last in the list, so that the recorder's `extra` holds what the others found at the end of
  an epoch.

  A training by the clock ends when the `limit` of its course has passed; until then the clock of
  its `Trainer` holds the share that has passed.  With several workers the chief's time counts.

  Args:
    recorder: the `Recorder` of the run.
    checkpoints: a `checkpoints.Checkpoints`.
    log_every: steps between rows.
    checkpoint_every: steps between checkpoints; one is also saved at the end.
    watch: a `preemption.Watch`; a signal ends the training after the current step, with a
      checkpoint.
    scope: the strategy.
    max_bad_steps: the training ends with `NotFinite` after this many consecutive steps whose loss
      or gradient is not finite, or at its end if all were such.  The count is read once in that
      many steps, and before a row is written, because reading it waits for the device.
  """

  def __init__(
    self, recorder, checkpoints, log_every, checkpoint_every, watch=None, scope=None,
    max_bad_steps=20,
  ):  # fmt: skip
    super().__init__()
    self._recorder, self._course, self._checkpoints = recorder, recorder.course, checkpoints
    self._log_every, self._checkpoint_every = log_every, checkpoint_every
    self._watch, self._max_bad_steps = watch or preemption.Watch(), max_bad_steps
    scope = scope or tf.distribute.get_strategy()
    self._chief, self._agree = distribution.is_chief(scope), distribution.agreement(scope)
    self._share, self._skipped = 0.0, 0

  def _behind(self, step):
    """The share of the training that is done, in [0, 1]; the next execution reads it."""
    if self._course.limit is None:
      return step / self._course.steps
    share = min(1.0, self._recorder.spent / self._course.limit)
    share = self._agree(share if self._chief else 0.0)
    self.model.clock.assign(share)
    self.model.stop_training = share >= 1
    return share

  def on_train_begin(self, logs=None):
    """Stores partial means from a checkpoint, because `fit` resets all metrics."""
    self._means = [distribution.plain(variable) for variable in self.model.metrics_variables]
    self._saved = int(distribution.plain(self.model.optimizer.iterations)) // self._checkpoint_every

  def on_epoch_begin(self, epoch, logs=None):
    """Restores them before the first step."""
    for variable, value in zip(self.model.metrics_variables, self._means, strict=False):
      variable.assign(value)
    self._means = []
    super().on_epoch_begin(epoch, logs)

  def on_train_batch_end(self, batch, logs=None):
    """Writes a row if one is due."""
    before, step = self._count(batch)
    self._recorder.tick((step - before) * self._course.batch_size)
    self._share = self._behind(step)
    passed = lambda n: step // n > before // n  # noqa: E731
    if passed(self._max_bad_steps):
      self._check_numbers()
    due = passed(self._log_every) or passed(self._checkpoint_every)
    last = self._share >= 1 or step % self._course.steps_per_epoch == 0
    if due or last or (self._recorder.terminal and step % 5 == 0):
      self._recorder.show(step, self._share, float(self.model.means.result()["loss"]))
    if due and not last:
      self._finish_row(step)
    if not last:  # after the last step, `on_epoch_end` does this
      self._watch.check(step, self._checkpoints.save)

  def on_epoch_end(self, epoch, logs=None):
    """Writes the epoch's last row, with the probes' results."""
    step = self._step
    self._finish_row(step)
    if self._share < 1:
      self._watch.check(step, self._checkpoints.save)

  def _check_numbers(self):
    """Counts skipped steps; ends the training after too many consecutive ones, or if all were."""
    total, _, longest, last = (int(value) for value in distribution.plain(self.model.skips))
    self._skipped = total
    if longest >= self._max_bad_steps or (self._share >= 1 and total == self._step):
      raise NotFinite(last - longest + 1, last)

  def _finish_row(self, step):
    self._check_numbers()
    self._write(step)
    passed = step // self._checkpoint_every
    with self._recorder.paused():
      if passed > self._saved or self._share >= 1:
        self._checkpoints.save(step)
    self._saved = passed

  def _write(self, step):
    means = self.model.means
    values: dict[str, Any] = {name: float(value) for name, value in means.result().items()}
    if self._skipped and not float(means.count):
      values = dict.fromkeys(values)  # all steps since the last row were skipped
    self.model.reset_metrics()
    rate = float(self.model.optimizer.learning_rate)
    self._recorder.write(step, {"learning_rate": rate, "skipped_steps": self._skipped, **values})
