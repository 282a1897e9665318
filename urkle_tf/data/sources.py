"""Data sets by name: bundled digits, image folders, TensorFlow Datasets.

A `Source` gives the examples of one split in an order that is a pure function
of (seed, epoch), so that a run can resume in mid-epoch.  Decoded data of at
most 2 GiB lives in memory; a larger folder is decoded by index, and a larger
TensorFlow data set is streamed.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import re
import unicodedata

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image, ImageOps

from urkle_tf import distribution, errors

IN_MEMORY_BYTES = 2**31
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")

_TEST_FRACTION = 0.2
_SPLIT_FOLDERS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_HEADERS = 20_000  # Of larger folders, this many headers decide about size and channels.
_SHUFFLE_BLOCK = 4096
_INTERLEAVE = 16
_ALGORITHM = "philox"


@dataclasses.dataclass(kw_only=True)
class Source:
  """One split of a data set.

  Attributes:
    name: the data set, as it was asked for.
    split: the split, as it was asked for.
    size: the number of examples.
    image_shape: (height, width, channels), the same for every image.
    class_names: the names of the classes, or None if there are no labels.
    labels: int64 [size] in the order of the indices, or None if not known
      without reading the data.
  """

  name: str
  split: str
  size: int
  image_shape: tuple[int, int, int]
  class_names: list[str] | None = None
  labels: np.ndarray | None = None

  @property
  def labelled(self):
    """Whether examples have a `"label"`."""
    return self.class_names is not None

  def epoch(self, seed=0, epoch=0, shuffle=True, skip=0):
    """The examples of one epoch; may be called inside a graph.

    Args:
      seed: an int, or int32 [2].
      epoch: an int or an integer scalar; each epoch has an order of its own.
      shuffle: if false, every epoch has the order of the split.
      skip: how many examples to drop from the front, without decoding them.

    Returns:
      A `tf.data.Dataset` of `{"image": uint8 [h, w, c], "index": int64 []}`,
      and `"label": int64 []` if the source is labelled.  The order depends on
      (seed, epoch) only.
    """
    raise NotImplementedError

  def batches(self, batch_size, seed=0, epoch=0, shuffle=True, skip=0, drop_remainder=True):
    """As `epoch`, in batches."""
    return self.epoch(seed, epoch, shuffle, skip).batch(batch_size, drop_remainder=drop_remainder)


class _Indexed(Source):
  """A source whose examples are reached by index."""

  def _indices(self, seed, epoch, shuffle, skip):
    indices = tf.range(self.size, dtype=tf.int64)
    if shuffle:
      indices = tf.random.experimental.stateless_shuffle(
        indices, _order_seed(seed, epoch), _ALGORITHM
      )
    return tf.data.Dataset.from_tensor_slices(indices[skip:])

  def _with_labels(self, images, indices):
    example = {"image": images, "index": indices}
    if self.labelled:
      example["label"] = tf.gather(self.labels, indices)
    return example


class ArraySource(_Indexed):
  """A source in memory; `images` is uint8 [size, h, w, c]."""

  def __init__(self, images, **fields):
    super().__init__(size=len(images), image_shape=tuple(images.shape[1:]), **fields)
    self.images = images
    self._tensor = None

  def gather(self, indices):
    """The examples of `indices`, int64 [...]: `{"image", "index", "label"}`."""
    if self._tensor is None:
      # Outside any graph and on the host: 2 GiB do not fit in a graph, nor on every device.
      with tf.init_scope(), tf.device("CPU:0"):
        self._tensor = tf.constant(self.images)
    return self._with_labels(tf.gather(self._tensor, indices), indices)

  def epoch(self, seed=0, epoch=0, shuffle=True, skip=0):
    return self._indices(seed, epoch, shuffle, skip).map(self.gather)

  def batches(self, batch_size, seed=0, epoch=0, shuffle=True, skip=0, drop_remainder=True):
    indices = self._indices(seed, epoch, shuffle, skip)
    return indices.batch(batch_size, drop_remainder=drop_remainder).map(self.gather)


class FileSource(_Indexed):
  """A source that decodes `files`, a list of paths, when they are needed."""

  def __init__(self, files, **fields):
    super().__init__(size=len(files), **fields)
    self.files = files

  def epoch(self, seed=0, epoch=0, shuffle=True, skip=0):
    def decode(index):
      image = tf.numpy_function(
        lambda i: _decode(self.files[i], self.image_shape), [index], tf.uint8, stateful=False
      )
      return self._with_labels(tf.ensure_shape(image, self.image_shape), index)

    return self._indices(seed, epoch, shuffle, skip).map(
      decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


class StreamSource(Source):
  """A source that streams the shards of a prepared TensorFlow data set.

  Shuffled epochs visit the shards in an order of their own, 16 at a time, and
  shuffle blocks of 4,096 examples that are not decoded yet.
  """

  def __init__(self, builder, pieces, labelled, **fields):
    super().__init__(**fields)
    if builder.info.file_format.value != "tfrecord":
      raise errors.UserError(
        f"data set {self.name!r} is stored as {builder.info.file_format.value}: too large for"
        " memory, it must be prepared as tfrecord to be streamed"
      )
    self._builder = builder
    self._features = ["image", "label"] if labelled else ["image"]
    shards = collections.defaultdict(list)
    start = 0
    for piece in pieces:
      for shard in builder.info.splits[piece].file_instructions:
        for key in ("filename", "skip", "take"):
          shards[key].append(getattr(shard, key))
        shards["start"].append(start)
        start += shard.take
    self._shards = {
      "filename": np.array([str(name) for name in shards["filename"]]),
      **{key: np.array(shards[key], np.int64) for key in ("skip", "take", "start")},
    }

  def epoch(self, seed=0, epoch=0, shuffle=True, skip=0):
    shards = {key: tf.constant(value) for key, value in self._shards.items()}
    seed = _order_seed(seed, epoch)
    if shuffle:
      count = len(self._shards["start"])
      order = tf.random.experimental.stateless_shuffle(tf.range(count), seed, _ALGORITHM)
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
      # `Dataset.shuffle` would depend on TensorFlow's global seed, too.
      def mix(index, records):
        block = distribution.fold(seed, 1, index[0])
        order = tf.random.experimental.stateless_shuffle(
          tf.range(tf.size(index)), block, _ALGORITHM
        )
        return tf.gather(index, order), tf.gather(records, order)

      examples = examples.batch(_SHUFFLE_BLOCK).map(mix).prefetch(1).unbatch()
    return examples.skip(tf.cast(skip, tf.int64)).map(
      self._parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def _parse(self, index, record):
    import tensorflow_datasets as tfds

    wanted = tfds.decode.PartialDecoding(dict.fromkeys(self._features, True))
    features = wanted.extract_features(self._builder.info.features)
    example = features.deserialize_example(record)
    return _example(example, index, self.image_shape)


def load(
  dataset="digits", split="train", data_dir=None, download=False, image_size=None, examples=None
):
  """Opens one split of a data set.

  Every split may be sliced by number or percentage, and added to another, as
  in TensorFlow Datasets: `"train[:90%]"`, `"train[45000:]"`,
  `"train[:100]+test"`.  `"all"` is every split.

  Args:
    dataset: one of
      `"digits"`, scikit-learn's bundled 1,797 handwritten digits [8, 8, 1]; a
      fixed stratified cut makes `train` (1,437) and `test` (360);
      `"folder:PATH"`, a folder of PNG, JPEG or BMP images: in class folders,
      in split folders (`train`, `test`, `val`, ...) of class folders, or loose
      and unlabelled.  Without split folders `train` and `test` are a fixed
      80/20 cut of each class.  Files are in a fixed order that does not
      depend on their class (that of the MD5 of their path).  Images are RGB
      (transparent parts white) unless all of them are grey;
      any TensorFlow data set that has an `image`, configurations included:
      `"cifar10"`, `"cifar10_corrupted/fog_1"`.
    split: the split.
    data_dir: where TensorFlow data sets are prepared; None is their default.
    download: whether data that is not prepared may be downloaded.
    image_size: height and width in pixels: the short side is resized to it
      (antialiased bilinear), then the centre is cut out.  None keeps the
      native size.  If images vary in size, it is 224 for TensorFlow data sets;
      for folders it is 32 if the median short side is below 96, else 224.
    examples: take the first so many examples of the split only.

  Returns:
    A `Source`.

  Raises:
    UserError: if there is no such data, or it cannot be read.
  """
  if image_size is not None and (int(image_size) != image_size or image_size < 1):
    raise errors.UserError(f"image_size must be a positive number of pixels, got {image_size}")
  if dataset == "digits":
    return _digits(split, image_size, examples)
  if dataset.startswith("folder:"):
    return _folder(dataset, split, image_size, examples)
  return _tfds(dataset, split, data_dir, download, image_size, examples)


def find_unreadable(source):
  """Finds the first file of a source that is no readable image.

  To be called when decoding fails during training: a folder that is too large
  for memory is not read in whole when it is opened.

  Args:
    source: a `Source`.

  Returns:
    A `UserError` that names the file, or None if all can be read.
  """
  if not isinstance(source, FileSource):
    return None
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for error in pool.map(lambda file: _error(file, source.image_shape), source.files):
      if error:
        return error
  return None


def _error(file, image_shape):
  try:
    _decode(file, image_shape)
  except errors.UserError as error:
    return error
  return None


# Splits.


def _select(dataset, text, sizes, examples=None):
  """Reads a split such as `"train[:90%]+test"`.

  Args:
    dataset: for messages.
    text: the split.
    sizes: `{name: number of examples}` of the splits that exist.
    examples: keep the first so many examples only.

  Returns:
    A list of `(name, start, stop)`, none of them empty.
  """
  known = {**sizes, "all": sum(sizes.values())} if "all" not in sizes else sizes
  pieces = []
  for part in str(text).split("+"):
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", part)
    if not match:
      raise errors.UserError(
        f"cannot read split {part!r}: write a name, or a slice such as train[:90%] or train[1000:]"
      )
    name = match[1]
    if name not in known:
      raise errors.unknown(f"split of {dataset!r}", name, known)
    start = _boundary(match[2], known[name], 0, part)
    stop = _boundary(match[3], known[name], known[name], part)
    if start >= stop:
      raise errors.UserError(f"split {part!r} of {dataset!r} is empty ({name} has {known[name]})")
    if name in sizes:
      pieces.append((name, start, stop))
      continue
    for inner, size in sizes.items():
      if max(start, 0) < min(stop, size):
        pieces.append((inner, max(start, 0), min(stop, size)))
      start, stop = start - size, stop - size
  size = sum(stop - start for _, start, stop in pieces)
  if examples is None:
    return pieces
  if examples < 1 or examples != int(examples):
    raise errors.UserError(f"examples must be a positive whole number, got {examples}")
  if examples > size:
    raise errors.UserError(f"examples={examples}, but {text!r} of {dataset!r} has only {size}")
  kept = []
  for name, start, stop in pieces:
    stop = min(stop, start + examples)
    if start < stop:
      kept.append((name, start, stop))
    examples -= stop - start
  return kept


def _boundary(text, size, default, part):
  if not text:
    return default
  if text.endswith("%"):
    value = int(text[:-1])
    if abs(value) > 100:
      raise errors.UserError(f"split {part!r} asks for more than 100%")
    value = round(value * size / 100)
  else:
    value = int(text)
  if value < 0:
    value += size
  if not 0 <= value <= size:
    raise errors.UserError(f"split {part!r} reaches beyond its {size} examples")
  return value


# Digits.


def _digits(split, image_size, examples):
  from sklearn import datasets

  bundle = datasets.load_digits()
  images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = bundle.target.astype(np.int64)
  test = _stratified(labels, 360)
  indices = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
  pieces = _select("digits", split, {k: len(v) for k, v in indices.items()}, examples)
  chosen = np.concatenate([indices[name][start:stop] for name, start, stop in pieces])
  images = images[chosen]
  if image_size:
    images = _resize(images, (image_size, image_size, 1)).numpy()
  names = [str(digit) for digit in range(10)]
  return ArraySource(images, name="digits", split=split, class_names=names, labels=labels[chosen])


def _stratified(labels, size):
  """Chooses `size` of `labels`, each class in proportion: a bool mask, always the same."""
  counts = np.bincount(labels)
  share = counts * size / len(labels)
  take = np.floor(share).astype(int)
  largest = np.argsort(take - share, kind="stable")
  take[largest[: size - take.sum()]] += 1
  random = np.random.RandomState(0)  # Its stream is frozen, unlike that of `default_rng`.
  mask = np.zeros(len(labels), bool)
  for label, count in enumerate(take):
    mask[random.permutation(np.flatnonzero(labels == label))[:count]] = True
  return mask


# Folders.


def _folder(dataset, split, image_size, examples):
  root = pathlib.Path(dataset.removeprefix("folder:")).expanduser()
  if not root.is_dir():
    what = "is not a folder" if root.exists() else "does not exist"
    raise errors.UserError(f"{dataset!r}: the folder {str(root)!r} {what}")
  splits, class_names = _find_splits(root)
  if not any(splits.values()):
    raise errors.UserError(
      f"{dataset!r}: no image in {str(root)!r} (endings: {', '.join(ENDINGS)})"
    )
  pieces = _select(dataset, split, {k: len(v) for k, v in splits.items()}, examples)
  if class_names:
    for name in sorted({name for name, _, _ in pieces}):
      _refuse_empty_class(root / name if (root / name).is_dir() else root)

  everything = [file for files in splits.values() for file, _ in files]
  image_shape = _folder_shape(everything, image_size)
  chosen = [entry for name, start, stop in pieces for entry in splits[name][start:stop]]
  files = [file for file, _ in chosen]
  fields = {"name": dataset, "split": split, "class_names": class_names}
  if class_names:
    number = {label: i for i, label in enumerate(class_names)}
    fields["labels"] = np.array([number[label] for _, label in chosen], np.int64)
  if len(files) * np.prod(image_shape) > IN_MEMORY_BYTES:
    return FileSource(files, image_shape=image_shape, **fields)
  images = np.empty((len(files), *image_shape), np.uint8)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for i, image in enumerate(pool.map(lambda file: _decode(file, image_shape), files)):
      images[i] = image
  return ArraySource(images, **fields)


def _is_split(name):
  return name.lower() in _SPLIT_FOLDERS


def _is_image(path):
  return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _folders(folder):
  return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]


def _name(path):
  # The same letters have several encodings in Unicode, and file systems differ in theirs.
  return unicodedata.normalize("NFC", path.name)


def _find_splits(root):
  """Returns `{split: [(file, class or None)]}` and the sorted class names or None."""
  if any(_is_split(folder.name) for folder in _folders(root)):
    splits = {folder.name: _find_classes(folder) for folder in _folders(root)}
    splits = {name: files for name, files in splits.items() if files}
  else:
    splits = {"train": [], "test": []}
    by_class = collections.defaultdict(list)
    for file, label in _find_classes(root):
      by_class[label].append((file, label))
    for files in by_class.values():
      count = round(_TEST_FRACTION * len(files))
      splits["test"] += files[:count]
      splits["train"] += files[count:]
  labels = {label for files in splits.values() for _, label in files}
  if None in labels and len(labels) > 1:
    raise errors.UserError(
      f"{str(root)!r} holds images in class folders and loose ones in another split: label all or"
      " none"
    )
  for name, files in splits.items():
    splits[name] = sorted(files, key=lambda entry: _digest(entry[0], root))
  return splits, None if None in labels else sorted(labels)


def _find_classes(folder):
  """Returns `[(file, class or None)]`, in an order that only the names decide."""
  files = [
    (file, _name(sub)) for sub in _folders(folder) for file in sub.rglob("*") if _is_image(file)
  ]
  loose = [file for file in folder.iterdir() if _is_image(file)]
  if files and loose:
    logging.warning("%d images outside the class folders of %s are left out", len(loose), folder)
  files = files or [(file, None) for file in loose]
  return sorted(files, key=lambda entry: _digest(entry[0], folder))


def _digest(file, root):
  name = unicodedata.normalize("NFC", file.relative_to(root).as_posix())
  return hashlib.md5(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest(), name


def _refuse_empty_class(folder):
  for sub in _folders(folder):
    if not any(_is_image(file) for file in sub.rglob("*")):
      raise errors.UserError(
        f"the class folder {str(sub)!r} holds no image (endings: {', '.join(ENDINGS)}): add some"
        " or remove it"
      )


def _folder_shape(files, image_size):
  """The (height, width, channels) that every image of a folder is brought to."""
  sample = files[:: -(-len(files) // _HEADERS)]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    headers = list(pool.map(_header, sample))
  channels = 1 if all(mode in _GREY_MODES for _, mode in headers) else 3
  if image_size:
    return image_size, image_size, channels
  sizes = {size for size, _ in headers}
  if len(sizes) == 1:
    ((width, height),) = sizes
    return height, width, channels
  side = 32 if np.median([min(size) for size, _ in headers]) < 96 else 224
  return side, side, channels


def _unreadable(file, error):
  reason = " ".join(str(error).split()) or type(error).__name__
  return errors.UserError(f"cannot read the image {str(file)!r}: {reason}; mend or remove it")


def _header(file):
  try:
    with Image.open(file) as image:
      return image.size, image.mode
  except Exception as error:  # Pillow's decoders raise many kinds for a corrupt file.
    raise _unreadable(file, "not an image" if "identify" in str(error) else error) from error


def _decode(file, image_shape):
  """Reads a file as uint8 `image_shape`."""
  height, width, channels = image_shape
  try:
    with Image.open(file) as opened:
      image: Image.Image = ImageOps.exif_transpose(opened)
      if image.mode.startswith("I"):  # 16 bits a pixel
        pixels = np.asarray(image, np.int64)
        image = Image.fromarray((np.clip(pixels, 0, 65535) // 256).astype(np.uint8))
      if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      image = image.convert("RGB" if channels == 3 else "L")
      if image.size != (width, height):
        image = _fit(image, width, height)
      return np.asarray(image).reshape(image_shape)
  except Exception as error:
    raise _unreadable(file, "not an image" if "identify" in str(error) else error) from error


def _fit(image, width, height):
  resized_height, resized_width = _covering(image.height, image.width, height, width)
  image = image.resize((resized_width, resized_height), Image.Resampling.BILINEAR)
  left, top = (resized_width - width) // 2, (resized_height - height) // 2
  return image.crop((left, top, left + width, top + height))


def _covering(height, width, target_height, target_width):
  """The smallest size of this aspect ratio that covers the target."""
  if height * target_width <= width * target_height:
    return target_height, max(target_width, round(width * target_height / height))
  return max(target_height, round(height * target_width / width)), target_width


# TensorFlow Datasets.


def _tfds(dataset, split, data_dir, download, image_size, examples):
  import tensorflow_datasets as tfds

  if data_dir is not None:
    data_dir = pathlib.Path(data_dir).expanduser()
    if not data_dir.is_dir() and not download:
      raise errors.UserError(
        f"data_dir {str(data_dir)!r} is not a folder: point it at the folder in which"
        f" {dataset!r} is prepared"
      )
  builder = _builder(tfds, dataset, data_dir)
  if not builder.is_prepared():
    _prepare(builder, dataset, download)
  features = builder.info.features
  if "image" not in (features or {}) or len(features["image"].shape or ()) != 3:
    raise errors.UserError(f"data set {dataset!r} has no images to learn from (feature 'image')")
  if features["image"].np_dtype != np.uint8:
    raise errors.UserError(
      f"data set {dataset!r} has images of {features['image'].np_dtype}: only uint8 can be read"
    )

  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  sizes = {name: size for name, size in sizes.items() if size}
  pieces = _select(dataset, split, sizes, examples)
  size = sum(stop - start for _, start, stop in pieces)
  instructions = [
    tfds.core.ReadInstruction(name, from_=start, to=stop, unit="abs")
    for name, start, stop in pieces
  ]
  class_names = None
  label = dict(features).get("label")
  labelled = isinstance(label, tfds.features.ClassLabel)
  if label is not None and labelled:
    class_names = label.names or [str(i) for i in range(label.num_classes)]
  height, width, channels = features["image"].shape
  if image_size or not height or not width:
    height = width = image_size or 224
  image_shape = (height, width, channels or 3)
  fields = {"name": dataset, "split": split, "class_names": class_names}
  if size * np.prod(image_shape) > IN_MEMORY_BYTES:
    return StreamSource(
      builder, instructions, labelled, size=size, image_shape=image_shape, **fields
    )
  images, labels = np.empty((size, *image_shape), np.uint8), np.empty(size, np.int64)
  wanted = dict.fromkeys(["image", "label"] if labelled else ["image"], True)
  position = 0
  for instruction in instructions:
    read = builder.as_dataset(
      split=instruction,
      decoders=tfds.decode.PartialDecoding(wanted),
      # One shard after the other: the order of the split, and that of `StreamSource`.
      read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
    )
    read = read.map(
      lambda example: _example(example, 0, image_shape), num_parallel_calls=tf.data.AUTOTUNE
    )
    for batch in read.batch(256).as_numpy_iterator():
      rows = slice(position, position + len(batch["image"]))
      images[rows] = batch["image"]
      if labelled:
        labels[rows] = batch["label"]
      position = rows.stop
  if labelled:
    fields["labels"] = labels
  return ArraySource(images, **fields)


def _builder(tfds, dataset, data_dir):
  name = re.split(r"[/:]", dataset)[0]
  try:
    return tfds.builder(dataset, data_dir=data_dir)
  except tfds.core.registered.DatasetNotFoundError as error:
    if pathlib.Path(dataset).expanduser().is_dir():
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
      f"data set {dataset!r} is not prepared in {str(where)!r}: point --data_dir at a folder that"
      f" holds it, add --download, or run: tfds build {dataset}"
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


def _example(example, index, image_shape):
  """Makes an example of ours from one of a TensorFlow data set."""
  result = {
    "image": _resize(example["image"], image_shape),
    "index": tf.cast(index, tf.int64),
  }
  if "label" in example:
    result["label"] = tf.cast(example["label"], tf.int64)
  return result


def _resize(image, image_shape):
  """Resizes uint8 [..., h, w, c] to cover `image_shape`, and cuts out the centre."""
  target_height, target_width, _ = image_shape
  if image.shape[-3:] == tf.TensorShape(image_shape):
    return image
  shape = tf.shape(image)
  height, width = shape[-3], shape[-2]
  scale = tf.maximum(target_height / height, target_width / width)

  def side(old, new):
    return tf.maximum(tf.cast(tf.round(tf.cast(old, tf.float64) * scale), tf.int32), new)

  new_height, new_width = side(height, target_height), side(width, target_width)
  image = tf.image.resize(image, [new_height, new_width], antialias=True)
  top, left = (new_height - target_height) // 2, (new_width - target_width) // 2
  image = image[..., top : top + target_height, left : left + target_width, :]
  image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
  return tf.ensure_shape(image, [*image.shape[:-3], *image_shape])


def _order_seed(seed, epoch):
  return distribution.fold(pair(seed), 0, epoch)


def pair(seed):
  """Makes an int32 [2] seed of an int, and leaves one that is a pair already."""
  if isinstance(seed, int | np.integer):
    seed = [seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF]
  return tf.cast(seed, tf.int32)
