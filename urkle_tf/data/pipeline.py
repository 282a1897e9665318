"""Batches of views, as a function of (seed, step), and plain batches.

Batch number k of a run holds the same examples, augmented in the same way, on every machine and
after every interruption.  The order within an epoch is a function of (seed, epoch), and the noise
of a batch is a function of (seed, step).

```python
from urkle_tf.data import augment, pipeline, sources

source, recipe = sources.load("digits"), augment.from_spec("crop(padding=1)")
views = pipeline.views(source, recipe, batch_size=64, seed=0)  # endless, for `Trainer.fit`
steps = pipeline.steps_per_epoch(source, batch_size=64)  # 22
whole = pipeline.batches(source, batch_size=64)  # every example once, in order
some, classes = pipeline.first(source, 10)  # float32 [10, 8, 8, 1] and int64 [10]
half = pipeline.views(source, recipe, 64, seed=0, part=pipeline.Part(share=(0, 2)))  # its rows
seed = pipeline.augmentation_seed(0, step=0)
pixels = np.zeros([4, 8, 8, 1], np.uint8)
pairs = pipeline.augment_on_device(recipe, pixels, seed)  # float32 [4, 2, 8, 8, 1]
```
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import reading, sources


class Part(NamedTuple):
  """The part of the batches that is made in one place.

  Attributes:
    share: (worker, workers).  Only this worker's rows of each batch, an equal contiguous part, are
      augmented and returned.
    turn: (input worker, input workers).  Only the batch of step `start_step + input worker` and
      every `input workers`-th after it is made, each with its step; None for all (`service`).
  """

  share: tuple[int, int] = (0, 1)
  turn: tuple[int, int] | None = None


WHOLE = Part()


def views(
  source,
  recipe,
  batch_size,
  seed,
  start_step=0,
  views=2,
  labels=False,
  on_device=False,
  strength=None,
  part=WHOLE,
):
  """Endless batches of augmented views, for training.

  An epoch has `source.size // batch_size` steps.  Each epoch leaves out other examples.

  Args:
    source: a `sources.Source`.
    recipe: an `augment.Recipe`.
    batch_size: the global batch.
    seed: an int, or int32 [2].
    start_step: the step of the first batch, counted over all epochs.  The result equals
      `.skip(start_step)`, without its work.
    views: how many views of each image.
    labels: whether batches hold labels.
    on_device: whether to leave the augmentation to the step (`augment_on_device`).
    strength: a function of the step, int64 scalar, to a factor on the recipe's strength, float32
      scalar; None for 1.
    part: the `Part` to make.

  Returns:
    A `tf.data.Dataset` of `{"views": float32 [batch, views, h, w, c], "image": float32 [batch, h,
    w, c]}` in [0, 1], where "image" is not augmented; with `on_device`, of `{"image": uint8 [batch,
    h, w, c]}`.  With `labels` there is also `"label"`, int64 [batch], and with `part.turn`
    `"step"`, an int64 scalar.

  Raises:
    UserError: if the batch is larger than the data, there are no labels as asked, or the recipe
      cannot run on the device or change its strength.
  """
  steps = steps_per_epoch(source, batch_size)
  if labels and not source.labelled:
    raise errors.UserError(f"data set {source.name!r} has no labels: give one that has")
  if on_device:
    check_on_device(recipe)
  if strength is not None:
    check_strength(recipe)
  first, skip = divmod(start_step, steps)
  worker, workers = part.share
  rows = slice(worker * batch_size // workers, (worker + 1) * batch_size // workers)
  offset, every = part.turn or (0, 1)

  def one_epoch(epoch):
    skipped = tf.where(epoch == first, tf.constant(skip * batch_size, tf.int64), 0)
    begin = tf.maximum(epoch * steps, start_step)
    ours = lambda number: (begin + number - start_step) % every == offset  # noqa: E731
    chosen = None if every == 1 else ours
    return source.batches(batch_size, seed, epoch, skip=skipped, chosen=chosen)

  def augmented(step, batch):
    batch = {name: values[rows] for name, values in batch.items()}
    step = start_step + offset + every * step
    result = {"label": batch["label"]} if labels else {}
    if part.turn is not None:
      result["step"] = step
    if on_device:
      return {"image": batch["image"], **result}
    noise_seed = augmentation_seed(seed, step)
    result["image"] = to_float(batch["image"])
    factor = None if strength is None else strength(step)
    result["views"] = _augment(recipe, batch["image"], noise_seed, views, factor, part.share)
    return result

  batches = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  batches = reading.each_batch(batches.enumerate(), augmented)
  return finished(batches, tf.data.INFINITE_CARDINALITY)


def by_worker(scope, make):
  """Batches for the workers of a strategy; each worker reads and augments only its rows.

  Args:
    scope: the strategy; its replicas must divide the global batch.
    make: (worker, workers) -> a dataset of that worker's rows, as `views(part=...)` makes it.

  Returns:
    What `fit` takes as data.
  """
  if not distribution.several_workers(scope):
    return make((0, 1))

  def replicas(context):
    """Gives the rows of each batch to a worker's replicas in turn."""
    count = scope.num_replicas_in_sync // context.num_input_pipelines
    part = lambda values: tf.reshape(values, [count, -1, *values.shape[1:]])  # noqa: E731
    batches = make((context.input_pipeline_id, context.num_input_pipelines))
    return batches.flat_map(
      lambda batch: tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(part, batch))
    ).prefetch(count)

  return scope.distribute_datasets_from_function(replicas)


def steps_per_epoch(source, batch_size):
  """The number of full batches in `source`, an int.

  Raises:
    UserError: if there is no full batch, or `batch_size` is below 1.
  """
  errors.at_least(1, None, batch_size=batch_size)
  if batch_size > source.size:
    raise errors.UserError(
      f"--batch_size={batch_size} is larger than the {source.size} examples of {source.split!r} of"
      f" {source.name!r}: give a smaller one"
    )
  return source.size // batch_size


def batches(source, batch_size):
  """All examples once, in the order of the split, for evaluation and heads.

  Args:
    source: a `sources.Source`.
    batch_size: the last batch may be smaller.

  Returns:
    A `tf.data.Dataset` of `{"image": float32 [n, h, w, c] in [0, 1]}`, and
    `"label"`: int64 [n] if the source is labelled.
  """

  def plain(batch):
    batch.pop("index")
    return {**batch, "image": to_float(batch["image"])}

  read = source.batches(batch_size, shuffle=False, drop_remainder=False)
  return finished(reading.each_batch(read, plain), -(-source.size // batch_size))


def labels(source):
  """The labels of all examples of a labelled source, an array [size]; reads the data if need be."""
  if source.labels is not None:
    return np.asarray(source.labels)
  return np.concatenate([batch["label"] for batch in batches(source, 500)])


def first(source, count):
  """The first images and labels of a labelled source.

  Args:
    source: a `sources.Source`.
    count: how many; all if the source has fewer.

  Returns:
    (float32 [n, h, w, c] in [0, 1], the labels [n] of the source).
  """
  size = min(count, 250)
  found = list(batches(source, size).take(-(-count // size)))
  images, labels = (np.concatenate([batch[key] for batch in found]) for key in ("image", "label"))
  return images[:count], labels[:count]


def finished(batches, cardinality):
  """The end of a pipeline: batches are made in advance, and workers share each batch."""
  # Each worker takes contiguous rows of a global batch, instead of some of the files.
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  batches = batches.apply(tf.data.experimental.assert_cardinality(cardinality))
  return reading.without_autotuner(batches.prefetch(2).with_options(options))


def augmentation_seed(seed, step):
  """The seed, int32 [2], for augmenting the batch of a step."""
  return distribution.fold(sources.pair(seed), 1, step)


def check_on_device(recipe):
  """Raises `UserError` if a recipe cannot run inside the training step."""
  if not recipe.on_device:
    raise errors.UserError(
      f"{type(recipe).__name__} cannot run on the device: leave --augment_on_device out"
    )


def check_strength(recipe):
  """Raises `UserError` if the strength of a recipe cannot be changed."""
  if getattr(recipe, "strength", None) is None:
    raise errors.UserError(
      f"{type(recipe).__name__} has no strength that can change over the training: give "
      "--augment=simclr"
    )


def augment_on_device(recipe, images, seed, views=2, strength=None):
  """Augments a batch inside the training step, as `views` does before it.

  Args:
    recipe: an `augment.Recipe` with `on_device`.
    images: uint8 [n, h, w, c], this replica's rows of the global batch.
    seed: `augmentation_seed(seed, step)`.
    views: how many views of each image.
    strength: a factor on the recipe's strength, float32 scalar; None for 1.

  Returns:
    float32 [n, views, h, w, c] in [0, 1].
  """
  return _augment(recipe, images, seed, views, strength)


def to_float(images):
  """uint8 to float32 in [0, 1]."""
  return tf.cast(images, tf.float32) / 255.0


def _augment(recipe, images, seed, views, strength=None, share=(0, 1)):
  count, numbers = images.shape[0], recipe.noise_size
  shape = [tf.shape(images)[0] if count is None else count, views * numbers]
  # A row of noise holds all views of an example; a replica draws the rows of its examples.
  if share == (0, 1):
    noise = distribution.uniform(seed, tf.stack(shape) if count is None else shape)
  else:  # a pipeline's batches are full
    worker, workers = share
    whole = distribution.uniform(seed, [workers * count, shape[1]])
    noise = whole[worker * count : (worker + 1) * count]
  noise = tf.reshape(noise, [shape[0] * views, numbers])
  options = {} if strength is None else {"strength": strength * recipe.strength}
  augmented = recipe(to_float(tf.repeat(images, views, axis=0)), noise, **options)
  return tf.reshape(augmented, [shape[0], views, *augmented.shape[1:]])
