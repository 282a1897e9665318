"""Data sets by name: bundled digits, image folders, TensorFlow Datasets; with other labels.

A `Source` gives the examples of one split in an order that is a pure function of (seed, epoch), so
that a run can resume in the middle of an epoch.  Decoded data of up to 2 GiB is held in memory.  A
larger folder is decoded by index, and a larger TensorFlow data set is streamed.

```python
from urkle_tf.data import sources

source = sources.load("digits", split="train[:90%]")  # a Source
size, shape = source.size, source.image_shape  # 1,293 and (8, 8, 1)
rest, held_out = source.hold_out(100)  # held_out is an ArraySource, in memory
```
"""

import atexit
import contextlib
import copy
import dataclasses
import gc
import hashlib
import json

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import digits, folders, labellings, named, reading

IN_MEMORY_BYTES = 2**31

_SHUFFLE_BLOCK = 4096
_INTERLEAVE = 16
_ALGORITHM = "philox"

# An error can leave iterators in reference cycles.  Their threads call Python (`FileSource`), and
# if they are still alive when Python ends, it waits for them forever.
atexit.register(gc.collect)


@dataclasses.dataclass(kw_only=True)
class Source:
  """One split of a data set.

  Attributes:
    name: the data set, as given.
    split: the split, as given.
    size: the number of examples.
    image_shape: (height, width, channels), the same for every image.
    class_names: the names of the classes, or None if there are none.
    target: a description of labels that are numbers, else None.
    labels: int64 [size] (float32 for numbers) in the order of the indices; None if they are not
      known without reading the data.
    names: the files of the examples in the order of the indices, as paths within the data set's
      folder; None if there are no files.
    origin: int64 [size], the numbers of the examples in the whole data set, of which the split is
      a part; None if they are not known.
  """

  name: str
  split: str
  size: int
  image_shape: tuple[int, int, int]
  class_names: list[str] | None = None
  target: str | None = None
  labels: np.ndarray | None = None
  names: list[str] | None = None
  origin: np.ndarray | None = None

  @property
  def labelled(self):
    """Whether examples have a `"label"`: a class or a number."""
    return self.class_names is not None or self.target is not None

  @property
  def fingerprint(self):
    """A line of text that another number of images, or other names or labels, would change."""
    names = json.dumps([self.image_shape, self.class_names, self.names])
    labels = b"" if self.labels is None else self.labels.tobytes()
    return f"{self.size:,} images, {hashlib.sha256(names.encode() + labels).hexdigest()[:12]}"

  def epoch(self, seed=0, epoch=0, shuffle=True, skip=0):
    """The examples of one epoch; may be called inside a graph.

    Args:
      seed: an int, or int32 [2].
      epoch: an int or an integer scalar; each epoch has a different order.
      shuffle: if false, every epoch has the order of the split.
      skip: how many examples to drop from the front, without decoding them.

    Returns:
      A `tf.data.Dataset` of `{"image": uint8 [h, w, c], "index": int64 []}`,
      and `"label": int64 []` if the source is labelled (float32 where labels
      are numbers).  The order depends on (seed, epoch) only.
    """
    return self.batches(1, seed, epoch, shuffle, skip).unbatch()

  def batches(
    self, batch_size, seed=0, epoch=0, shuffle=True, skip=0, drop_remainder=True, chosen=None
  ):
    """As `epoch`, in batches.

    Args:
      batch_size: examples.
      seed: as in `epoch`.
      epoch: the same.
      shuffle: the same.
      skip: the same.
      drop_remainder: whether to drop the last batch if it is not full.
      chosen: a function from a batch's number (from 0 after the skipped ones, int64 scalar) to
        whether it is wanted, a bool scalar; None for all.  Other batches are not decoded if
        possible.
    """
    batch = lambda examples: examples.batch(batch_size, drop_remainder=drop_remainder)  # noqa: E731
    return reading.without_autotuner(self._batches(batch, chosen, seed, epoch, shuffle, skip))

  def _batches(self, batch, chosen, *order):
    """`batches`, made by the function `batch` from the epoch of `order`."""
    raise NotImplementedError

  def hold_out(self, count):
    """Splits off the last examples.

    Args:
      count: how many examples, at least 1 and fewer than there are.

    Returns:
      (this source without them, an `ArraySource` of them).
    """
    rest = self._first(self.size - count)
    (batch,) = self.batches(count, shuffle=False, skip=rest.size)
    labels = batch["label"].numpy() if self.labelled else None
    fields = {name: getattr(self, name) for name in ("name", "split", "class_names", "target")}
    fields["origin"] = None if self.origin is None else self.origin[rest.size :]
    return rest, ArraySource(batch["image"].numpy(), labels=labels, **fields)

  def find_unreadable(self):
    """A `UserError` that names the first file that cannot be read; None if all can be read."""
    return None

  def _first(self, size):
    """The source with only the first `size` examples of its split."""
    first = copy.copy(self)
    first.size = size
    first.labels = None if self.labels is None else self.labels[:size]
    first.names = None if self.names is None else self.names[:size]
    first.origin = None if self.origin is None else self.origin[:size]
    return first


class _Indexed(Source):
  """A source whose examples are read by index."""

  def _indices(self, seed, epoch, shuffle, skip):
    indices = tf.range(self.size, dtype=tf.int64)
    if shuffle:
      indices = _shuffled(indices, _order_seed(seed, epoch))
    return tf.data.Dataset.from_tensor_slices(indices[skip:])

  def _with_labels(self, images, indices):
    example = {"image": images, "index": indices}
    if self.labelled:
      example["label"] = tf.gather(self.labels, indices)
    return example


class ArraySource(_Indexed):
  """A source in memory.

  Args:
    images: uint8 [size, h, w, c].
    **fields: the attributes of `Source`, except `size` and `image_shape`.

  Raises:
    UserError: for images of another type or shape.
  """

  def __init__(self, images, **fields):
    if images.dtype != np.uint8 or images.ndim != 4:
      raise errors.UserError(
        f"images of a source are uint8 [size, h, w, c], got {images.dtype} of the shape "
        f"{list(images.shape)}: give pixels from 0 to 255, and grey images with c = 1"
      )
    super().__init__(size=len(images), image_shape=tuple(images.shape[1:]), **fields)
    self.images = images
    self._tensor = None

  def gather(self, indices):
    """The examples of `indices`, int64 [...]: `{"image", "index", "label"}`."""
    if self._tensor is None:
      # Outside any graph, and on the host, because 2 GiB do not fit in a graph or on every device.
      with tf.init_scope(), tf.device("CPU:0"):
        self._tensor = tf.constant(self.images)
    return self._with_labels(tf.gather(self._tensor, indices), indices)

  def _batches(self, batch, chosen, *order):
    return _only(batch(self._indices(*order)), chosen).map(self.gather)


class FileSource(_Indexed):
  """A source that decodes `files`, a list of paths, when they are needed."""

  def __init__(self, files, **fields):
    super().__init__(size=len(files), **fields)
    self.files = files

  def _batches(self, batch, chosen, *order):
    def decode(index):
      image = tf.numpy_function(
        lambda i: folders.decode(self.files[i], self.image_shape), [index], tf.uint8, stateful=False
      )
      return self._with_labels(tf.ensure_shape(image, self.image_shape), index)

    return _only(batch(reading.each(self._indices(*order), decode)), chosen)

  def find_unreadable(self):
    return folders.find_unreadable(self.files, self.image_shape)


class StreamSource(Source):
  """A source that streams the shards of `opened`, a `named.Opened`.

  A shuffled epoch visits the shards in its own order, 16 at a time, and shuffles blocks of 4,096
  examples before they are decoded.
  """

  def __init__(self, opened, **fields):
    super().__init__(
      size=opened.size, image_shape=opened.image_shape, class_names=opened.class_names, **fields
    )
    self._opened, self._shards = opened, opened.shards()

  def find_unreadable(self):
    return self._opened.find_unreadable()

  def _first(self, size):
    first = super()._first(size)
    left = np.clip(size - self._shards["start"], 0, self._shards["take"])
    shards = {**self._shards, "take": left}
    first._shards = {name: values[left > 0] for name, values in shards.items()}
    return first

  def _batches(self, batch, chosen, *order):
    def parse(index, record):
      return {"index": index, **self._opened.parse(record)}

    records = self._records(*order)
    if chosen is not None:
      records = _only(batch(records), chosen).unbatch()
    return batch(reading.each(records, parse))

  def _records(self, seed, epoch, shuffle, skip):
    """(index, serialized example) in the order of an epoch."""
    shards = {key: tf.constant(value) for key, value in self._shards.items()}
    seed = _order_seed(seed, epoch)
    if shuffle:
      count = len(self._shards["start"])
      order = _shuffled(tf.range(count), seed)
      shards = {key: tf.gather(value, order) for key, value in shards.items()}

    def read(shard):
      records = tf.data.TFRecordDataset(shard["filename"], buffer_size=2**20)
      return records.skip(shard["skip"]).take(shard["take"]).enumerate(shard["start"])

    examples = tf.data.Dataset.from_tensor_slices(shards)
    examples = examples.interleave(
      read,
      cycle_length=_INTERLEAVE if shuffle else 1,
      block_length=16,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    if shuffle:
      # `Dataset.shuffle` would also depend on TensorFlow's global seed.
      def mix(index, records):
        order = _shuffled(tf.range(tf.size(index)), distribution.fold(seed, 1, index[0]))
        return tf.gather(index, order), tf.gather(records, order)

      examples = examples.batch(_SHUFFLE_BLOCK).map(mix).prefetch(1).unbatch()
    return examples.skip(tf.cast(skip, tf.int64))


class RelabelledSource(Source):
  """A source's images with other labels; see `labellings`.

  Attributes:
    source: the source underneath.
  """

  def __init__(self, source, labelling, name):
    same = {
      key: getattr(source, key) for key in ("split", "size", "image_shape", "names", "origin")
    }
    labels = {key: getattr(labelling, key) for key in ("class_names", "target")}
    super().__init__(name=name, labels=labelling.known, **same, **labels)
    self.source, self._relabel = source, labelling.relabel

  def find_unreadable(self):
    return self.source.find_unreadable()

  def _first(self, size):
    first = super()._first(size)
    first.source = self.source._first(size)
    return first

  def _batches(self, batch, chosen, *order):
    return reading.each_batch(self.source._batches(batch, chosen, *order), self._relabel)


def load(
  dataset="digits", split="train", data_dir=None, download=False, image_size=None, examples=None
):
  """Opens one split of a data set.

  Splits may be sliced by number or percentage, and added, as in TensorFlow Datasets:
  `"train[:90%]"`, `"train[45000:]"`, `"train[:100]+test"`.  `"all"` is every split.

  - `"digits"` is the data set bundled with scikit-learn, 1,797 handwritten digits [8, 8, 1].  A
    fixed stratified cut makes `train` (1,437) and `test` (360).
  - `"folder:PATH"` is a folder of PNG, JPEG or BMP images: in class folders, in split folders
    (`train`, `test`, `val`, ...) of class folders, or loose and unlabelled.  Without split folders,
    `train` and `test` are a fixed 80/20 cut of each class.  Files have a fixed order that does not
    depend on their class, that of the MD5 of their path.  Images are RGB (transparent parts white),
    or grey if all of them are.
  - Any other name is a TensorFlow data set that has an `image`, with its configuration if it has
    several: `"cifar10"`, `"cifar10_corrupted/fog_1"`.

  Each of them can have other labels, `"mnist:parity"`, `"folder:PATH:brightness"`: see
  `labellings.build`.

  Args:
    dataset: the data set, as above.
    split: the split.
    data_dir: where TensorFlow data sets are prepared; None for TFDS's default.
    download: whether data that is not prepared may be downloaded.
    image_size: height and width in pixels: the short side is resized to it (antialiased bilinear),
      then the centre is cut out.  None keeps the native size.  If images vary in size, it is 224
      for TensorFlow data sets; for folders it is 32 if the median short side is below 96, else 224.
    examples: take only this many examples of the split, the first ones; None for all.

  Returns:
    A `Source`.

  Raises:
    UserError: if there is no such data, or it cannot be read.
  """
  if image_size is not None:
    errors.whole(1, None, image_size=image_size)
  bare, labelling = labellings.split(dataset)
  if labelling is not None:
    source = load(bare, split, data_dir, download, image_size, examples)
    return RelabelledSource(source, labellings.build(labelling, source), dataset)
  asked = {"name": dataset, "split": split}
  if dataset == "digits":
    images, labels, origin = digits.read(split, image_size, examples)
    fields = {"labels": labels, "class_names": digits.CLASS_NAMES, "origin": origin}
    return ArraySource(images, **fields, **asked)
  if dataset.startswith("folder:"):
    found = folders.find(dataset, split, image_size, examples)
    kept = ("class_names", "labels", "names", "origin")
    fields = {name: getattr(found, name) for name in kept} | asked
    if _fits_in_memory(len(found.files), found.image_shape):
      return ArraySource(folders.read(found.files, found.image_shape), **fields)
    return FileSource(found.files, image_shape=found.image_shape, **fields)
  opened = named.find(dataset, split, data_dir, download, image_size, examples)
  asked["origin"] = opened.origin
  if _fits_in_memory(opened.size, opened.image_shape):
    images, labels = opened.read()
    return ArraySource(images, labels=labels, class_names=opened.class_names, **asked)
  return StreamSource(opened, **asked)


def _fits_in_memory(size, image_shape):
  return size * np.prod(image_shape) <= IN_MEMORY_BYTES


@contextlib.contextmanager
def naming_unreadable(*read):
  """A context for reading sources, in which the error about an unreadable file names the file.

  Data too large for memory is not read when it is opened.

  Raises:
    UserError: instead of TensorFlow's error.
  """
  try:
    yield
  except tf.errors.OpError as error:
    for source in read:
      if unreadable := source.find_unreadable():
        raise unreadable from error
    raise


def _only(batches, chosen):
  if chosen is None:
    return batches
  return batches.enumerate().filter(lambda number, _: chosen(number)).map(lambda _, batch: batch)


def _shuffled(values, seed):
  return tf.random.experimental.stateless_shuffle(values, seed, _ALGORITHM)


def _order_seed(seed, epoch):
  return distribution.fold(pair(seed), 0, epoch)


def pair(seed):
  """Turns an int into an int32 [2] seed, and returns a pair unchanged."""
  if isinstance(seed, int | np.integer):
    seed = [seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF]
  return tf.cast(seed, tf.int32)
