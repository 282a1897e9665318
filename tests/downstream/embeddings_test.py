"""`represent`: every image's own embedding, under its own name, in every file."""

import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
from cases import refuses
from PIL import Image
from small_models import digits, sequential, small_encoder

import urkle_tf
from urkle_tf.data import sources
from urkle_tf.downstream import embeddings

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def encoder():
  return small_encoder()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """21 images in three class folders."""
  folder = tmp_path_factory.mktemp("photos")
  images, _ = digits()
  for number, image in enumerate(images[:21, ..., 0]):
    place = folder / NAMES[number % 3] / f"photo {number}.png"
    place.parent.mkdir(exist_ok=True)
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(place)
  return folder


@pytest.fixture(scope="module")
def written(exported, photos, tmp_path_factory):
  """(what is returned, the folder), of batches that do not divide the images."""
  folder = tmp_path_factory.mktemp("embedded") / "new"
  arguments = {"encoder": str(exported), "dataset": f"folder:{photos}", "batch_size": 8}
  found = urkle_tf.represent(**arguments, output_dir=str(folder), projector_examples=10)
  return found, folder


def test_each_image_has_its_own_embedding(written, photos, encoder):
  found, _ = written
  assert sorted(found["names"]) == sorted(f"{p.parent.name}/{p.name}" for p in photos.glob("*/*"))
  assert list(found["class_names"]) == list(NAMES)
  columns = (found[column] for column in ("names", "labels", "loc", "scale"))
  for name, label, loc, scale in zip(*columns, strict=True):
    pixels = np.asarray(Image.open(photos / name), np.float32)[None, ..., None] / 255
    wanted = encoder(pixels)
    np.testing.assert_allclose(loc, wanted.loc[0], atol=1e-5)
    np.testing.assert_allclose(scale, wanted.scale[0], atol=1e-5)
    assert NAMES[label] == pathlib.Path(name).parent.name
  assert np.std(found["loc"], 0).min() > 0.1  # images can be told apart


def test_the_files_hold_the_same(written, photos):
  found, folder = written
  with np.load(folder / "embeddings.npz") as arrays:
    assert set(arrays) == {"loc", "scale", "labels", "class_names", "names"}
    for name, values in found.items():
      np.testing.assert_array_equal(arrays[name], values)
  vectors = np.loadtxt(folder / "vectors.tsv", delimiter="\t")
  np.testing.assert_allclose(vectors, found["loc"][:10], rtol=1e-5)
  head, *rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
  assert head == ["label", "name", "sigma", "index"]
  for index, row in enumerate(rows):
    name = found["names"][index]
    assert row[:2] + row[3:] == [name.split("/")[0], name, str(index)]
    assert float(row[2]) == pytest.approx(found["scale"][index].mean(), rel=1e-3)
  assert len(rows) == 10
  sprite = np.asarray(Image.open(folder / "sprite.png"))
  side = sprite.shape[0] // 4  # ten pictures, in a grid of four
  assert sprite.shape[:2] == (4 * side, 4 * side)
  for index, name in enumerate(found["names"][:10]):
    row, column = divmod(index, 4)
    tile = sprite[row * side : (row + 1) * side, column * side : (column + 1) * side]
    original = np.asarray(Image.open(photos / name).resize((side, side), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(tile.reshape(side, side), original)
  assert not sprite[-side:, 2 * side :].any()


def test_any_keras_model_and_images_without_labels(tmp_path, rng):
  model = sequential((6, 4, 3), keras.layers.Conv2D(5, 3))
  model.save(tmp_path / "model.keras")
  pixels = rng.integers(0, 256, (3, 6, 4, 3), np.uint8)
  (tmp_path / "loose").mkdir()
  for number, image in enumerate(pixels):
    Image.fromarray(image).save(tmp_path / "loose" / f"{number}.png")
  arguments = {"encoder": str(tmp_path / "model.keras"), "dataset": f"folder:{tmp_path}/loose"}
  found = embeddings.represent(**arguments, output_dir=tmp_path / "out")
  assert set(found) == {"loc", "names"}
  wanted = np.mean(model(pixels.astype(np.float32) / 255), (1, 2))
  order = [int(name.removesuffix(".png")) for name in found["names"]]
  np.testing.assert_allclose(found["loc"], wanted[order], atol=1e-5)
  assert (tmp_path / "out" / "metadata.tsv").read_text().endswith(f"\n{found['names'][2]}\t2\n")

  # Without files: digits of another size, and nothing for the Projector.
  words = "the encoder takes images of 6x4x3"
  refuses(words, embeddings.represent, arguments["encoder"], output_dir=tmp_path / "digits")
  assert not (tmp_path / "digits").exists()


def test_names_that_are_not_utf_8(exported, photos, tmp_path):
  folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos\xff"))
  shutil.copytree(photos, folder)
  last = next(folder.rglob("photo 20.png"))
  os.rename(last, os.fsencode(last.parent) + b"/\xe9t\xe9.png")  # Latin-1
  arguments = {"dataset": f"folder:{folder}", "output_dir": str(tmp_path / "new")}
  for _ in range(2):  # the second time, flags.cfg is read
    urkle_tf.represent(str(exported), **arguments)
  assert b"\xe9t\xe9.png" in (tmp_path / "new" / "metadata.tsv").read_bytes()
  assert len(np.load(tmp_path / "new" / "embeddings.npz")["loc"]) == 21


def test_data_by_name_and_nothing_written(exported, encoder):
  found = embeddings.represent(str(exported), split="test", examples=5)
  source = sources.load("digits", "test", examples=5)
  np.testing.assert_array_equal(found["labels"], source.labels)
  wanted = encoder(source.images.astype(np.float32) / 255).loc
  np.testing.assert_allclose(found["loc"], wanted, atol=1e-5)
  assert "names" not in found


def test_an_image_without_a_label_has_none_in_the_projector():
  """TFDS labels it -1, which was taken for the last class."""
  found = {"labels": np.array([1, -1, 0]), "class_names": np.array(["a", "b"])}
  assert embeddings._columns(found, 3)["label"] == ["b", "", "a"]


def test_a_folder_belongs_to_one_command(written, exported, photos, tmp_path):
  arguments = {"dataset": f"folder:{photos}", "output_dir": str(written[1]), "batch_size": 8}
  arguments["projector_examples"] = 10
  refuses("--split=all", embeddings.represent, str(exported), **arguments, split="train")
  again = embeddings.represent(str(exported), **arguments)  # of the encoder as it is now
  assert len(again["loc"]) == 21
  embeddings.represent(str(exported), tmp_path, split="test", examples=4, projector_examples=0)
  assert {path.name for path in tmp_path.iterdir()} == {".lock", "embeddings.npz", "flags.cfg"}


def test_a_torn_image_is_named_wherever_it_is_found(exported, photos, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  whole = next(photos.glob("*/*")).read_bytes()
  (tmp_path / "torn").mkdir()
  (tmp_path / "torn" / "whole.png").write_bytes(whole)
  (tmp_path / "torn" / "half.png").write_bytes(whole[:-30])
  refuses("torn/half.png", embeddings.represent, str(exported), dataset=f"folder:{tmp_path}/torn")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"encoder": None}, "give --encoder=FOLDER"),
    ({"encoder": "nowhere"}, "no folder 'nowhere'"),
    ({"batch_size": 0}, "--batch_size must be at least 1"),
    ({"projector_examples": -1}, "--projector_examples must be at least 0"),
    ({"dataset": "mnst"}, "mnist"),
    ({"image_size": 16}, "takes images of 8x8x1, but 'digits' has 16x16x1: give --image_size=8"),
  ],
)
def test_mistakes_are_one_line_and_leave_no_folder(exported, tmp_path, changes, message):
  arguments = {"encoder": str(exported), "output_dir": str(tmp_path / "out"), **changes}
  refuses(message, embeddings.represent, **arguments)
  assert not (tmp_path / "out").exists()
