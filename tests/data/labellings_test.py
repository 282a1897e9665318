"""Data sets with other labels."""

import numpy as np
import pytest
from cases import refuses
from scipy import ndimage
from small_models import array_source

from urkle_tf.data import labellings, pipeline, sources
from urkle_tf.pretexts import Supervised


def test_names_are_split_from_labellings():
  for name in ("mnist", "mnist:3.0.1", "folder:here", "folder:/a:b", "folder:C:3", "digits"):
    assert labellings.split(name) == (name, None)
  assert labellings.split("mnist:parity") == ("mnist", "parity")
  assert labellings.split("mnist:3.0.1:number") == ("mnist:3.0.1", "number")
  assert labellings.split("folder:/a:brightness") == ("folder:/a", "brightness")
  for text in ("at_least(threshold=3)", 'any_of(classes="tone:high")'):
    assert labellings.split(f"digits:{text}") == ("digits", text)


def read(source):
  """Everything as `batches` gives it: images [n, h, w, c] and labels [n]."""
  parts = list(pipeline.batches(source, 100))
  return [np.concatenate([part[name].numpy() for part in parts]) for name in ("image", "label")]


@pytest.mark.parametrize(
  ("labelling", "names", "wanted"),
  [
    ("parity", ["even", "odd"], lambda digit: digit % 2),
    ("at_least(threshold=3)", ["below 3", "3 or more"], lambda digit: digit >= 3),
    ('any_of(classes="1|7")', ["other", "1 or 7"], lambda digit: (digit == 1) | (digit == 7)),
  ],
)
def test_other_classes(labelling, names, wanted):
  plain, source = (sources.load(name, "test") for name in ("digits", f"digits:{labelling}"))
  assert (source.class_names, source.target, source.labelled) == (names, None, True)
  images, labels = read(source)
  np.testing.assert_array_equal(images, read(plain)[0])
  np.testing.assert_array_equal(labels, wanted(plain.labels))
  np.testing.assert_array_equal(source.labels, labels)
  assert labels.dtype == np.int64


def test_numbers():
  plain = sources.load("digits", "test")
  images, _ = read(plain)
  number, brightness = (sources.load(f"digits:{n}", "test") for n in ("number", "brightness"))
  assert number.class_names is None
  assert number.labelled
  np.testing.assert_array_equal(read(number)[1], plain.labels.astype(np.float32))
  assert read(number)[1].dtype == np.float32
  assert brightness.labels is None
  np.testing.assert_allclose(read(brightness)[1], images.mean((1, 2, 3)), rtol=1e-5)


def test_rotation_turns_the_image_by_its_label():
  plain = sources.load("digits", "test")
  source = sources.load("digits:rotation(degrees=60)", "test")
  images, angles = read(source)
  np.testing.assert_array_equal(source.labels, angles)
  assert np.abs(angles).max() <= 60
  # Even over the range: so is the distribution of any run of them.
  for part in (angles, angles[:100]):
    counts, _ = np.histogram(part, 6, (-60, 60))
    assert np.ptp(counts) <= 0.2 * counts.mean()
  for i in np.flatnonzero(np.abs(angles) > 30)[:3]:
    image, options = plain.images[i, ..., 0].astype(float), {"order": 1, "mode": "constant"}
    turned = ndimage.rotate(image, angles[i], reshape=False, **options)
    # The two libraries differ in how they fade out at the border, so compare the inside.
    inside = np.abs(turned - [255 * images[i, ..., 0], image])[:, 2:-2, 2:-2]
    assert inside[0].max() <= 1.5
    assert inside[1].max() > 20  # it did turn


def test_every_order_has_the_labels_of_its_images():
  source = sources.load("digits:rotation", "train[:50]")
  whole = {int(e["index"]): e for e in source.epoch(shuffle=False)}
  for batch in source.batches(10, seed=1, epoch=2):
    for index, image, label in zip(batch["index"], batch["image"], batch["label"], strict=True):
      np.testing.assert_array_equal(image, whole[int(index)]["image"])
      assert label == whole[int(index)]["label"] == source.labels[int(index)]


def test_numbers_are_no_classes():
  refuses("task=regression", Supervised().adopt, sources.load("digits:number", "test"))


@pytest.mark.parametrize("name", ["2024-01-31", "1.2.3", "nan", "inf"])
def test_classes_that_only_look_like_numbers_are_refused(name):
  images, fields = np.zeros([2, 4, 4, 1], np.uint8), {"name": "x", "split": "train"}
  source = sources.ArraySource(images, class_names=["7", name], **fields)
  words = f"the classes of 'x' are not numbers, such as {name!r}"
  refuses(words, labellings.build, "number", source)


def test_an_image_without_a_class_gets_no_new_one():
  """TFDS labels it -1, which was taken for the last class."""
  source = array_source(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, -1, 1]))
  refuses("images without a label (-1)", labellings.build, "any_of(classes=b)", source)
