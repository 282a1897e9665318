"""What a running training shows: metrics.jsonl, TensorBoard, a progress line, pictures."""

import collections
import contextlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from sklearn import neighbors

from urkle_tf import distribution, errors
from urkle_tf.networks.kl import kl_objective
from urkle_tf.output import figures
from urkle_tf.training import board, latent_map, preemption, runs

# TensorBoard's first screen tells whether the run is healthy: groups, not one long list.
_GROUPS = {
  "gradient_norm": "optimisation",
  "skipped_steps": "optimisation",
  "learning_rate": "optimisation",
  "images_per_second": "optimisation",
  "sigma_min": "sigma",
  "sigma_mean": "sigma",
  "sigma_max": "sigma",
  "snr": "sigma",
  "loc_std": "collapse",
  "effective_rank": "collapse",
  "attack_objective": "attack",
  "attack_distance": "attack",
  "zero_gradients": "attack",
  "kl_mean_part": "attack",
  "kl_scale_part": "attack",
  "knn_accuracy": "probe",
  "knn_robust_accuracy": "probe",
}


def _duration(seconds):
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class NotFinite(errors.UserError):
  """Too many steps in a row had a loss or a gradient that is not finite, and were skipped.

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


class Metrics(keras.callbacks.Callback):
  """Writes a row of means every `log_every` steps and at each epoch's end, and checkpoints.

  A checkpoint follows a row at once, and one that a signal asks for holds the means as they are:
  none is half full when a run is resumed.
  The callback stands last in the list: what others find at an epoch's end is in `extra` then.

  Means are over the steps since the last row.  `seconds` and `images_per_second` count
  training only: neither compilation (a process's first step) nor what runs inside `paused`.

  Args:
    run: a `runs.Run`.
    writer: a `tf.summary` writer.
    checkpoints: a `checkpoints.Checkpoints`.
    steps: steps of the whole training; None by the clock.
    steps_per_epoch: likewise of an epoch.
    batch_size: data-set images a step.
    log_every: steps between rows.
    checkpoint_every: steps between checkpoints; one is also saved at the end.
    seconds: what earlier processes spent on this run.
    watch: a `preemption.Watch`: a signal ends the training after the step, with a checkpoint.
    scope: the strategy: of several workers the chief alone shows its progress.
    max_bad_steps: so many steps in a row whose loss or gradient is not finite end the training
      with `NotFinite`.  Their count is asked for once in so many steps, and before a row is
      written: to ask is to wait for the device.
    alarms: an `alarms.Alarms`, which looks at every row; None for no warnings.
    limit: the training ends when so many `seconds` have passed, and meanwhile the clock of its
      `Trainer` says which share has; of several workers the chief's counts.  None for `steps`.
  """

  def __init__(
    self, run, writer, checkpoints, steps, steps_per_epoch, batch_size, log_every, checkpoint_every,
    seconds=0.0, watch=None, scope=None, max_bad_steps=20, alarms=None, limit=None,
  ):  # fmt: skip
    super().__init__()
    self._run, self._writer, self._checkpoints = run, writer, checkpoints
    self._steps, self._steps_per_epoch = steps, steps_per_epoch
    self._batch_size, self._log_every = batch_size, log_every
    self._checkpoint_every = checkpoint_every
    self._seconds, self._since_row, self._counted = seconds, 0.0, 0
    self._mark, self._watch = None, watch or preemption.Watch()
    scope = scope or tf.distribute.get_strategy()
    self._alone, self._chief = not distribution.several_workers(scope), distribution.is_chief(scope)
    self._limit, self._agree, self._share = limit, distribution.agreement(scope), 0.0
    self._max_bad_steps, self._alarms, self._skipped = max_bad_steps, alarms, 0
    self.extra = {}
    # The last ones: a long run has many.
    self.rows: collections.deque[dict] = collections.deque(maxlen=100)

  @contextlib.contextmanager
  def paused(self):
    """Stops the clock for what is not training."""
    started = time.perf_counter()
    try:
      yield
    finally:
      if self._mark is not None:
        self._mark += time.perf_counter() - started

  def _tick(self, images):
    now = time.perf_counter()
    if self._mark is not None:  # None until the first step has been compiled
      self._since_row += now - self._mark
      self._counted += images
    self._mark = now

  def _behind(self, step):
    """How much of the training lies behind, in [0, 1]; by the clock the next execution reads it."""
    if self._limit is None:
      return step / self._steps
    share = min(1.0, (self._seconds + self._since_row) / self._limit)
    share = self._agree(share if self._chief else 0.0)
    self.model.clock.assign(share)
    self.model.stop_training = share >= 1
    return share

  def on_train_begin(self, logs=None):
    """Remembers means that a checkpoint holds half full: `fit` empties them all."""
    del logs
    self._means = [distribution.plain(variable) for variable in self.model.metrics_variables]
    self._saved = int(distribution.plain(self.model.optimizer.iterations)) // self._checkpoint_every

  def on_epoch_begin(self, epoch, logs=None):
    """Brings them back, before the first step."""
    del epoch, logs
    for variable, value in zip(self.model.metrics_variables, self._means, strict=False):
      variable.assign(value)
    self._means = []
    self._begun = self._step = int(distribution.plain(self.model.optimizer.iterations))

  def on_train_batch_end(self, batch, logs=None):
    """Counts steps, of which Keras may take several at once; writes a row where one is due."""
    del logs
    # Counted here: to ask the optimizer would be to wait for the device after every step.
    before, step = self._step, self._begun + batch + 1
    self._step = step
    self._tick((step - before) * self._batch_size)
    self._share = self._behind(step)
    passed = lambda n: step // n > before // n  # noqa: E731
    if passed(self._max_bad_steps):
      self._check_numbers()
    due = passed(self._log_every) or passed(self._checkpoint_every)
    last = self._share >= 1 or step % self._steps_per_epoch == 0
    self._progress(step, due or last)
    if due and not last:
      self._finish_row(step)
    if not last:  # the end of an epoch is near, and belongs to its last step
      self._watch.check(step, self._checkpoints.save)

  def on_epoch_end(self, epoch, logs=None):
    """Writes the epoch's last row, with what the probes found."""
    del epoch, logs
    step = self._step
    self._finish_row(step)
    if self._share < 1:
      self._watch.check(step, self._checkpoints.save)

  def _check_numbers(self):
    """Counts the steps that were skipped; ends the training after too many in a row."""
    skips = getattr(self.model, "skips", None)
    if skips is None:
      return
    total, _, longest, last = (int(value) for value in distribution.plain(skips))
    self._skipped = total
    if longest >= self._max_bad_steps:
      raise NotFinite(last - longest + 1, last)

  def _finish_row(self, step):
    self._check_numbers()
    self._write(step)
    passed = step // self._checkpoint_every
    with self.paused():
      if passed > self._saved or self._share >= 1:
        self._checkpoints.save(step)
    self._saved = passed

  def _write(self, step):
    means = self.model.means
    values = {name: runs.plain(value) for name, value in means.result().items()}
    if self._skipped and not runs.plain(means.count):
      values = dict.fromkeys(values)  # all steps since the last row were skipped
    self.model.reset_metrics()
    self._seconds += self._since_row
    rate = self._counted / self._since_row if self._since_row else 0.0
    row = {
      "step": step,
      "epoch": round(step / self._steps_per_epoch, 4),
      "seconds": round(self._seconds, 3),
      "images_per_second": round(rate, 2),
      "learning_rate": runs.plain(self.model.optimizer.learning_rate),
      "skipped_steps": self._skipped,
      **values,
      **self.extra,
    }
    self.extra = {}
    self._since_row, self._counted = 0.0, 0
    self._run.append_metrics(row)
    self.rows.append(row)
    with self._writer.as_default(step):
      for name, value in row.items():
        if name not in ("step", "epoch", "seconds") and value is not None:
          tf.summary.scalar(f"{_GROUPS.get(name, 'loss')}/{name}", value)
      for name in board.SIGNS:
        if row.get(name) is not None:
          tf.summary.scalar(f"{board.HEALTH}/{name}", row[name])
    self._writer.flush()
    if self._alarms is not None:
      for warning in self._alarms.look(row):
        logging.warning("step %d: %s", step, warning)

  def _progress(self, step, due):
    terminal = sys.stderr.isatty() and self._alone
    if not due and not (terminal and step % 5 == 0):
      return
    if not self._chief:
      return
    loss = runs.plain(self.model.means.result()["loss"])
    spent = self._seconds + self._since_row
    rate = self._counted / self._since_row if self._since_row else 0.0
    epochs = steps = ""
    if self._limit is None:
      left = (self._steps - step) * self._batch_size / rate if rate else 0.0
      epochs, steps = f"/{self._steps // self._steps_per_epoch}", f"/{self._steps}"
    else:
      left = max(0.0, self._limit - spent)
    bar = "#" * int(20 * self._share) + "." * (20 - int(20 * self._share))
    line = (
      f"epoch {(step - 1) // self._steps_per_epoch + 1}{epochs}"
      f" [{bar}] step {step}{steps}  loss {loss:.4f}  {rate:,.0f} images/s"
      f"  {_duration(spent)} spent, {_duration(left)} left"
    )
    end = "" if terminal and self._share < 1 else "\n"
    print(("\r" if terminal else "") + line, end=end, file=sys.stderr, flush=True)


def sheet(columns, least=64, gap=4):
  """Lays images out as a picture: one column an entry, one row an image.

  Args:
    columns: arrays float32 [n, h, w, c] in [0, 1].
    least: images of fewer pixels are magnified by a whole factor, to be seen at all.
    gap: white pixels between images.

  Returns:
    float32 [1, height, width, c] in [0, 1].
  """
  factor = max(1, -(-least // columns[0].shape[1]))
  pad = ((0, 0), (0, gap), (0, gap), (0, 0))
  large = [np.pad(c.repeat(factor, 1).repeat(factor, 2), pad, constant_values=1) for c in columns]
  return np.concatenate(list(np.concatenate(large, axis=2)), axis=0)[None]


class Pictures(keras.callbacks.Callback):
  """Shows once an epoch what training sees, in TensorBoard and as PNG files.

  "views": views, their adversaries and the perturbations; "reconstructions", where the pretext
  makes images: views and adversaries beside what is decoded of their loc; "latent_map", where z
  is random: samples of z of views and of their unsupervised adversaries (`figures`).

  Args:
    batch: a batch of the pipeline; its first ten images are shown.
    writer: a `tf.summary` writer.
    metrics: the `Metrics` of the run, whose clock is stopped meanwhile.
    folder: where the PNG files go, a `pathlib.Path`; each epoch's replace the last one's.
    attack: finds the adversaries of the latent map, in cells without adversaries too.
    title: of the latent map: what is trained.
  """

  def __init__(self, batch, writer, metrics, folder, attack, title=""):
    super().__init__()
    self._batch = {name: values[:10] for name, values in batch.items()}
    self._writer, self._metrics = writer, metrics
    self._folder, self._attack, self._title = folder, attack, title

  def on_epoch_end(self, epoch, logs=None):
    """Attacks the fixed batch and writes the pictures."""
    del epoch, logs
    step = int(distribution.plain(self.model.optimizer.iterations))
    with self._metrics.paused(), self._writer.as_default(step):
      views, batch = self.model.views(self._batch, 0)
      adversaries = None
      if self.model.attack is not None:
        aux = self.model.pretext.prepare(views, batch)
        seed = distribution.fold([self.model.seed, 1], 0)
        adversaries, _ = self.model.adversaries(views, aux, seed)
      self._views(views, adversaries)
      if self.model.pretext.pictures:
        self._reconstructions(views, adversaries)
      if self.model.pretext.stochastic or self.model.robustness.stochastic:
        self._latent_map(views[:, 0], step)
      self._writer.flush()

  def _views(self, views, adversaries):
    if adversaries is None:
      columns = {f"view {i + 1}": views[:, i] for i in range(views.shape[1])}
    else:
      clean, adversary = self.model.robustness.targets(views)[:, 0], adversaries[:, 0]
      magnified = 0.5 + (adversary - clean) / (
        2 * max(float(self.model.attack.threat.epsilon), 1e-6)
      )
      columns = {"view": clean, "adversary": adversary, "perturbation": magnified}
    self._write_columns("views", columns)

  def _reconstructions(self, views, adversaries):
    columns = {}
    for name, images in (("view", views), ("adversary", adversaries)):
      if images is not None:
        loc = self.model.encoder.network(images[:, 0], training=False)["loc"]
        columns[name] = images[:, 0]
        columns[f"{name}, decoded"] = self.model.pretext.predict(loc, training=False)
    self._write_columns("reconstructions", columns)

  def _latent_map(self, images, step):
    found = latent_map.sampled(self.model.encoder, images, self._attack, seed=self.model.seed)
    samples = {name: values.numpy() for name, values in found.items()}
    # A training whose weights have become infinite is ended by `Metrics`, which says so.
    if all(np.isfinite(values).all() for values in samples.values()):
      title = f"{self._title} (step {step})"
      figure = latent_map.figure({title: samples}, images.numpy(), self._attack)
      self._write("latent_map", figures.pixels(figure))

  def _write_columns(self, name, columns):
    arrays = [np.clip(np.nan_to_num(values[:8]), 0, 1) for values in columns.values()]
    picture = np.rint(255 * sheet(arrays, least=96)[0]).astype(np.uint8)
    self._write(name, figures.headed(picture, list(columns)))

  def _write(self, name, picture):
    tf.summary.image(name, picture[None])
    figures.save(picture, self._folder / f"{name}.png")


class NearestNeighbours(keras.callbacks.Callback):
  """An online probe: k-nearest-neighbour accuracy of loc on held-out labelled images.

  It measures the encoder that would be exported, a moving average where there is one.
  It reads labels, and never touches the encoder.  Half of the images are the neighbours,
  the other half are classified; with an attack, the first 256 of these as adversaries too, which
  maximise KL[p(z|x) || p(z|x')] and know no label.

  Args:
    images: float32 [n, h, w, c].
    labels: int [n].
    metrics: the `Metrics` of the run: the figure joins its next row.
    k: neighbours that vote.
    attack: finds the adversaries; None for none.
  """

  def __init__(self, images, labels, metrics, k=20, attack=None):
    super().__init__()
    self._images, self._labels = images, np.asarray(labels)
    self._metrics, self._k, self._attack = metrics, k, attack
    self._encode = tf.function(lambda x: self.model.encoder.network(x, training=False)["loc"])
    self._attacked = tf.function(self._encode_adversaries)

  def _encode_adversaries(self, images):
    encoder = self.model.encoder
    seed = tf.constant([self.model.seed & 0x7FFFFFFF, 4])
    return self._encode(self._attack(kl_objective(encoder, images), images, seed))

  def _accuracies(self):
    """[clean], or [clean, attacked]."""
    parts = np.array_split(self._images, max(1, len(self._images) // 250))
    loc = np.concatenate([self._encode(part).numpy() for part in parts])
    half = len(loc) // 2
    model = neighbors.KNeighborsClassifier(min(self._k, half), metric="cosine")
    model.fit(loc[:half], self._labels[:half])
    found = [model.score(loc[half:], self._labels[half:])]
    if self._attack is not None:
      some = slice(half, half + 256)
      adversaries = self._attacked(tf.constant(self._images[some])).numpy()
      found.append(model.score(adversaries, self._labels[some]))
    return found

  def on_epoch_end(self, epoch, logs=None):
    """Hands the accuracies to the epoch's row of metrics."""
    del epoch, logs
    with self._metrics.paused(), self.model.averaged():
      found = self._accuracies()
    names = ("knn_accuracy", "knn_robust_accuracy")
    self._metrics.extra |= {n: round(float(v), 5) for n, v in zip(names, found, strict=False)}
