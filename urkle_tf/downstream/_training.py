"""Trains a given head, for protocols whose images pass through the network at every step."""

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import augment as augmentation
from urkle_tf.data import pipeline, sources
from urkle_tf.pretexts.supervised import Supervised
from urkle_tf.training import checkpoints, metrics, optimizers, recorder

VALIDATION_EXAMPLES = 1000  # the first images of the validation split, attacked in every epoch
_VALIDATION_BATCH = 250
_SAMPLES = 10  # samples of z in each step of the attack on validation images
_SERVED = 20  # samples of z that validation images are scored with


class Given(Supervised):
  """The supervised pretext with the head of a task."""

  def __init__(self, task):
    kind = "classification" if task.classifies else "regression"
    super().__init__(kind, outputs=int(task.head.output_shape[-1]))
    self.network = task.head
    self._standardised = task.standardised

  def attach(self, encoder):
    """Makes nothing, because the head exists."""

  def prepare(self, views, batch):
    return self._standardised(super().prepare(views, batch))


def subset(source, chosen):
  """Some images of a source, in memory; the source itself if all are chosen.

  Args:
    source: a labelled `Source`.
    chosen: int64 [m], ascending positions.

  Raises:
    UserError: if they do not fit in memory.
  """
  if len(chosen) == source.size:
    return source
  size = len(chosen) * int(np.prod(source.image_shape))
  if size > sources.IN_MEMORY_BYTES:
    raise errors.UserError(
      f"{len(chosen)} images of {source.name!r} take {size / 2**30:.1f} GiB: give fewer "
      "or all --labels, or a smaller --image_size"
    )
  images = np.empty((len(chosen), *source.image_shape), np.uint8)
  labels = np.empty(len(chosen), np.int64 if source.target is None else np.float32)
  for batch in source.batches(500, shuffle=False, drop_remainder=False):
    indices = batch["index"].numpy()
    rows = np.isin(indices, chosen)
    places = np.searchsorted(chosen, indices[rows])
    images[places], labels[places] = batch["image"].numpy()[rows], batch["label"].numpy()[rows]
  fields = {"name": source.name, "split": source.split, "labels": labels}
  return sources.ArraySource(images, class_names=source.class_names, target=source.target, **fields)


def train(task, run, learner, weights):
  """Fits a trainer with the task's settings; resumes at the last checkpoint.

  Checkpoints are written at each epoch's end, and when a signal ends the run.

  With an attack and validation images, the weights of the epoch that did best on them under attack
  are kept; otherwise those of the last epoch.

  Args:
    task: a `Task`.
    run: a `runs.Run`.
    learner: a `Trainer`, not compiled.
    weights: the variables that make up the result.

  Returns:
    The row of metrics of the weights that were kept.
  """
  source = subset(task.source, task.chosen)
  batch_size = source.size // -(-source.size // task.batch_size)  # as even as possible
  steps_per_epoch = pipeline.steps_per_epoch(source, batch_size)
  steps = steps_per_epoch * task.epochs
  learner.compile(
    optimizers.build(task.optimizer, task.learning_rate, steps, weight_decay=task.weight_decay)
  )
  state = checkpoints.Checkpoints(run.path / "checkpoints", checkpoints.state(learner))
  done = state.restore()
  seconds, best = run.rewind_metrics(done), None
  if task.validation is not None and task.attack is not None:
    best = checkpoints.Checkpoints(run.path / "best", weights)
  if done < steps:
    course = recorder.Course(steps, steps_per_epoch, batch_size)
    record = recorder.Recorder(run, course, seconds)
    callbacks: list[keras.callbacks.Callback] = []
    if task.validation is not None:
      callbacks.append(_Validation(task, record, best, run.metrics()))
    callbacks.append(metrics.Metrics(record, state, task.log_every, steps_per_epoch, task.watch))
    recipe = augmentation.from_spec(task.augment)
    views = lambda start: pipeline.views(  # noqa: E731
      source, recipe, batch_size, task.seed, start_step=start, views=1, labels=True
    )
    learner.fit_from(views, done, steps, steps_per_epoch, callbacks)
  if best is None:
    return run.metrics()[-1]
  step = best.restore()
  return next(row for row in run.metrics() if row["step"] == step)


class Scorer:
  """Measures a task's model on held-out images, also under attack if the task has one.

  Args:
    task: a `Task`.
    source: the images, of which the first 1,000 are used.
  """

  def __init__(self, task, source):
    self._task = task
    self._images, self._labels = pipeline.first(source, VALIDATION_EXAMPLES)
    self._scores = tf.function(self._measure, autograph=False)

  def __call__(self):
    """{"validation_...": the score of the current weights}, the clean one first."""
    total = len(self._images)
    size = total // -(-total // _VALIDATION_BATCH)  # one shape, which leaves out few images
    merits = []
    for start in range(0, total - size + 1, size):
      rows = slice(start, start + size)
      seed = distribution.fold([self._task.seed, 3], start)
      merits.append(self._scores(self._images[rows], self._labels[rows], seed))
    scores = [self._task.score(np.mean(part)) for part in zip(*merits, strict=True)]
    return dict(zip(self._task.measures, scores, strict=False))

  def _measure(self, images, labels, seed):
    """The merits of a batch: [clean], or [clean, attacked]."""
    task, frozen = self._task, self._task.model.frozen()
    labels = task.standardised(labels)

    def outputs(images, seed, samples):
      return frozen.from_representation(*frozen.represent(images), seed, samples)

    fresh = distribution.fold(seed, 2)  # no attack knows it
    merits = [task.merit(outputs(images, fresh, _SERVED), labels)]
    if task.attack is None:
      return merits
    noise = distribution.fold(seed, 0)
    objective = lambda images: task.loss(outputs(images, noise, _SAMPLES), labels)  # noqa: E731
    adversaries = task.attack(objective, images, distribution.fold(seed, 1))
    return [*merits, task.merit(outputs(adversaries, fresh, _SERVED), labels)]


class _Validation(keras.callbacks.Callback):
  """Measures held-out images once an epoch, also under attack if the task has one.

  Args:
    task: a `Task` with validation images.
    record: the `Recorder` of the run; the scores join its next row.
    best: the `Checkpoints` of the weights that do best under attack, or None.
    rows: the rows of metrics of earlier processes.
  """

  def __init__(self, task, record, best, rows):
    super().__init__()
    self._task, self._recorder, self._best = task, record, best
    self._record = None
    for row in rows:
      self._offer(row)
    self._scorer = Scorer(task, task.validation)

  def _offer(self, scores):
    """Whether the score under attack is the best so far; remembers it."""
    score = scores.get(self._task.measures[1])
    if score is None or not np.isfinite(score):
      return False
    if self._record is not None and not self._task.better(score, self._record):
      return False
    self._record = score
    return True

  def on_epoch_end(self, epoch, logs=None):
    """Adds the scores to the epoch's row of metrics."""
    with self._recorder.paused():
      scores = self._scorer()
      self._recorder.extra |= scores
      if self._best is not None and self._offer(scores):
        self._best.save(int(self.model.optimizer.iterations))
