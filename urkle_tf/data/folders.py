"""Folders of images: the split and class of each file, and its pixels."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import unicodedata

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageOps

from urkle_tf import errors
from urkle_tf.data import fitting, splits

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_OTHER_ENDINGS = (".webp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif")  # not read

# The formats that Pillow may read, whatever the file's ending.  It knows others that start programs
# (EPS) or do not hold photographs.  WebP and GIF files often have the ending of another format.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_TEST_FRACTION = 0.2
_SPLIT_FOLDERS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_NAMED = 5  # damaged images, at most, that a message names besides the first
_HEADERS = 20_000  # headers, at most, that decide the size and the channels of a folder's images


@dataclasses.dataclass(frozen=True)
class Listing:
  """The images of one split of a folder.

  Attributes:
    files: their paths.
    image_shape: (height, width, channels), to which all images are resized.
    class_names: the names of the classes, or None if the images are loose.
    labels: int64 [len(files)], or None if the images are loose.
    names: their paths within the folder.
    origin: int64 [len(files)], their numbers among all images of the folder.
  """

  files: list[pathlib.Path]
  image_shape: tuple[int, int, int]
  class_names: list[str] | None
  labels: np.ndarray | None
  names: list[str]
  origin: np.ndarray


def find(dataset, split, image_size=None, examples=None):
  """Lists the images of a split, without decoding them.

  Args:
    dataset: `"folder:PATH"`.
    split: as in `splits.select`.
    image_size: height and width in pixels, or None.
    examples: take only this many examples, the first ones; None for all.

  Returns:
    A `Listing`.

  Raises:
    UserError: if the folder or split does not exist or has no image, a class has none, an image is
      in two classes, or a header cannot be read.
  """
  if dataset == "folder:":  # which would be the current folder
    raise errors.UserError("'folder:' names no folder: write folder:PATH")
  root = pathlib.Path(os.path.expanduser(dataset.removeprefix("folder:")))
  if not root.is_dir():
    what = "is not a folder" if root.exists() else "does not exist"
    raise errors.UserError(f"{dataset!r}: {str(root)!r} {what}: give a folder of images")
  by_split, class_names = _find_splits(root)
  if not any(by_split.values()):
    raise errors.UserError(
      f"{dataset!r}: no image in {str(root)!r}: give a folder with files {', '.join(ENDINGS)}"
    )
  sizes = {name: len(entries) for name, entries in by_split.items()}
  pieces = splits.select(dataset, split, sizes, examples)
  if class_names:
    for name in sorted({name for name, _, _ in pieces}):
      _refuse_empty_class(root / name if (root / name).is_dir() else root)

  everything = [file for files in by_split.values() for file, _ in files]
  image_shape = _common_shape(root, everything, image_size)
  chosen = [entry for name, start, stop in pieces for entry in by_split[name][start:stop]]
  labels = None
  if class_names:
    number = {label: i for i, label in enumerate(class_names)}
    labels = np.array([number[label] for _, label in chosen], np.int64)
  names = [file.relative_to(root).as_posix() for file, _ in chosen]
  files, origin = [file for file, _ in chosen], splits.origins(pieces, sizes)
  return Listing(files, image_shape, class_names, labels, names, origin)


def read(files, image_shape):
  """Decodes all `files`, a list of paths: uint8 [n, *image_shape].

  Raises:
    UserError: if files are not readable images.
  """
  images = np.empty((len(files), *image_shape), np.uint8)
  try:
    with concurrent.futures.ThreadPoolExecutor() as pool:
      for i, image in enumerate(pool.map(lambda file: decode(file, image_shape), files)):
        images[i] = image
  except errors.UserError as error:
    raise find_unreadable(files, image_shape) or error from error
  return images


def find_unreadable(files, image_shape):
  """A `UserError` about those of `files` that are not readable images, or None."""
  try:
    _each(lambda file: decode(file, image_shape) is None, files)
  except errors.UserError as error:
    return error
  return None


def _each(read_one, files):
  """[read_one(file) of all files]; raises a `UserError` that names those it cannot read."""

  def attempt(file):
    try:
      return read_one(file), None
    except errors.UserError as error:
      return None, (file, error)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = list(pool.map(attempt, files))
  damaged = [bad for _, bad in results if bad]
  if damaged:
    (_, first), *others = damaged
    names = ", ".join(repr(str(file)) for file, _ in others[:_NAMED])
    more = f" (and {len(others)} more: {names}{', ...' if len(others) > _NAMED else ''})"
    raise errors.UserError(f"{first}{more if others else ''}")
  return [value for value, _ in results]


def decode(file, image_shape):
  """Reads a file as uint8 `image_shape`; for an animation, its first picture.

  Raises:
    UserError: if it is not a readable image.
  """
  height, width, channels = image_shape
  try:
    with Image.open(file, formats=_FORMATS) as opened:
      image: Image.Image = ImageOps.exif_transpose(opened)
      if image.mode.startswith("I"):  # 16 bits a pixel
        pixels = np.asarray(image, np.int64)
        image = Image.fromarray((np.clip(pixels, 0, 65535) // 256).astype(np.uint8))
      if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      image = image.convert("RGB" if channels == 3 else "L")
      return np.asarray(fitting.fit_pillow(image, width, height)).reshape(image_shape)
  except Exception as error:
    raise _unreadable(file, error) from error


def _looks_like_image(path, endings=ENDINGS):
  return path.suffix.lower() in endings and not path.name.startswith(".")


def _folders(folder):
  """The folders in a folder, symbolic links included; raises `UserError` for a circular link."""
  found = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
  here = folder.resolve()
  for link in filter(pathlib.Path.is_symlink, found):
    if link.resolve() in (here, *here.parents):
      raise errors.UserError(
        f"{str(link)!r} is a symbolic link to a folder that contains it: remove the link"
      )
  return found


def _name(path):
  # Unicode has several forms of the same letter, and file systems use different ones.
  return unicodedata.normalize("NFC", path.name)


def _find_splits(root):
  """Returns `{split: [(file, class or None)]}` and the sorted class names or None."""
  if any(folder.name.lower() in _SPLIT_FOLDERS for folder in _folders(root)):
    found = {folder.name: _find_classes(folder) for folder in _folders(root)}
    found = {name: files for name, files in found.items() if files}
    unlabelled = all(label is None for files in found.values() for _, label in files)
    if unlabelled and any(name.lower() not in _SPLIT_FOLDERS for name in found):
      logging.warning(
        "%s: the folders %s are read as splits without labels, because of their names; if they are "
        "classes, move all of them into a folder train",
        root,
        ", ".join(found),
      )
  else:
    found = {"train": [], "test": []}
    by_class = collections.defaultdict(list)
    for file, label in _find_classes(root):
      by_class[label].append((file, label))
    for files in by_class.values():
      count = round(_TEST_FRACTION * len(files))
      found["test"] += files[:count]
      found["train"] += files[count:]
  _check_links(found)
  labels = {label for files in found.values() for _, label in files}
  if None in labels and len(labels) > 1:
    raise errors.UserError(
      f"{str(root)!r} holds class folders in one split and loose images in another: use class"
      " folders in all splits, or in none"
    )
  for name, files in found.items():
    found[name] = sorted(files, key=lambda entry: _digest(entry[0], root))
  return found, None if None in labels else sorted(labels)


def _find_classes(folder):
  """Returns `[(file, class or None)]`, in an order that depends only on the names."""
  below = [(file, _name(sub)) for sub in _folders(folder) for file in sub.rglob("*")]
  here = list(folder.iterdir())
  inside = [entry for entry in below if _looks_like_image(entry[0])]
  files = [entry for entry in inside if entry[0].is_file()]
  outside = [file for file in here if _looks_like_image(file)]
  loose = [file for file in outside if file.is_file()]
  named = [*(file for file, _ in inside), *outside]
  if left_out := sum(not file.is_dir() for file in named) - len(files) - len(loose):
    logging.warning(
      "%d images of %s are left out, because they are broken links or not files", left_out, folder
    )
  everything = [*(file for file, _ in below), *here]
  if unread := sum(_looks_like_image(file, _OTHER_ENDINGS) for file in everything):
    words = "%d images of %s are left out: save them as %s to use them"
    logging.warning(words, unread, folder, ", ".join(ENDINGS))
  if files and loose:
    logging.warning("%d images outside the class folders of %s are left out", len(loose), folder)
  files = files or [(file, None) for file in loose]
  return sorted(files, key=lambda entry: _digest(entry[0], folder))


def _check_links(by_split):
  """Checks links: raises `UserError` for an image of two classes, and warns of two splits."""
  folders: dict[pathlib.Path, str] = {}
  seen: dict[str, tuple[str, pathlib.Path, str | None]] = {}
  twice = 0
  for split, files in by_split.items():
    for file, label in files:
      if file.parent not in folders:
        folders[file.parent] = os.path.realpath(file.parent)
      target = os.path.join(folders[file.parent], file.name)
      if file.is_symlink():
        target = os.path.realpath(file)
      other_split, other, other_label = seen.setdefault(target, (split, file, label))
      if other_label != label:
        raise errors.UserError(
          f"{str(other)!r} and {str(file)!r} are the same image, by a symbolic link, in two "
          "classes: remove one of them"
        )
      twice += other_split != split
  if twice:
    logging.warning("%d images are in two splits, by symbolic links", twice)


def _digest(file, root):
  name = unicodedata.normalize("NFC", file.relative_to(root).as_posix())
  return hashlib.md5(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest(), name


def _refuse_empty_class(folder):
  for sub in _folders(folder):
    if not any(_looks_like_image(file) and file.is_file() for file in sub.rglob("*")):
      raise errors.UserError(
        f"the class folder {str(sub)!r} holds no image (endings: {', '.join(ENDINGS)}): add some"
        " or remove it"
      )


def _common_shape(root, files, image_size):
  """The (height, width, channels) to which all images of a folder are resized."""
  sample = files[:: -(-len(files) // _HEADERS)]
  headers = _each(_header, sample)
  channels = 1 if all(mode in _GREY_MODES for _, mode in headers) else 3
  if image_size:
    return image_size, image_size, channels
  sizes = {size for size, _ in headers}
  if len(sizes) == 1:
    ((width, height),) = sizes
    return height, width, channels
  side = 32 if np.median([min(size) for size, _ in headers]) < 96 else 224
  words = "the images of %s differ in size and are resized to %dx%d: --image_size changes that"
  logging.warning(words, root, side, side)
  return side, side, channels


def _header(file):
  """(the size of the upright image, its mode)."""
  try:
    with Image.open(file, formats=_FORMATS) as image:
      exif = Image.Image.getexif(image)  # that of PNG would decode the image
      on_its_side = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
      return image.size[::-1] if on_its_side else image.size, image.mode
  except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
    raise _unreadable(file, error) from error


def _unreadable(file, error):
  reason = "not an image" if "identify" in str(error) else errors.reason(error)
  reason = reason or type(error).__name__
  return errors.UserError(f"cannot read the image {str(file)!r}: {reason}; fix or remove it")
