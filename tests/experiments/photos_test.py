"""The folders that docs/start.md was tried with."""

import pathlib

from PIL import Image

from experiments import photos
from urkle_tf.data import sources


def test_every_image_goes_where_it_belongs_and_can_be_read(tmp_path):
  train, test = sources.load("digits", "train"), sources.load("digits", "test")
  photos.make(tmp_path, train, test, photos=30, of_class=2, tested=20)
  files = {kind: sorted((tmp_path / kind).rglob("*.*")) for kind in ("photos", "labelled")}
  assert len(files["photos"]) == 30
  assert {file.suffix for file in files["photos"]} == {".png", ".jpg"}
  sizes = {Image.open(file).size for file in files["photos"]}
  assert all(28 <= width <= 120 and width == height for width, height in sizes)
  assert len(sizes) > 10
  labelled = [file.relative_to(tmp_path / "labelled") for file in files["labelled"]]
  assert len(labelled) == 2 * 10 + 20
  for file in labelled:
    split, label, name = file.parts
    source = train if split == "train" else test
    number = int(pathlib.Path(name).stem)
    assert source.class_names[source.labels[number]] == label
    assert split == "test" or number >= 30
  found = sources.load(f"folder:{tmp_path / 'labelled'}", "train", image_size=16)
  assert found.size == 20


def test_the_command_says_where_the_images_are(monkeypatch, capsys):
  monkeypatch.setattr(photos, "make", lambda folder, train, test: None)
  monkeypatch.setattr(photos.logging, "set_verbosity", lambda level: None)
  monkeypatch.setattr("sys.argv", ["photos.py", "there", "--dataset=digits"])
  photos.main()
  assert capsys.readouterr().out == "photos: there/photos\nlabelled images: there/labelled\n"
