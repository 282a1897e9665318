"""The forms of batches that `Trainer.fit` takes."""

import contextlib
import re

import tensorflow as tf

from urkle_tf import distribution, errors

_TO_AUGMENT = 'with augment, give {"image": images}, uint8 [n, h, w, c]'


def read(batch, augmented):
  """A batch of any form as a dict.

  Args:
    batch: a tuple (v1, v2, ...) of float [n, h, w, c]; or a dict with "views" [n, v, h, w, c] or,
      if `augmented`, "image".
    augmented: whether the step augments images.

  Returns:
    The dict, with "views" as float32; integers are left for the trainer to refuse.

  Raises:
    UserError: for another form.
  """
  if isinstance(batch, tuple):  # `train_on_batch` adds None for labels and weights
    batch = tuple(part for part in batch if part is not None)
    batch = batch[0] if len(batch) == 1 else batch
  if not isinstance(batch, dict):
    if augmented and tf.is_tensor(batch):
      raise errors.UserError(_TO_AUGMENT)
    batch = {"views": _stacked(batch)}
  if "views" in batch:
    return {**batch, "views": _checked(batch["views"])}
  if not augmented:
    raise errors.UserError(
      'batches hold no "views": add them, or give Trainer(..., augment=recipe)'
    )
  images = batch.get("image")
  if images is None or not tf.as_dtype(images.dtype).is_integer:
    raise errors.UserError(_TO_AUGMENT)
  return batch


def _stacked(batch):
  """The views [n, v, h, w, c] of a batch (v1, v2, ...).

  Keras makes of `fit((v1, v2))` batches ((v1, v2),), and of `fit(v1)` tensors.
  """
  views = [tf.convert_to_tensor(view) for view in tf.nest.flatten(batch)]
  if any(view.shape.rank not in (4, None) for view in views):
    raise errors.UserError(
      "batches must be views (v1, v2, ...) of [n, h, w, c], or a dict with "
      f'"views" [n, v, h, w, c] and "label" [n]; got {", ".join(str(x.shape) for x in views)}'
    )
  return tf.stack(views, axis=1)


def _checked(views):
  views = tf.convert_to_tensor(views)
  if views.shape.rank != 5 or None in views.shape[1:]:
    raise errors.UserError(
      f'batches need "views" of shape [n, v, h, w, c], of which only n may be unknown, got '
      f"{views.shape}"
    )
  return tf.cast(views, tf.float32) if views.dtype.is_floating else views


def check_count(views, pretext, scheme):
  """Raises `UserError` for a number of views that pretext and scheme cannot take."""
  needed, exact = pretext.views, pretext.exact or scheme.exact
  if views < needed or (exact and views > needed):
    raise errors.UserError(
      f"{pretext.name} needs {needed} views of each image, got {views}: give {needed} in each batch"
    )


# --- What is known only as a step runs ---


def checked(batch, right, said):
  """A batch whose use raises TensorFlow's error with a text unless a bool scalar is true."""
  with tf.control_dependencies([tf.debugging.Assert(right, [f"UserError: {said}"])]):
    return tf.nest.map_structure(tf.identity, batch)


@contextlib.contextmanager
def in_one_line():
  """A context in which an error of `checked` becomes a `UserError`."""
  try:
    yield
  except tf.errors.InvalidArgumentError as error:
    # An assertion's text; that of a file that cannot be read has nothing directly before it.
    if said := re.search(r"[\['\"]UserError: ([^\]'\n]+)", str(error)):
      raise errors.UserError(said[1]) from error
    raise


def even(batch):
  """A batch that must have as many rows as those of the other replicas of this process.

  Otherwise their mean would not be that of the images, nor their noise that of one replica.

  Args:
    batch: a structure of tensors.
  """
  first = tf.nest.flatten(batch)[0]
  if distribution.replicas() == 1 or first.shape[0] is not None:
    return batch

  def equal(strategy, count):
    counts = tf.stack(strategy.experimental_local_results(count))
    return tf.reduce_all(counts == counts[0])

  right = tf.distribute.get_replica_context().merge_call(equal, args=(tf.shape(first)[0],))
  said = (
    "a batch does not divide evenly among the replicas: give batches that do, and drop a smaller "
    "last one"
  )
  return checked(batch, right, said)
