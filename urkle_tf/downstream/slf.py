"""SLF: a frozen encoder and a head trained on clean images only."""

import contextlib
import dataclasses
import functools
import time

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import augment as augmentation
from urkle_tf.data import pipeline
from urkle_tf.downstream import _selection
from urkle_tf.downstream.base import Protocol
from urkle_tf.output import progress
from urkle_tf.training import checkpoints, optimizers, preemption, recorder, runs

_ENCODE_BATCH = 250
_VALIDATION_SAMPLES = 20


def features(
  network, source, chosen=None, recipe=None, seed=0, name="features", watch=None, noise=0.0
):
  """A frozen network's representations of a source's images.

  Args:
    network: Keras model, images -> {"loc", "scale"}; runs in inference mode.
    source: a `Source`.
    chosen: int [m], ascending, the wanted images; None for all.
    recipe: an `augment.Recipe`, or None.
    seed: of the augmentation and of the noise.
    name: the name on the progress line.
    watch: a `preemption.Watch`, checked after each batch; None for none.
    noise: the standard deviation of Gaussian noise on images; see `evaluation.smoothing`.

  Returns:
    (loc, scale, labels): float32 [m, d_z], twice, and the labels [m], or None without labels.
  """
  total = source.size if chosen is None else len(chosen)
  wanted = np.zeros(source.size, bool)
  wanted[slice(None) if chosen is None else chosen] = True
  bar = progress.Progress(name, total)

  @tf.function(autograph=False, reduce_retracing=True)
  def encode(images, batch):
    if recipe is not None:
      drawn = tf.random.stateless_uniform(
        [tf.shape(images)[0], recipe.noise_size], distribution.fold([seed, 0], batch)
      )
      images = recipe(images, drawn)
    if noise:
      drawn = tf.random.stateless_normal(tf.shape(images), distribution.fold([seed, 1], batch))
      images += noise * drawn
    outputs = network(images, training=False)
    return outputs["loc"], outputs["scale"]

  locs, scales, labels, position = [], [], [], 0
  for number, batch in enumerate(pipeline.batches(source, _ENCODE_BATCH)):
    count = int(batch["image"].shape[0])
    rows = np.flatnonzero(wanted[position : position + count])
    position += count
    if not len(rows):
      continue
    loc, scale = encode(tf.gather(batch["image"], rows), tf.constant(number))
    locs.append(loc.numpy())
    scales.append(scale.numpy())
    if "label" in batch:
      labels.append(batch["label"].numpy()[rows])
    bar.add(len(rows))
    if watch is not None:
      watch.check()
  return np.concatenate(locs), np.concatenate(scales), np.concatenate(labels) if labels else None


class SLF(Protocol):
  """Standard linear fine-tuning (Urkle paper, eq. 2).

  The head's loss is the mean of -log p(y|z), with one fresh z ~ p(z|x) per image and step, or z =
  loc if the encoder's training used no scale.  For numbers it is half the squared error of the
  prediction from that z.  The encoder is frozen and in inference mode, so its representations are
  computed once.

  The weight decay matters, and more so under attack.  If none is given, it is chosen on held-out
  images.  Then the head is trained with it on all labelled images.

  With noise the head learns from noisy images, and held-out images are noisy too, except under
  attack.
  """

  frozen = noisy = True
  defaults = {**Protocol.defaults, "weight_decay": None}

  def check(self, task):
    super().check(task)
    errors.at_least(1, None, augment_copies=task.augment_copies)
    if task.select is not None:
      _selection.check(task)

  def fit(self, task, run):
    recipe = augmentation.from_spec(task.augment)
    plain = isinstance(recipe, augmentation.Identity) and not task.noise
    made = task.augment_copies
    seeds = [
      int(np.random.SeedSequence([task.seed, copy]).generate_state(1)[0] >> 1)
      for copy in range(made + 2)
    ]
    represent = functools.partial(features, task.model.network, watch=task.watch, noise=task.noise)
    unchanged = represent(task.source, task.chosen, seed=seeds[made])
    copies = [unchanged[:2]]
    for copy in range(0 if plain else made):
      name = f"augmented features {copy + 1}/{made}"
      copies.append(represent(task.source, task.chosen, recipe, seeds[copy], name)[:2])
    loc = tf.constant(np.stack([loc for loc, _ in copies]))  # [copies, m, d_z]
    scale = tf.constant(np.stack([scale for _, scale in copies]))
    held_out = None
    if task.validation is not None:
      held_out = represent(task.validation, seed=seeds[made + 1], name="validation features")
    if task.select is None:
      return _train(task, run, loc, scale, held_out)
    rest, held = _selection.hold_out(task)
    images = held_out if held is None else [part[held] for part in unchanged]
    part = dataclasses.replace(task, labels=task.labels[rest])
    loc_of, scale_of = (tf.boolean_mask(array, rest, axis=1) for array in (loc, scale))

    def train(decay):
      candidate = dataclasses.replace(part, weight_decay=decay)
      with contextlib.closing(runs.scratch({})) as scratch:
        try:
          _train(candidate, scratch, loc_of, scale_of, None, f"head, weight decay {decay:g}")
        except preemption.Stopped as stopped:
          raise preemption.Stopped(stopped.number) from None

    selection = _selection.choose(task, run, held, train, lambda: _score(task, *images))
    if held is None and not rest.all():
      held_out = None  # the final head is trained on some of these images
    task = dataclasses.replace(task, weight_decay=selection["weight_decay"])
    return _train(task, run, loc, scale, held_out) | {"selection": selection}


def _train(task, run, loc, scale, held_out, name="head"):
  """Trains the head on representations [copies, m, d_z]; returns the last row of metrics.

  Only a signal makes a checkpoint.  After a kill the head is trained again from the start, which
  takes seconds and gives the same result.
  """
  count = loc.shape[1]
  steps = -(-count // task.batch_size)  # per epoch, of batches that are as even as possible
  batch_size, total = -(-count // steps), steps * task.epochs
  optimizer = optimizers.build(
    task.optimizer, task.learning_rate, total, weight_decay=task.weight_decay
  )
  optimizer.build(task.head.trainable_variables)
  means = keras.metrics.Mean(), keras.metrics.Mean()  # of loss and merit
  train = _steps(task, loc, scale, batch_size, optimizer, means)
  state = checkpoints.Checkpoints(
    run.path / "checkpoints", [*task.head.variables, *optimizer.variables]
  )
  done = state.restore()
  course = recorder.Course(total, steps, batch_size)
  record = recorder.Recorder(run, course, run.rewind_metrics(done), name)
  for epoch in range(done // steps, task.epochs):
    for first in range(max(0, done - epoch * steps), steps, task.log_every):
      started = time.perf_counter()
      last = min(first + task.log_every, steps)
      step, rate = epoch * steps + last, float(optimizer.learning_rate)
      train(tf.constant(epoch), tf.constant(first), tf.constant(last))
      seen = min(last * batch_size, count) - first * batch_size
      record.count(seen, time.perf_counter() - started)
      loss, merit = (float(mean.result()) for mean in means)
      if not np.isfinite(loss):
        raise errors.UserError(f"the loss is {loss} at step {step}: lower --learning_rate")
      for mean in means:
        mean.reset_state()
      values = {"learning_rate": rate, "loss": loss, task.measure: task.score(merit)}
      if held_out is not None and last == steps:
        values[task.measures[0]] = _score(task, *held_out)
      record.write(step, values)
      tenth = last == steps and 10 * (epoch + 1) // task.epochs > 10 * epoch // task.epochs
      if tenth or record.terminal:
        record.show(step, step / total, loss)
      if step < total:
        task.watch.check(step, state.save)
  return record.rows[-1]


def _steps(task, loc, scale, batch_size, optimizer, means):
  """A function (epoch, first, last) that takes steps of an epoch, and averages loss and merit."""
  head, labels = task.head, tf.constant(task.labels)
  copies, count = loc.shape[:2]
  loss_mean, merit_mean = means

  @tf.function  # for its autograph: the loop over steps
  def train(epoch, first, last):
    seed = distribution.fold([task.seed, 1], epoch)
    order = tf.random.experimental.stateless_shuffle(tf.range(count), distribution.fold(seed, 0))
    for step in tf.range(first, last):
      rows = order[step * batch_size : (step + 1) * batch_size]
      step_seed = distribution.fold(seed, 1, step)
      size = tf.shape(rows)[0]
      copy = tf.random.stateless_uniform(
        [size], distribution.fold(step_seed, 0), 0, copies, tf.int32
      )
      places = tf.stack([copy, rows], 1)
      z = tf.gather_nd(loc, places)
      if task.model.stochastic:
        noise = tf.random.stateless_normal(tf.shape(z), distribution.fold(step_seed, 1))
        z += tf.gather_nd(scale, places) * noise
      y = tf.gather(labels, rows)
      with tf.GradientTape() as tape:
        outputs = head(z, training=True)
        losses = task.loss(outputs, y)
        loss = tf.reduce_mean(losses)
      variables = head.trainable_variables
      optimizer.apply(tape.gradient(loss, variables), variables)
      loss_mean.update_state(losses)  # of images: the last batch may have fewer
      merit_mean.update_state(task.merit(outputs, y))

  return train


def _score(task, loc, scale, labels):
  """The score of the model as it is served, on held-out representations."""
  merits = []
  for start in range(0, len(labels), 1000):
    rows = slice(start, start + 1000)
    outputs = task.model.from_representation(
      loc[rows], scale[rows], seed=[task.seed, 2], samples=_VALIDATION_SAMPLES
    )
    merits.append(task.merit(outputs, task.standardised(labels[rows])).numpy())
  return task.score(np.concatenate(merits).mean(dtype=np.float64))
