"""A mistake in the settings of `adapt` ends in one line, and leaves no folder behind."""

import numpy as np
import pytest
from cases import refuses
from PIL import Image
from small_models import array_source

from urkle_tf import downstream
from urkle_tf.data import compatibility, sources

SEMI = {"protocol": "semi_supervised", "labels": 0.2}
HELD = {"split": "train", "validation_split": "train[90%:]"}  # a tenth of 1,437


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"encoder": ""}, "give --encoder=FOLDER"),
    ({"encoder": "nowhere"}, "no folder 'nowhere'"),
    ({"head": "mlp(width=2.5)"}, "mlp: width must be a whole number of at least 1, got 2.5"),
    ({"seed": -1}, "--seed must be at least 0 and below"),
    ({"protocol": "sfl"}, "unknown protocol 'sfl'; did you mean 'slf'"),
    ({"head": "liner"}, "unknown head 'liner'; did you mean 'linear'"),
    ({"head": "mlp(depth=3)"}, "unknown option of mlp"),
    ({"image_size": 16}, "give --image_size=8"),
    ({"optimizer": "adm"}, "unknown optimizer"),
    ({"weight_decay": -0.1}, "--weight_decay must be at least 0, got -0.1"),
    ({"augment": "corp"}, "did you mean 'crop'"),
    ({"learning_rate": 2e4}, "--learning_rate=20000 is too high for every weight decay"),
    ({"labels": 5}, "at least one per class"),
    ({"labels": 19}, "19 labels are too few"),  # to hold some out for the choice
    ({"epochs": 0}, "--epochs must be at least 1"),
    ({"split": "tran"}, "did you mean 'train'"),
    ({"features": "poled"}, "unknown choice of --features 'poled'; did you mean 'pooled'"),
    ({"features": "pooled", "protocol": "aff"}, "is for the head of a frozen encoder"),
    ({"features": "pooled", "protocol": "similarity"}, "use --protocol=slf or alf"),
    ({"protocol": "alf(samples=1.5)"}, "samples must be a whole number of at least 1, got 1.5"),
    ({"protocol": "alf", "attack_steps": 0}, "steps must be"),
    ({"protocol": "alf", "attack_step_size": 0}, "--attack_step_size must be above 0, got 0"),
    ({"protocol": "alf", "norm": "l2"}, "--norm=l2 needs --epsilon, because the default, "),
    ({"protocol": "alf", "epsilon": -0.1}, "epsilon"),
    ({"protocol": "aff(beta=-1)"}, "beta must be at least 0"),
    ({"protocol": "aff(gamma=1)"}, "unknown option of aff"),
    (SEMI | {"labels": None}, "is for few labels: give --labels"),
    (SEMI | {"labels": 1437}, "is for few labels: give --labels"),
    (SEMI | {"dataset": "digits:rotation"}, "are numbers: use --protocol=aff"),
    (SEMI | {"protocol": "semi_supervised(beta=-1)"}, "beta must be at least 0"),
    (SEMI | {"protocol": "semi_supervised(weight=0)"}, "weight must be above 0"),
    (SEMI | {"protocol": "semi_supervised(clean_epochs=2.5)"}, "clean_epochs must be a whole"),
    ({"protocol": "similarity(weight=-1)"}, "weight must be at least 0"),
    ({"protocol": "similarity", "augment": "crop, crop"}, "but the number of views is 1"),
    ({"protocol": "similarity", "optimizer": "larz"}, "did you mean 'lars'"),
    (HELD | {"protocol": "aff"}, "trains on 144 of the 144 images"),
    (HELD | {"protocol": "aff", "dataset": "digits:rotation"}, "trains on 144 of the 144 images"),
    ({"split": "train[:90]", "validation_split": "train"}, "leaves no image of --split=train"),
    # None of these 10 labels is of a held-out image, but the third stage sees all images.
    (HELD | SEMI | {"labels": 10, "seed": 2}, "trains on 144 of the 144 images"),
    (HELD | {"weight_decay": 0.1}, "trains on 144 of the 144 images"),
    ({"split": "all", "validation_split": "test"}, "trains on 360 of the 360 images"),
  ],
)
def test_mistakes_end_in_one_line(encoder, tmp_path, changes, message):
  arguments = {"encoder": str(encoder), "output_dir": str(tmp_path / "run"), "epochs": 1}
  refuses(message, downstream.adapt, **arguments | changes)
  assert not (tmp_path / "run").exists()


def test_mistakes_with_several_seeds(encoder):
  for folder in (None, ""):
    words = "give --output_dir=FOLDER, where the runs go"
    refuses(words, downstream.adapt_seeds, folder, 2, encoder=str(encoder))
  words = "--seeds must be at least 1, got 0"
  refuses(words, downstream.adapt_seeds, "runs", 0, encoder=str(encoder))


def test_images_without_a_label_train_no_head(encoder, tmp_path, monkeypatch):
  """TFDS labels them -1."""
  source = array_source(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, -1, 1]))
  monkeypatch.setattr(sources, "load", lambda *_: source)
  refuses("images without a label (-1)", downstream.adapt, str(encoder), str(tmp_path / "run"))


@pytest.mark.parametrize("damaged", ["train", "val"])
def test_a_damaged_image_of_a_large_folder_is_named(encoder, tmp_path, monkeypatch, damaged):
  for number in range(8):
    file = tmp_path / "images" / ["train", "val"][number // 4] / "ab"[number % 2] / f"{number}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), number, np.uint8)).save(file)
    if damaged in file.parts:
      bad = file
  bad.write_bytes(bad.read_bytes()[:-30])
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)  # so that nothing is read when it is opened
  data = {"dataset": f"folder:{tmp_path / 'images'}", "validation_split": "val"}
  arguments = str(encoder), str(tmp_path / "run")
  refuses(str(bad), downstream.adapt, *arguments, epochs=1, weight_decay=0.1, **data)


@pytest.mark.parametrize(
  "labels, words",
  [
    ([0, 1, 2, 1], []),
    ([0, 0, 2, -1], ["no image of 1 of the 3 classes of grey (test) is used: 'b'"]),
    ([1, 1, 1, 1], ["no image of 2 of the 3 classes of grey (test) is used: 'a', 'c'"]),
  ],
)
def test_classes_without_an_image_are_named(labels, words, monkeypatch):
  found = []
  monkeypatch.setattr(
    compatibility.logging, "warning", lambda text, *values: found.append(text % values)
  )
  source = array_source(np.zeros((4, 8, 8, 1), np.uint8), np.array(labels), classes=3)
  compatibility.warn_of_missing_classes(source, np.array(labels))
  assert found == words
