"""Checks that data, and a norm, fit a model."""

import numpy as np
from absl import logging

from urkle_tf import errors


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
  """Raises `UserError` if a source has no labels, or only one class."""
  if not source.labelled:
    raise errors.UserError(
      f"{source.name!r} ({source.split}) has no labels: put the images into class folders, or give "
      "a data set with labels"
    )
  if source.class_names is not None and len(source.class_names) < 2:
    raise errors.UserError(
      f"{source.name!r} has one class, {source.class_names[0]!r}, so nothing can be told apart: "
      "give data of at least 2 classes"
    )


def check_no_gaps(source, labels):
  """Raises `UserError` if an image has no class: TFDS labels it -1.

  Args:
    source: a labelled `Source`.
    labels: those of its images, or of some of them.
  """
  if source.class_names is not None and np.min(labels) < 0:
    raise errors.UserError(
      f"{source.name!r} ({source.split}) has images without a label (-1): give another split"
    )


def warn_of_missing_classes(source, labels):
  """Warns of classes without an image, which a classifier cannot learn, nor a report measure.

  Args:
    source: a labelled `Source`.
    labels: those of its images, or of some of them.
  """
  names = source.class_names or ()
  missing = [repr(name) for number, name in enumerate(names) if not np.any(labels == number)]
  if missing:
    shown = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
    words = "no image of %d of the %d classes of %s (%s) is used: %s"
    logging.warning(words, len(missing), len(names), source.name, source.split, shown)


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


def check_norm(norm, epsilon, trained="linf"):
  """Raises `UserError` if a norm is not that of the default radius.

  Args:
    norm: of the threat model.
    epsilon: the default radius.
    trained: the norm of that radius.
  """
  if norm != trained:
    raise errors.UserError(
      f"--norm={norm} needs --epsilon, because the default, {epsilon:.4g}, is a radius in {trained}"
    )


def shared(source, other, rows=slice(None)):
  """Which examples of a source are among rows of another split of its data, bool [source.size]."""
  if source.origin is None or other.origin is None:
    return np.zeros(source.size, bool)
  return np.isin(source.origin, other.origin[rows])


def check_held_out(validation, source, chosen):
  """Raises `UserError` if held-out images are among those that are trained on.

  Args:
    validation: the `Source` that is held out.
    source: the `Source` of the images that are trained on.
    chosen: int [m], their positions in it.
  """
  found = shared(validation, source, chosen)
  if found.any():
    raise errors.UserError(
      f"--split={source.split} trains on {found.sum():,} of the {len(found):,} images of "
      f"--validation_split={validation.split}: leave them out, as in train[:90%] and train[90%:]"
    )


def warn_of_seen(source, trained, flag, examples):
  """Warns of images that are meant to be held out, but are among those that are trained on.

  Args:
    source: the `Source` that is measured during training.
    trained: the `Source` that is trained on.
    flag: which names the split of the first, for the message.
    examples: how many images are measured, the first ones.
  """
  found = shared(source, trained)[:examples]
  if found.any():
    words = "%s=%s: %d of its %d images are trained on, so its figures are not of unseen images"
    logging.warning(words, flag, source.split, found.sum(), len(found))


def check_apart(source, references, who, examples=None):
  """Raises `UserError` if measured images are among those they are compared with.

  Args:
    source: the `Source` that is measured.
    references: another split of the same data, in which neighbours are looked for.
    who: what looks for them, for the message.
    examples: how many images are measured, the first ones; None for all.
  """
  found = shared(source, references)[:examples]
  if found.any():
    raise errors.UserError(
      f"{who}: {references.split!r} holds {found.sum():,} of the {len(found):,} images that are "
      "measured, which would find themselves: give another split"
    )
