"""Other labels for the images of a data set: `"mnist:parity"`, `"mnist:rotation(degrees=45)"`.

The quality of an encoder shows on tasks that it was not made for.  A labelling turns any data set
into such a task: other classes for the same images, or numbers to predict.

```python
from urkle_tf.data import labellings, sources

parity = sources.load("digits:parity")  # classes "even" and "odd"
name, text = labellings.split("digits:rotation(degrees=45)")
labelling = labellings.build(text, sources.load(name))  # a Labelling
what = labelling.target  # "the angle in degrees"
```
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from urkle_tf import errors, spec
from urkle_tf.data import augment, compatibility

_GOLDEN = (5**0.5 - 1) / 2


@dataclasses.dataclass(frozen=True)
class Labelling:
  """New labels for a source.

  Attributes:
    relabel: a function of a batch {"image": uint8 [n, h, w, c], "index": int64 [n]}, with "label"
      if the source has classes.  It returns the batch with new labels, int64 [n] of classes or
      float32 [n] of numbers, and may change the images too.
    class_names: the names of the new classes; None if labels are numbers.
    target: a description of the numbers; None if labels are classes.
    known: the new labels in the order of the indices; None if only reading the images gives them.
  """

  relabel: Callable
  class_names: list[str] | None = None
  target: str | None = None
  known: np.ndarray | None = None


def _class_names(source):
  if source.class_names is None:
    raise errors.UserError(
      f"{source.name!r} ({source.split}) has no classes to relabel: use the labelling rotation or "
      "brightness"
    )
  return source.class_names


def _numbers(source):
  """The names of the classes as numbers."""
  found = []
  for name in _class_names(source):
    try:
      found.append(float(spec.number(str(name))))
    except ValueError:
      raise errors.UserError(
        f"the classes of {source.name!r} are not numbers, such as {name!r}: use another labelling, "
        f'such as any_of(classes="{name}")'
      ) from None
  return np.array(found)


def _by_table(source, table, **fields):
  """Labels that depend on the class alone: new label = table[old class]."""
  known = None
  if source.labels is not None:
    compatibility.check_no_gaps(source, source.labels)
    known = table[source.labels]

  def relabel(batch):
    return {**batch, "label": tf.gather(tf.constant(table), batch["label"])}

  return Labelling(relabel, known=known, **fields)


def _parity(source):
  table = (_numbers(source) % 2 != 0).astype(np.int64)
  return _by_table(source, table, class_names=["even", "odd"])


def _at_least(source, threshold=5):
  table = (_numbers(source) >= threshold).astype(np.int64)
  if len(set(table)) < 2:
    raise errors.UserError(
      f"at_least: every class of {source.name!r} is on one side of threshold={threshold}: give a "
      "threshold between them"
    )
  return _by_table(source, table, class_names=[f"below {threshold}", f"{threshold} or more"])


def _any_of(source, classes):
  names = [str(name) for name in _class_names(source)]
  chosen = [name.strip() for name in str(classes).split("|")]
  for name in chosen:
    errors.one_of(f"class of {source.name!r}", name, names)
  table = np.isin(names, chosen).astype(np.int64)
  if table.all():
    raise errors.UserError(f"any_of: these are all classes of {source.name!r}: leave some out")
  return _by_table(source, table, class_names=["other", " or ".join(chosen)])


def _number(source):
  return _by_table(source, _numbers(source).astype(np.float32), target="the class as a number")


def _brightness(source):

  def relabel(batch):
    pixels = tf.cast(batch["image"], tf.float32) / 255
    return {**batch, "label": tf.reduce_mean(pixels, list(range(1, len(pixels.shape))))}

  return Labelling(relabel, target="the mean of the pixels")


def _rotation(source, degrees=45):
  errors.within("(0, 180]", "rotation", degrees=degrees)
  if source.image_shape[0] != source.image_shape[1]:
    raise errors.UserError(
      f"rotation: the images of {source.name!r} are not square: give image_size"
    )
  # Multiples of the golden ratio are spread evenly, over any range of indices.
  angles = degrees * (2 * ((np.arange(source.size) + 1) * _GOLDEN % 1.0) - 1)
  known = angles.astype(np.float32)

  def relabel(batch):
    label = tf.gather(tf.constant(known), batch["index"])
    return {**batch, "image": rotate(batch["image"], label), "label": label}

  return Labelling(relabel, target="the angle in degrees", known=known)


LABELLINGS = {
  labelling.__name__.removeprefix("_"): labelling
  for labelling in (_any_of, _at_least, _brightness, _number, _parity, _rotation)
}


def rotate(images, degrees):
  """Rotates square images about their centre (bilinear), with 0 outside.

  Args:
    images: uint8 [n, h, h, c].
    degrees: float32 [n], anticlockwise.

  Returns:
    uint8 [n, h, h, c].
  """
  angle = degrees * (np.pi / 180)
  cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
  middle = (images.shape[1] - 1) / 2
  # From output pixels to input pixels: x' = cos x - sin y + dx, y' = sin x + cos y + dy.
  transforms = [cos, -sin, middle * (1 - cos + sin), sin, cos, middle * (1 - cos - sin), zero, zero]
  return augment.warp(images, transforms)


def split(dataset):
  """Splits a data set's name from its labelling.

  Args:
    dataset: `"mnist"`, `"mnist:parity"`, `"mnist:3.0.1"` (a version), `"folder:PATH:brightness"`.

  Returns:
    (name, spec of the labelling or None).
  """
  found = re.fullmatch(r"(.+):([A-Za-z_]\w*\s*(?:\(.*\))?\s*)", dataset, re.DOTALL)
  if not found or found[1] == "folder":
    return dataset, None
  name, text = found.groups()
  if name.startswith("folder:") and spec.parse(text)[0] not in LABELLINGS:
    return dataset, None  # a path may hold colons
  return name, text


def build(text, source):
  """Makes a `Labelling` from a spec.

  `parity`: whether a class that is a number is odd or even.  `at_least(threshold=5)`: whether it is
  at least 5.  `any_of(classes="cat|dog")`: whether the class is one of these.  `number`: the class
  as a number.  `rotation(degrees=45)`: each image is rotated by an angle within ± degrees, and the
  angle is the label.  `brightness`: the mean of the pixels.

  An attack can change the brightness itself, by up to epsilon in l_inf, and a good regressor has to
  follow.  A small perturbation does not change the other labels.

  Args:
    text: the spec.
    source: a `Source`.

  Returns:
    A `Labelling`; `sources.load` applies it, by a name such as `"mnist:parity"`.

  Raises:
    UserError: if there is no such labelling, or it does not fit the source.
  """
  return spec.call(LABELLINGS, text, "labelling", source=source)
