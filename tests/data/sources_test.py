"""Every kind of data set, its order, its splits, and one clear line for each mistake."""

import os
import re
import shutil
import struct
import sys
import unicodedata
import zlib

import commands
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import DATA_DIR, needs_data, refused, refuses
from PIL import Image
from sklearn import datasets

from urkle_tf.data import fitting, folders, sources
from urkle_tf.training import batches


def write(path, pixels, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8), mode).save(path)


def flat(color, height=6, width=6):
  return np.broadcast_to(np.uint8(color), (height, width, 3))


@pytest.fixture
def folder(tmp_path):
  """Two classes of 10 and 5 images of 6x6; image i of the first is red i, else green i."""
  for i in range(10):
    write(tmp_path / "art" / f"a {i}.png", flat([i, 0, 0]))
  for i in range(5):
    write(tmp_path / "naïve 猫" / f"ü{i}.PNG", flat([0, i, 0]))
  (tmp_path / "art" / "notes.txt").write_text("not an image")
  (tmp_path / "art" / "._hidden.png").write_text("not an image")
  return tmp_path


def load(folder, split="all", **options):
  return sources.load(f"folder:{folder}", split, **options)


def examples(source, **options):
  return list(source.epoch(**options).as_numpy_iterator())


def orders(source, *keys):
  """The indices of shuffled epochs, a list for each (seed, epoch, skip)."""

  def indices(key):  # One trace serves all: a source is made in graphs, too.
    seed = tf.stack([tf.cast(key[0], tf.int32), 0])
    epoch = source.epoch(seed, epoch=key[1], skip=key[2]).map(lambda example: example["index"])
    return epoch.batch(source.size)

  read = tf.data.Dataset.from_tensor_slices(np.int64(keys)).flat_map(indices)
  return [order.tolist() for order in read.as_numpy_iterator()]


# Digits.


def test_digits_are_all_of_the_bundled_digits_once_and_stratified():
  train, test = sources.load(split="train"), sources.load(split="test")
  assert (train.size, test.size) == (1437, 360)
  assert train.image_shape == (8, 8, 1)
  assert train.images.dtype == np.uint8
  assert train.images.max() == 255
  bundle = datasets.load_digits()
  ours = np.concatenate([train.images, test.images]).reshape(1797, 64) / 255 * 16
  theirs = bundle.images.reshape(1797, 64)
  labels = np.concatenate([train.labels, test.labels])

  def rows(images, targets):
    return sorted(map(tuple, np.column_stack([np.rint(images), targets]).astype(int)))

  assert rows(ours, labels) == rows(theirs, bundle.target)
  share = np.bincount(test.labels) / np.bincount(bundle.target)
  np.testing.assert_allclose(share, 0.2, atol=0.005)


def test_digits_cut_never_moves():
  # A literal of the day it was written: checkpoints and reports rely on the cut.
  test = sources.load(split="test")
  assert test.labels[:20].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3, 6, 6, 9, 1, 0, 1, 3, 6]


def test_digits_may_be_resized():
  source = sources.load("digits", image_size=16, examples=3)
  assert source.images.shape == (3, 16, 16, 1)
  small = sources.load("digits", examples=3).images.astype(np.float32)
  expected = tf.image.resize(small, [16, 16], antialias=True).numpy()
  np.testing.assert_allclose(source.images, expected, atol=0.51)
  same = sources.load("digits", image_size=8, examples=3).images  # their own size
  np.testing.assert_array_equal(same, small)


# Splits.


@pytest.mark.parametrize(
  "split, size",
  [
    ("train[:90%]", 1293),
    ("train[90%:]", 144),
    ("train[1000:]", 437),
    ("train[:1000]", 1000),
    ("train[-37:]", 37),
    ("train[10:20]+test[:5]", 15),
    ("train+test", 1797),
    ("all", 1797),
    ("all[1400:1500]", 100),
  ],
)
def test_slices(split, size):
  source = sources.load("digits", split)
  assert source.size == len(source.images) == len(source.labels) == size


def test_slices_are_cut_from_the_whole():
  train, test = sources.load("digits", "train").images, sources.load("digits", "test").images
  np.testing.assert_array_equal(sources.load("digits", "train[45:50]").images, train[45:50])
  both = sources.load("digits", "all[1400:1500]").images
  np.testing.assert_array_equal(both, np.concatenate([train[1400:], test[:63]]))
  some = sources.load("digits", "train[:10]+test", examples=12).images
  np.testing.assert_array_equal(some, np.concatenate([train[:10], test[:2]]))


# Order.


@pytest.mark.parametrize("streamed", [False, True])
def test_order_is_a_function_of_seed_and_epoch(sharded, monkeypatch, streamed):
  source = sources.load("digits", examples=90)
  if streamed:
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(sources, "_SHUFFLE_BLOCK", 32)
    source = sources.load("numbered", data_dir=sharded, image_size=4)
    assert len(source._shards["start"]) == 4
  keys = [(1, 0, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (1, 1, 37)]
  first, again, next_epoch, other_seed, skipped = orders(source, *keys)
  assert sorted(first) == list(range(90))
  assert first == again
  assert first not in (next_epoch, other_seed, sorted(first))
  assert skipped == next_epoch[37:]
  assert [e["index"] for e in examples(source, seed=1, shuffle=False)] == list(range(90))
  tf.random.set_seed(7)
  found = examples(source, seed=1, epoch=0)
  assert [e["index"] for e in found] == first
  if streamed:
    assert sorted(e["image"][0, 0, 0] for e in found) == sorted(first)


# Folders.


def test_folder_of_class_folders(folder):
  source = load(folder)
  assert (source.size, source.image_shape) == (15, (6, 6, 3))
  assert source.class_names == ["art", "naïve 猫"]
  assert np.bincount(source.labels).tolist() == [10, 5]
  for image, label in zip(source.images, source.labels, strict=True):
    assert image[..., 1 - label].max() == 0
  assert sorted(source.images[source.labels == 0][:, 0, 0, 0]) == list(range(10))


def test_folder_is_cut_by_class_always_in_the_same_way(folder):
  train, test = load(folder, "train"), load(folder, "test")
  assert [np.bincount(part.labels).tolist() for part in (train, test)] == [[8, 4], [2, 1]]
  pixels = np.concatenate([train.images, test.images])[:, 0, 0]
  assert len(np.unique(pixels, axis=0)) == 14  # both classes have a black one
  np.testing.assert_array_equal(train.images, load(folder, "train").images)
  # The order does not follow the classes, so that slices hold all of them.
  assert (np.diff(load(folder).labels) != 0).sum() > 2
  # More images leave the others where they are, and a class of one image is in training.
  write(folder / "zoo" / "z.png", flat([0, 0, 9]))
  more, again = load(folder, "train"), load(folder, "test")
  assert more.class_names == again.class_names == ["art", "naïve 猫", "zoo"]
  assert np.bincount(more.labels).tolist() == [8, 4, 1]
  np.testing.assert_array_equal(again.images, test.images)


def test_folder_of_splits(folder, tmp_path):
  other = tmp_path / "splits"
  for i in range(3):
    write(other / "train" / "b" / f"{i}.bmp", flat(i))
    write(other / "train" / "a" / "nested" / f"{i}.jpg", flat(100))
  write(other / "val" / "b" / "x.jpeg", flat(200))
  train, val = load(other, "train"), load(other, "val")
  assert (train.size, val.size) == (6, 1)
  assert train.class_names == val.class_names == ["a", "b"]
  assert val.labels.tolist() == [1]
  assert load(other, "all").size == 7
  refuses("'test' & train, val", load, other, "test")


def test_a_class_with_the_name_of_a_split(tmp_path, warnings):
  kinds = "classes/bus classes/train loose/train loose/val named/more/a named/test/a"
  for kind in kinds.split():
    write(tmp_path / kind / "x.png", flat(0))
  assert load(tmp_path / "loose").class_names is None
  assert load(tmp_path / "named").class_names == ["a"]
  assert not warnings
  assert load(tmp_path / "classes").class_names is None
  (warning,) = warnings
  assert "the folders bus, train are read as splits without labels" in warning


def test_folder_of_loose_images(tmp_path):
  for i in range(10):
    write(tmp_path / f"{i}.png", flat(i))
  (tmp_path / "empty").mkdir()
  source = load(tmp_path, "train")
  assert (source.size, source.class_names, source.labels) == (8, None, None)
  assert set(examples(source)[0]) == {"image", "index"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes(tmp_path, mode):
  pixels = np.zeros((4, 6), np.uint8)
  pixels[:, 3:] = 255
  if mode == "I;16":
    image = Image.fromarray(pixels.astype(np.uint16) * 257)
  else:
    image = Image.fromarray(pixels).convert("RGB").convert(mode)
  image.save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
  source = load(tmp_path)
  channels = 1 if mode in ("1", "L", "LA", "I;16") else 3
  assert source.image_shape == (4, 6, channels)
  expected = np.repeat(pixels[..., None], channels, axis=-1)
  np.testing.assert_allclose(source.images[0], expected, atol=5 if mode == "CMYK" else 0)


def test_one_coloured_image_makes_all_rgb(tmp_path):
  write(tmp_path / "grey.png", np.full((4, 4), 90))
  assert load(tmp_path).image_shape == (4, 4, 1)
  write(tmp_path / "color.png", flat([1, 2, 3], 4, 4))
  source = load(tmp_path)
  assert source.image_shape == (4, 4, 3)
  assert {tuple(image[0, 0]) for image in source.images} == {(90, 90, 90), (1, 2, 3)}


def test_transparent_parts_are_white(tmp_path):
  write(tmp_path / "x.png", np.zeros((4, 4, 4)))
  assert load(tmp_path).images.min() == 255


def test_rotated_photographs_are_turned_upright(tmp_path):
  image = Image.fromarray(np.repeat(np.uint8([[0] * 8, [255] * 8]), 4, axis=0))  # white below
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  image.save(tmp_path / "x.png", exif=exif)
  pixels = load(tmp_path).images[0]
  assert pixels[0].min() == 255
  assert pixels[-1].max() == 0


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_photographs_on_their_side_have_the_size_of_upright_ones(tmp_path, ending):
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  wide = Image.fromarray(np.repeat(np.uint8([[255] * 4 + [0] * 36]), 30, axis=0))
  wide.save(tmp_path / f"x.{ending}", exif=exif)
  source = load(tmp_path)
  assert source.image_shape == (40, 30, 1)
  assert (source.images > 128).mean() == 0.1  # nothing is cut off
  wide.save(tmp_path / f"y.{ending}")
  assert load(tmp_path).image_shape == (32, 32, 1)


@pytest.mark.parametrize("side, expected", [(20, 32), (95, 32), (96, 224)])
def test_size_where_images_vary(tmp_path, caplog, side, expected):
  write(tmp_path / "a.png", flat(50, side, side + 7))
  write(tmp_path / "b.png", flat(50, side + 3, side))
  assert load(tmp_path, image_size=10).image_shape == (10, 10, 3)
  assert not caplog.records
  assert load(tmp_path).image_shape == (expected, expected, 3)
  assert f"are resized to {expected}x{expected}" in caplog.text


def test_the_centre_is_kept(tmp_path, rng):
  """Resizing covers the square, and what is cut off is the same on both sides."""
  pixels = rng.integers(0, 255, (12, 40, 3), np.uint8)
  write(tmp_path / "a.png", pixels)
  ours = load(tmp_path, image_size=6).images[0]
  resized = tf.image.resize(pixels.astype(np.float32), [6, 20], antialias=True).numpy()
  np.testing.assert_allclose(ours, resized[:, 7:13], atol=1.01)
  # What TensorFlow data sets go through gives the same.
  theirs = fitting.fit(tf.constant(pixels), (6, 6, 3))
  np.testing.assert_allclose(theirs, resized[:, 7:13], atol=0.51)


def test_images_that_were_scaled_already_are_refused():
  words = "images of a source are uint8 [size, h, w, c], got"
  for images in (np.zeros([3, 4, 4, 1], np.float32), np.zeros([3, 4, 4], np.uint8)):
    refuses(words, sources.ArraySource, images, name="mine", split="train")


def test_large_folders_are_decoded_when_needed(folder, monkeypatch):
  write(folder / "art" / "wide.png", flat([9, 9, 9], 6, 20))
  small = load(folder, image_size=5)
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 15 * 75)
  lazy = load(folder, image_size=5)
  assert isinstance(small, sources.ArraySource)
  assert isinstance(lazy, sources.FileSource)
  assert lazy.find_unreadable() is None
  np.testing.assert_array_equal(small.labels, lazy.labels)
  for options in ({"seed": 4, "epoch": 1}, {"seed": 4, "epoch": 1, "skip": 3}, {"shuffle": False}):
    for one, two in zip(examples(small, **options), examples(lazy, **options), strict=True):
      assert one.keys() == two.keys()
      same(one.values(), map(two.get, one))


def test_corrupt_files_of_a_large_folder_are_found(folder, monkeypatch):
  bad, worse = folder / "art" / "a 3.png", folder / "art" / "a 5.png"
  for file in (bad, worse):
    file.write_bytes(file.read_bytes()[:-30])
  refuses(f"{bad} & {worse} & 1 more", load, folder)  # one that fits in memory
  whole = worse.read_bytes()
  worse.write_bytes(b"nothing")
  (folder / "art" / "a 7.png").write_bytes(b"")
  refuses(f"{worse} & a 7.png & not an image", load, folder)
  (folder / "art" / "a 7.png").unlink()
  worse.write_bytes(whole)
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  source = load(folder)
  with refused(str(bad), str(worse)), sources.naming_unreadable(source), batches.in_one_line():
    examples(source)


LEFT = """
import sys
from urkle_tf.data import sources

sources.IN_MEMORY_BYTES = 0
images = sources.load(sys.argv[1], "all").batches(2).repeat().prefetch(10_000)

def left():
  cycle = [iter(images)]
  cycle.append(cycle)
  next(cycle[0])

left()
"""


@pytest.mark.full
def test_python_ends_while_images_of_a_large_folder_are_decoded(tmp_path):
  """An iterator is left in a reference cycle, as an error leaves it; now and then it hung."""
  for number in range(8):
    write(tmp_path / f"{number}.png", flat(number, 64, 64))
  commands.process(sys.executable, "-c", LEFT, f"folder:{tmp_path}", timeout=60)


def png(width, height, rows):
  """A PNG file that says one size, and holds `rows` bytes of pixels."""

  def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  content = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in content)


HOSTILE = {
  "decompression bomb": (png(30_000, 30_000, b"\0" * 10**6), "decompression bomb"),
  "header larger than the pixels": (png(60, 60, b"\0" * 70), "cannot read"),
  "no width": (png(0, 6, b"\0" * 7), "cannot read"),
  "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EOF\n", "not an image"),
  "HTML": (b"<html>404</html>", "not an image"),
  "nothing": (b"", "cannot read"),
  "half of an image": (png(60, 60, b"\0" * 61 * 60)[:60], "cannot read"),
  "only a signature": (b"\x89PNG\r\n\x1a\n", "cannot read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_named_and_not_decoded(folder, name):
  content, words = HOSTILE[name]
  bad = folder / "art" / "bad.png"
  bad.write_bytes(content)
  refuses(f"{bad} & {words}", load, folder, image_size=6)


def test_a_header_smaller_than_the_pixels_is_read_as_it_says(tmp_path):
  (tmp_path / "a.png").write_bytes(png(3, 2, b"\0\7\7\7" * 9))
  np.testing.assert_array_equal(load(tmp_path).images, np.full((1, 2, 3, 1), 7))


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
  frames = [Image.fromarray(np.array(flat([i, 0, 0]))) for i in (9, 200)]
  options = {"save_all": True, "append_images": frames[1:]}
  frames[0].save(tmp_path / "a.png", **options)
  frames[0].save(tmp_path / "b.gif", **options)
  (tmp_path / "b.gif").rename(tmp_path / "b.png")
  assert Image.open(tmp_path / "a.png").n_frames == 2
  np.testing.assert_array_equal(load(tmp_path).images, np.stack([flat([9, 0, 0])] * 2))


def test_the_same_letters_in_another_encoding_are_the_same_class(folder):
  write(folder / unicodedata.normalize("NFD", "naïve 猫") / "other.png", flat([0, 200, 0]))
  source = load(folder)
  assert source.class_names == ["art", "naïve 猫"]
  assert np.bincount(source.labels).tolist() == [10, 6]


def test_folder_names_with_special_characters(tmp_path):
  for name in ("with space", "new\nline", "quote'\"", "$(touch x)", "%s {0}", "-rf"):
    write(tmp_path / name / "x.png", flat(len(name)))
  source = load(tmp_path)
  assert source.size == len(source.class_names) == 6
  for image, label in zip(source.images, source.labels, strict=True):
    assert image.max() == len(source.class_names[label])
  (tmp_path / "new\nline" / "x.png").write_text("no image")
  refuses("not an image", load, tmp_path)


# Links.


def test_links_to_folders_and_files_are_followed(folder, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  write(elsewhere / "zoo" / "z.png", flat([0, 0, 9]))
  write(elsewhere / "single.png", flat([77, 0, 0]))
  (folder / "zoo").symlink_to(elsewhere / "zoo")
  (folder / "art" / "linked.png").symlink_to(elsewhere / "single.png")
  source = load(folder)
  assert source.class_names == ["art", "naïve 猫", "zoo"]
  assert np.bincount(source.labels).tolist() == [11, 5, 1]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_in_a_circle_is_refused(folder, target):
  (folder / "self").symlink_to(target)
  refuses(f"{folder / 'self'} & symbolic link", load, folder)


def test_a_circle_deeper_down_does_no_harm(folder):
  before = load(folder)
  (folder / "art" / "again").symlink_to("../..")
  (folder / "art" / "a.png").symlink_to("b.png")  # two links to each other
  (folder / "art" / "b.png").symlink_to("a.png")
  source = load(folder)
  assert source.size == before.size
  np.testing.assert_array_equal(source.labels, before.labels)


@pytest.mark.parametrize("link, target", [("art/z.png", "naïve 猫/ü1.PNG"), ("copy", "art")])
def test_an_image_of_two_classes_is_refused(folder, link, target):
  (folder / link).symlink_to(folder / target)
  refuses("in two classes", load, folder)


@pytest.fixture
def warnings(monkeypatch):
  """What is logged of folders."""
  found = []
  monkeypatch.setattr(folders.logging, "warning", lambda text, *values: found.append(text % values))
  return found


def test_what_is_no_file_is_left_out_with_a_count(folder, warnings):
  (folder / "art" / "gone.png").symlink_to(folder / "nowhere.png")
  os.mkfifo(folder / "art" / "pipe.png")  # to open it would wait for ever
  (folder / "art" / "folder.png").mkdir()
  assert load(folder).size == 15
  (said,) = warnings
  assert re.match("2 images of .*left out", said)


def test_images_with_endings_that_are_not_read_are_counted(folder, warnings):
  for name in ("art/a.heic", "art/deep/b.WebP", "c.tif", "art/._d.gif", "art/e.mp4"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
  assert load(folder).size == 15
  (said,) = warnings
  assert re.match(r"3 images of .* are left out: save them as .png, .jpg", said)


def test_a_broken_link_among_loose_images_is_counted(tmp_path, warnings):
  write(tmp_path / "0.png", flat(0))
  (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
  assert load(tmp_path).size == 1
  (said,) = warnings
  assert said.startswith("1 images of ")


def test_images_in_two_splits_are_counted(tmp_path, warnings):
  for i in range(3):
    write(tmp_path / "train" / "a" / f"{i}.png", flat(i))
    write(tmp_path / "test" / "a" / f"{i}.png", flat(i + 100))
  (tmp_path / "test" / "a" / "leak.png").symlink_to(tmp_path / "train" / "a" / "0.png")
  load(tmp_path, "train")
  assert warnings == ["1 images are in two splits, by symbolic links"]


def test_a_folder_that_vanishes_is_named(folder, monkeypatch):
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  source = load(folder)
  shutil.rmtree(folder / "art")  # not after the first image: by then all may have been read
  with pytest.raises(tf.errors.OpError):
    examples(source)
  with refused(str(folder / "art"), "No such file"):
    raise source.find_unreadable()


@pytest.mark.parametrize(
  "name, split, options, words",
  [
    ("digits", "tests", {}, "'tests' & 'test' & train"),
    ("digits", "train[:0]", {}, "empty & train[:0] & 1437"),
    ("digits", "train[:2000]", {}, "beyond & 1437"),
    ("digits", "train[:200%]", {}, "100%"),
    ("digits", "train[1:2:3]", {}, "cannot read split & train[:90%]"),
    ("digits", "", {}, "cannot read split"),
    ("digits", "train", {"examples": 1438}, "1438 & 1437"),
    ("digits", "train", {"examples": 0}, "examples & 0"),
    ("digits", "train", {"image_size": 0}, "image_size & 0"),
    ("folder:nowhere", "train", {}, "nowhere"),
    ("folder:FOLDER/art/notes.txt", "train", {}, "notes.txt"),
    ("folder:FOLDER/void", "train", {}, "no image"),
    ("folder:FOLDER", "all", {}, "no image & void"),
    ("folder:FOLDER/mixed", "train", {}, "in all splits, or in none"),
    ("cifar10", "train", {"data_dir": "nothing/here"}, "nothing/here"),
    ("cifar10", "train", {"data_dir": "/"}, "not prepared"),
    ("mnistt", "train", {"data_dir": "/"}, "mnist"),
    ("digit", "train", {}, "digits"),
    ("a b", "train", {}, "a b"),
    ("/", "train", {}, "cannot open"),
  ],
)
def test_mistakes_end_in_one_line(folder, name, split, options, words):
  (folder / "void").mkdir()
  if "mixed" in name:
    write(folder / "mixed" / "train" / "a" / "1.png", flat(1))
    write(folder / "mixed" / "test" / "1.png", flat(1))
  refuses(words, sources.load, name.replace("FOLDER", str(folder)), split, **options)


# TensorFlow Datasets.


@needs_data
@pytest.mark.parametrize(
  "name, split, options, words",
  [
    ("cifra10", "train", {}, "'cifar10'"),
    ("cifar10_corrupted/fogg_1", "train", {}, "'fog_1'"),
    ("cifar10_corrupted/fog_1", "train", {}, "--download & tfds build cifar10_corrupted/fog_1"),
    ("cifar10", "validation", {}, "train & test"),
    ("cifar10", "train", {"examples": 50001}, "examples=50001"),
    ("cifar10:9.9.9", "train", {}, "9.9.9"),
  ],
)
def test_tfds_mistakes(name, split, options, words):
  refuses(words, sources.load, name, split, data_dir=DATA_DIR, **options)


@needs_data
@pytest.mark.parametrize("name, shape", [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_tfds(name, shape):
  source = sources.load(name, "test[:300]", data_dir=DATA_DIR)
  assert (source.size, source.image_shape) == (300, shape)
  assert len(source.class_names) == 10
  import tensorflow_datasets as tfds

  theirs = tfds.as_numpy(tfds.load(name, split="test[:300]", data_dir=DATA_DIR, download=False))
  for i, example in enumerate(theirs):
    np.testing.assert_array_equal(source.images[i], example["image"])
    assert source.labels[i] == example["label"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
  """A prepared data set of 90 numbered images of varying size, in several shards.

  Image i is all of value i, and of class i % 3.
  """
  import tensorflow_datasets as tfds

  image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
  label = tfds.features.ClassLabel(names=["x", "y", "z"])
  features = {"image": image, "label": label, "other": tfds.features.Text()}
  example = lambda i: {"image": np.full((4 + i % 3, 5, 3), i, np.uint8), "label": i % 3}  # noqa: E731
  rows = {
    split: [(i, {**example(i), "other": "text"}) for i in range(count)]
    for split, count in (("train", 90), ("test", 7))
  }
  folder = tmp_path_factory.mktemp("tfds")
  tfds.dataset_builders.store_as_tfds_dataset(
    *("numbered", "1.0.0", tfds.features.FeaturesDict(features), rows),
    data_dir=folder,
    download_config=tfds.download.DownloadConfig(num_shards=4),
  )
  return folder


def test_streaming_gives_what_memory_gives(sharded, monkeypatch):
  options = {"data_dir": sharded, "image_size": 4}
  for split in ("train[25%:80%]", "train[:10]+test", "all"):
    memory = sources.load("numbered", split, **options)
    with monkeypatch.context() as patch:
      patch.setattr(sources, "IN_MEMORY_BYTES", 0)
      stream = sources.load("numbered", split, **options)
    assert isinstance(memory, sources.ArraySource)
    assert isinstance(stream, sources.StreamSource)
    assert stream.size == memory.size
    assert stream.class_names == memory.class_names == ["x", "y", "z"]
    found = examples(stream, shuffle=False)
    assert [e["index"] for e in found] == list(range(memory.size))
    for example in found:
      np.testing.assert_array_equal(example["image"], memory.images[example["index"]])
      assert example["label"] == memory.labels[example["index"]]


def test_streaming_skips_before_decoding(sharded, monkeypatch):
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  source = sources.load("numbered", data_dir=sharded, image_size=4)
  decoded = []
  fit = fitting.fit

  def counted(image, shape):
    tf.py_function(lambda: decoded.append(1), [], [])
    return fit(image, shape)

  monkeypatch.setattr(fitting, "fit", counted)
  assert len(examples(source, seed=0, skip=80)) == len(decoded) == 10


@pytest.fixture
def damageable(sharded, tmp_path):
  """A copy of the data set, and its largest shard."""
  shutil.copytree(sharded, tmp_path / "tfds")
  shards = (tmp_path / "tfds").rglob("numbered-train.tfrecord*")
  return tmp_path / "tfds", max(shards, key=lambda file: file.stat().st_size)


def damage(shard, kind):
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= kind == "flipped"
  shard.write_bytes(content[:-9] if kind == "cut short" else content)
  if kind == "gone":
    shard.unlink()


@pytest.mark.parametrize("kind", ["flipped", "cut short", "gone"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_damaged_records_are_named(damageable, monkeypatch, kind, in_memory):
  data_dir, shard = damageable
  options = {"data_dir": data_dir, "image_size": 4}
  damage(shard, kind)
  with refused(str(shard), "prepare the data set again"):
    if in_memory:
      sources.load("numbered", "train", **options)
    else:
      monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
      source = sources.load("numbered", "train", **options)
      with pytest.raises(tf.errors.OpError):
        examples(source)
      raise source.find_unreadable()


def test_images_of_varying_size_default_to_224(sharded):
  assert sources.load("numbered", data_dir=sharded, examples=2).image_shape == (224, 224, 3)


@pytest.mark.parametrize("kind", ["digits", "folder", "memory", "stream"])
def test_the_origin_of_an_image_is_its_number_in_the_whole(kind, sharded, tmp_path, monkeypatch):
  dataset, options = kind, {"image_size": 4}
  if kind == "folder":
    for i in range(12):
      write(tmp_path / ("test" if i < 3 else "train") / "art" / f"{i}.png", flat(i))
    dataset = f"folder:{tmp_path}"
  if kind in ("memory", "stream"):
    dataset, options = "numbered", options | {"data_dir": sharded}
  if kind == "stream":
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)

  def pairs(split):
    source = sources.load(f"{dataset}:brightness", split, **options)
    images = [example["image"].tobytes() for example in examples(source, shuffle=False)]
    return list(zip(source.origin.tolist(), images, strict=True))

  whole = pairs("all")
  assert sorted(dict(whole)) == list(range(len(whole)))
  part = pairs("test[1:]+train[2:5]")
  assert set(part) < set(whole)


def test_what_is_held_out_is_the_end_and_the_rest_the_beginning():
  whole = sources.load("digits:parity", examples=30)
  rest, held = whole.hold_out(7)
  images, labels = whole.source.images, np.asarray(whole.labels)
  np.testing.assert_array_equal(held.images, images[23:])
  np.testing.assert_array_equal(held.labels, labels[23:])
  np.testing.assert_array_equal([*rest.origin, *held.origin], whole.origin)
  assert (held.class_names, held.size, rest.size, whole.size) == (whole.class_names, 7, 23, 30)
  (batch,) = rest.batches(23, seed=1)
  order = batch["index"].numpy()
  assert sorted(order) == list(range(23))
  np.testing.assert_array_equal(batch["image"], images[order])
  np.testing.assert_array_equal(batch["label"], labels[order])
  np.testing.assert_array_equal(rest.labels, labels[:23])


def test_the_end_of_a_stream_is_held_out():
  """Shards of 4, 3 and 5 examples, of which the last 6 go."""
  stream = sources.StreamSource.__new__(sources.StreamSource)
  stream.size, stream.labels, stream.names, stream.origin = 12, None, None, np.arange(12)
  columns = {"filename": ["a", "b", "c"], "skip": [0, 2, 0], "take": [4, 3, 5], "start": [0, 4, 7]}
  stream._shards = {name: np.array(column) for name, column in columns.items()}
  first = stream._first(6)
  found = [list(column) for column in first._shards.values()]
  assert found == [["a", "b"], [0, 2], [4, 2], [0, 4]]
  assert first.size == len(first.origin) == 6
  assert list(stream._shards["take"]) == [4, 3, 5]
