"""Records the figures of a training: metrics.jsonl, TensorBoard, a line of progress."""

import collections
import contextlib
import dataclasses
import time

import tensorflow as tf
from absl import logging

from urkle_tf import distribution
from urkle_tf.output import progress
from urkle_tf.training import board

# The groups of curves in TensorBoard; other figures are in the group "loss".
_GROUPS = {
  "optimisation": ("gradient_norm", "skipped_steps", "learning_rate", "images_per_second"),
  "sigma": ("sigma_min", "sigma_mean", "sigma_max", "snr", "sigma_over_spread", "effective_k"),
  "collapse": ("loc_std", "effective_rank"),
  "attack": (
    *("attack_objective", "attack_distance", "zero_gradients"),
    *("kl_mean_part", "kl_scale_part", "attack_steps", "attack_ratio"),
  ),
  "probe": ("knn_accuracy", "knn_robust_accuracy"),
}
_GROUP = {name: group for group, names in _GROUPS.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Course:
  """The length of a training.

  Attributes:
    steps: the steps of the whole training; None for a training by the clock.
    steps_per_epoch: steps per epoch.
    batch_size: images of the data set per step.
    limit: the seconds of a training by the clock; None otherwise.
  """

  steps: int | None
  steps_per_epoch: int
  batch_size: int
  limit: float | None = None


class Recorder:
  """Writes rows of metrics, and shows the progress of a training.

  `seconds` and `images_per_second` of a row count training only.  They leave out compilation (a
  process's first step) and what runs inside `paused`.

  Args:
    run: a `runs.Run`.
    course: the training's `Course`.
    seconds: the time that earlier processes spent on this run.
    name: the name of the training on the line of progress; empty if a run has only one.
    alarms: an `alarms.Alarms` that checks every row; None for no warnings.
    scope: the strategy; among several workers only the chief shows progress.

  Attributes:
    course: as given.
    writer: a `tf.summary` writer.
    extra: {name: value} that joins the next row.
    rows: the last rows, since a long run has many.
  """

  def __init__(self, run, course, seconds=0.0, name="", alarms=None, scope=None):
    scope = scope or tf.distribute.get_strategy()
    self.course, self._run, self._alarms = course, run, alarms
    self._seconds, self._since_row, self._counted, self._mark = seconds, 0.0, 0, None
    self._prefix, self._chief = f"{name}, " if name else "", distribution.is_chief(scope)
    self._bar = progress.Bar(False if distribution.several_workers(scope) else None)
    self._scores = ""
    self._standing = None  # the warnings that TensorBoard shows
    self.writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
    self.extra = {}
    self.rows: collections.deque[dict] = collections.deque(maxlen=100)

  @property
  def spent(self):
    """The seconds of training so far."""
    return self._seconds + self._since_row

  @property
  def terminal(self):
    """Whether progress is one line on a terminal, which is overwritten."""
    return self._bar.terminal and self._chief

  @contextlib.contextmanager
  def paused(self):
    """Stops the clock during work that is not training."""
    started = time.perf_counter()
    try:
      yield
    finally:
      if self._mark is not None:
        self._mark += time.perf_counter() - started

  def tick(self, images):
    """Counts images whose step has just ended; the first one starts the clock."""
    now = time.perf_counter()
    if self._mark is not None:  # None until the first step has been compiled
      self.count(images, now - self._mark)
    self._mark = now

  def count(self, images, seconds):
    """Counts images, and the seconds of training that they took."""
    self._since_row += seconds
    self._counted += images

  def write(self, step, values):
    """Writes a row, and logs the alarms' warnings.

    Args:
      step: the number of steps taken.
      values: {name: number} of the steps since the last row.
    """
    row = {
      "step": step,
      "epoch": round(step / self.course.steps_per_epoch, 4),
      "seconds": round(self.spent, 3),
      "images_per_second": round(self._rate(), 2),
      **values,
      **self.extra,
    }
    self._seconds, self._since_row, self._counted = self.spent, 0.0, 0
    self.extra = {}
    self._run.append_metrics(row)
    self.rows.append(row)
    scores = {k: v for k, v in row.items() if k.startswith("validation") and v is not None}
    if scores:
      self._scores = "".join(f"  {k.replace('_', ' ')} {v:.4g}" for k, v in scores.items())
    with self.writer.as_default(step):
      for name, value in row.items():
        if name not in ("step", "epoch", "seconds") and value is not None:
          tf.summary.scalar(f"{_GROUP.get(name, 'loss')}/{name}", value)
      for name in board.SIGNS:
        if row.get(name) is not None:
          tf.summary.scalar(f"{board.HEALTH}/{name}", row[name])
      if self._alarms is not None:
        for warning in self._alarms.look(row):
          logging.warning("step %d: %s", step, warning)
        self._verdict()
    self.writer.flush()

  def _verdict(self):
    """Shows in TensorBoard, at the top, whether the run is healthy: as a curve and in words."""
    standing = self._alarms.standing
    tf.summary.scalar(
      f"{board.HEALTH}/0_warnings", len(standing), description="0: healthy. See Text for the words."
    )
    if standing != self._standing:
      self._standing = standing
      words = "\n".join(f"- {line}" for line in standing)
      tf.summary.text(f"{board.HEALTH}/verdict", words or "Healthy: no warning holds.")

  def show(self, step, share, loss):
    """Shows the progress of the training.

    Args:
      step: the number of steps taken.
      share: the share of the training that is done, in [0, 1].
      loss: the mean loss since the last row.
    """
    if not self._chief:
      return
    course, rate = self.course, self._rate()
    if not rate and self.rows:
      rate = self.rows[-1]["images_per_second"]
    epochs = steps = ""
    if course.limit is None:
      left = (course.steps - step) * course.batch_size / rate if rate else 0.0
      epochs, steps = f"/{course.steps // course.steps_per_epoch}", f"/{course.steps}"
    else:
      left = max(0.0, course.limit - self.spent)
    self._bar.show(
      f"{self._prefix}epoch {(step - 1) // course.steps_per_epoch + 1}{epochs}",
      share,
      f"step {step}{steps}",
      progress.pace(rate, "images", self.spent, left) if rate else "",  # not of the first step
      f"loss {loss:.4f}{self._scores}",
    )

  def _rate(self):
    """Images per second since the last row; 0 if none were counted."""
    return self._counted / self._since_row if self._since_row else 0.0
