"""TensorFlow data sets by name: opened, and read into memory or shard by shard."""

import collections
import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import fitting, reading, splits

_DEFAULT_SIZE = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """One split of a prepared data set.

  Attributes:
    dataset: the name, as given.
    builder: its `tfds.core.DatasetBuilder`.
    pieces: the `tfds.core.ReadInstruction`s that make up the split, in order.
    size: the number of examples.
    image_shape: (height, width, channels), to which all images are resized.
    class_names: the names of the classes, or None if there are no labels.
    origin: int64 [size], the numbers of the examples in the whole data set.
  """

  dataset: str
  builder: Any
  pieces: list
  size: int
  image_shape: tuple[int, int, int]
  class_names: list[str] | None
  origin: np.ndarray

  @property
  def _decoding(self):
    import tensorflow_datasets as tfds

    wanted = ["image"] if self.class_names is None else ["image", "label"]
    return tfds.decode.PartialDecoding(dict.fromkeys(wanted, True))

  def read(self):
    """Reads all examples, in the order of the split.

    Returns:
      `(images, labels)`: uint8 [size, *image_shape], and int64 [size] or None.
    """
    import tensorflow_datasets as tfds

    images = np.empty((self.size, *self.image_shape), np.uint8)
    labels = None if self.class_names is None else np.empty(self.size, np.int64)
    position = 0
    for piece in self.pieces:
      read = self.builder.as_dataset(
        split=piece,
        decoders=self._decoding,
        # One shard after the other, in the order of the split and of `shards`.
        read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
      )
      read = reading.each(read, self._fit).batch(256)
      try:
        for batch in reading.without_autotuner(read).as_numpy_iterator():
          rows = slice(position, position + len(batch["image"]))
          images[rows] = batch["image"]
          if labels is not None:
            labels[rows] = batch["label"]
          position = rows.stop
      except tf.errors.OpError as error:
        raise self.find_unreadable() or self._damaged(self.builder.data_path, error) from error
    if position != self.size:
      raise self._damaged(self.builder.data_path, f"it holds {position} of {self.size} examples")
    return images, labels

  def find_unreadable(self):
    """A `UserError` about the first TFRecord file that is damaged or missing, or None."""
    if self.builder.info.file_format.value != "tfrecord":
      return None
    for file in dict.fromkeys(self.shards()["filename"].tolist()):
      try:
        records = tf.data.TFRecordDataset(file, buffer_size=2**20).batch(1024)
        for _ in reading.without_autotuner(records):
          pass
      except tf.errors.OpError as error:
        return self._damaged(file, error)
    return None

  def _damaged(self, file, reason):
    reason = str(reason).splitlines()[0].split("}} ")[-1].split(" [Op:")[0][:200]
    return errors.UserError(
      f"cannot read {str(file)!r} of data set {self.dataset!r}: {reason}; copy it again, or remove "
      "that folder and prepare the data set again"
    )

  def shards(self):
    """The locations of the examples.

    Returns:
      `{"filename": str, "skip": int64, "take": int64, "start": int64}`, each a NumPy array
      [shards].  `take` records of a file, after the first `skip`, are the examples from index
      `start` on.

    Raises:
      UserError: if the files are not TFRecords.
    """
    info = self.builder.info
    if info.file_format.value != "tfrecord":
      raise errors.UserError(
        f"data set {self.dataset!r} is too large for memory, and stored as"
        f" {info.file_format.value}, which cannot be streamed: prepare it as tfrecord"
      )
    shards = collections.defaultdict(list)
    start = 0
    for piece in self.pieces:
      for shard in info.splits[piece].file_instructions:
        for key in ("filename", "skip", "take"):
          shards[key].append(getattr(shard, key))
        shards["start"].append(start)
        start += shard.take
    return {
      "filename": np.array([str(name) for name in shards["filename"]]),
      **{key: np.array(shards[key], np.int64) for key in ("skip", "take", "start")},
    }

  def parse(self, record):
    """Decodes a record: `{"image": uint8 image_shape, "label": int64 []}`."""
    features = self._decoding.extract_features(self.builder.info.features)
    return self._fit(features.deserialize_example(record))

  def _fit(self, example):
    result = {"image": fitting.fit(example["image"], self.image_shape)}
    if "label" in example:
      result["label"] = tf.cast(example["label"], tf.int64)
    return result


def find(dataset, split, data_dir=None, download=False, image_size=None, examples=None):
  """Finds a split, and opens its data set, without reading it.

  Args:
    dataset: the name, as TensorFlow Datasets writes it: `"name/config:version"`.
    split: as in `splits.select`.
    data_dir: where data sets are prepared; None for TFDS's default.
    download: whether data that is not prepared may be downloaded.
    image_size: height and width in pixels; None for the data set's own, or 224 if its images vary.
    examples: take only this many examples, the first ones; None for all.

  Returns:
    An `Opened`.

  Raises:
    UserError: if there is no such data set or split, or it is not prepared, or it has no images
      that can be read.
  """
  import tensorflow_datasets as tfds

  if data_dir is not None:
    data_dir = pathlib.Path(os.path.expanduser(data_dir))
    if not data_dir.is_dir() and not download:
      raise errors.UserError(
        f"data_dir {str(data_dir)!r} is not a folder: give the folder in which {dataset!r} is"
        " prepared"
      )
  builder = _builder(tfds, dataset, data_dir)
  if not builder.is_prepared():
    _prepare(builder, dataset, download)
  features = builder.info.features
  if "image" not in (features or {}) or len(features["image"].shape or ()) != 3:
    raise errors.UserError(
      f"data set {dataset!r} has no images (a feature 'image'): give a data set of images"
    )
  if features["image"].np_dtype != np.uint8:
    raise errors.UserError(
      f"data set {dataset!r} has images of {features['image'].np_dtype}: give one with images of"
      " uint8"
    )

  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  sizes = {name: size for name, size in sizes.items() if size}
  pieces = splits.select(dataset, split, sizes, examples)
  instructions = [
    tfds.core.ReadInstruction(name, from_=start, to=stop, unit="abs")
    for name, start, stop in pieces
  ]
  label = dict(features).get("label")
  class_names = None
  if isinstance(label, tfds.features.ClassLabel):
    class_names = label.names or [str(i) for i in range(label.num_classes)]
  height, width, channels = features["image"].shape
  if image_size or not height or not width:
    height = width = image_size or _DEFAULT_SIZE
  shape, size = (height, width, channels or 3), sum(stop - start for _, start, stop in pieces)
  found = {"size": size, "image_shape": shape, "class_names": class_names}
  found["origin"] = splits.origins(pieces, sizes)
  return Opened(dataset=dataset, builder=builder, pieces=instructions, **found)


def _builder(tfds, dataset, data_dir):
  name = re.split(r"[/:]", dataset)[0]
  try:
    return tfds.builder(dataset, data_dir=data_dir)
  except tfds.core.registered.DatasetNotFoundError as error:
    if os.path.isdir(os.path.expanduser(dataset)):
      raise errors.UserError(
        f"unknown data set {dataset!r}; for the images of that folder write 'folder:{dataset}'"
      ) from error
    known = [*tfds.list_builders(with_community_datasets=False), "digits", "folder:PATH"]
    raise errors.unknown("data set", dataset, known) from error
  except (ValueError, AssertionError) as error:
    if "BuilderConfig" in str(error) and "/" in dataset:
      configs = tfds.builder_cls(name).builder_configs
      config = dataset.split("/", 1)[1].split(":")[0]
      raise errors.unknown(f"configuration of data set {name!r}", config, configs) from error
    raise errors.UserError(
      f"cannot open data set {dataset!r}: write 'digits', 'folder:PATH' or a TensorFlow data set"
      f" such as 'cifar10' ({_first_line(error)})"
    ) from error


def _prepare(builder, dataset, download):
  where = builder.data_path.parent
  if not download:
    raise errors.UserError(
      f"data set {dataset!r} is not prepared in {str(where)!r}: give the folder that holds it as"
      f" --data_dir, add --download, or run: tfds build {dataset}"
    )
  try:
    builder.download_and_prepare()
  except Exception as error:
    raise errors.UserError(
      f"cannot download and prepare data set {dataset!r}: {_first_line(error)}"
    ) from error


def _first_line(error):
  text = str(error).rsplit("builder_kwargs", 1)[-1].split('}": ', 1)[-1].strip()
  return (text.splitlines() or [type(error).__name__])[0][:300]
