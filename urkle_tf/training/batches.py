"""The forms of batches that `Trainer.fit` takes."""

import tensorflow as tf

from urkle_tf import errors

_TO_AUGMENT = 'with augment, give {"image": images}, uint8 [n, h, w, c]'


def read(batch, augmented):
  """A batch of any form as a dict.

  Args:
    batch: a tuple (v1, v2, ...) of float [n, h, w, c]; or a dict with "views" [n, v, h, w, c] or,
      if `augmented`, "image".
    augmented: whether the step augments images.

  Returns:
    The dict, with "views" as float32; integers are left for the encoder to refuse.

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
