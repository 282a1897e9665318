"""Checks that data fit a model."""

import numpy as np
from absl import logging

from urkle_tf import errors
from urkle_tf.data import sources, splits

_MOST = 0.5  # a larger share of images in common is a mistake; a smaller one may be copies


def check_images(image_size, source, model="the model"):
  """Raises `UserError` if a source's images do not have the model's size.

  Args:
    image_size: (height, width, channels) of the model.
    source: a `Source`.
    model: its name in the message.
  """
  height, width, channels = image_size
  if tuple(source.image_shape) == (height, width, channels):
    return
  wanted, given = "x".join(map(str, image_size)), "x".join(map(str, source.image_shape))
  advice = "give data of that shape"
  if channels == source.image_shape[2] and height == width:
    advice = f"give --image_size={height}, or other data"
  raise errors.UserError(
    f"{model} takes images of {wanted}, but {source.name!r} has {given}: {advice}"
  )


def check_labelled(source):
  """Raises `UserError` if a source has no labels."""
  if not source.labelled:
    raise errors.UserError(
      f"{source.name!r} ({source.split}) has no labels: put the images into class folders, or give "
      "a data set with labels"
    )


def check_classes(classes, class_names, source):
  """Raises `UserError` if a source's classes are not the classifier's.

  Args:
    classes: the number of the classifier's classes.
    class_names: their names, or None.
    source: a labelled `Source`.
  """
  if source.class_names is None:
    raise errors.UserError(
      f"the classifier predicts classes, but the labels of {source.name!r} are numbers "
      f"({source.target}): give data with classes"
    )
  if len(source.class_names) != classes:
    raise errors.UserError(
      f"the classifier knows {classes} classes, but {source.name!r} has "
      f"{len(source.class_names)}: give data with its classes"
    )
  if not class_names or list(class_names) == list(source.class_names):
    return
  if all(str(name).isdecimal() for name in (*class_names, *source.class_names)):
    known, given = list(map(int, class_names)), list(map(int, source.class_names))
    if known == given or set(known) != set(given):
      return  # numbered classes have no names
  ours, theirs = next(
    (a, b) for a, b in zip(class_names, source.class_names, strict=True) if a != b
  )
  raise errors.UserError(
    f"the classes of the classifier and of {source.name!r} differ, {ours!r} and {theirs!r}: give "
    "data with its classes, in its order"
  )


def shared(source, other, rows=slice(None)):
  """Which images of a source are among rows of another split, bool [source.size]."""
  ours, theirs = splits.names(source.split), splits.names(other.split)
  if not ours & theirs and "all" not in ours | theirs:
    return np.zeros(source.size, bool)
  return np.isin(_marks(source), _marks(other)[rows])


def check_held_out(validation, source, chosen):
  """Raises `UserError` if most held-out images are among those that are trained on.

  If some are, it warns.  Data too large for memory is not read for this.

  Args:
    validation: the `Source` that is held out.
    source: the `Source` of the images that are trained on.
    chosen: int [m], their positions in it.
  """
  if sources.fit_in_memory(source, validation):
    found = shared(validation, source, chosen)
    _complain(
      found,
      f"--split={source.split} trains on {found.sum():,} of the {len(found):,} images of "
      f"--validation_split={validation.split}: leave them out, as in train[:90%] and train[90%:]",
    )


def check_apart(source, references, who, examples=None):
  """Raises `UserError` if most measured images are among those they are compared with.

  If some are, it warns.  Data too large for memory is not read for this.

  Args:
    source: the `Source` that is measured.
    references: another split of the same data, in which neighbours are looked for.
    who: what looks for them, for the message.
    examples: how many images are measured, the first ones; None for all.
  """
  if sources.fit_in_memory(source, references):
    found = shared(source, references)[:examples]
    _complain(
      found,
      f"{who}: {references.split!r} holds {found.sum():,} of the {len(found):,} images that are "
      "measured, which would find themselves: give another split",
    )


def _complain(found, message):
  if found.mean() > _MOST:
    raise errors.UserError(message)
  if found.any():
    logging.warning("%s", message)


def _marks(source):
  """A number for each image; equal images have the same number."""
  batches = source.batches(500, shuffle=False, drop_remainder=False)
  return np.array([hash(image.tobytes()) for batch in batches for image in batch["image"].numpy()])
