"""Neighbours under an attack that knows no label."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import linear_file, small_encoder

import urkle_tf
from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.evaluation import representation, retrieval

DATA = {"dataset": "digits", "split": "test", "examples": 40}


def two_halves(rng):
  """A [64, 2] whose columns do not overlap, so that one corner of the ball is worst for both."""
  matrix = np.zeros((64, 2), np.float32)
  matrix[:32, 0], matrix[32:, 1] = rng.uniform(-1, 1, size=(2, 32))
  return matrix


def turned(*degrees):
  """Points on a circle."""
  angles = np.radians(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_overlap_by_hand():
  keys = turned(0, 10, 30, 60, 100)
  queries, others = turned(0, 65), turned(40, 65)
  # Of 0 degrees the nearest two are 0 and 10; of 40 they are 30 and 60, and of 65 60 and 30.
  near, further = (representation.nearest(rows, keys, 2, False) for rows in (queries, others))
  np.testing.assert_array_equal(retrieval.overlap(near, further), [0, 1])
  # Without itself: of 0 it is 10 and 30, of 40 (which is image 0) 30 and 60: one of two stays.
  moved = turned(40, 10, 30, 60, 100)
  near, further = (representation.nearest(rows, keys, 2) for rows in (keys, moved))
  np.testing.assert_array_equal(retrieval.overlap(near, further), [0.5, 1, 1, 1, 1])


def test_figures_by_hand():
  """Two neighbours of three images, whose embeddings an attack turns and makes twice as long."""
  found = object.__new__(retrieval._Embedded)
  found._count, found._itself, found.spread = 2, False, 4.0
  found.keys, found.clean = turned(0, 20, 60, 100), turned(5, 50, 98)
  found.moved, found.near = 2 * turned(12, 95, 92), found.nearest(found.clean)
  # From 0 and 20 to 20 and 0; from 60 and 20 to 100 and 60; 100 and 60 both times.
  cosines = np.cos(np.radians([7, 45, 6]))
  wanted = {"overlap": (1 + 1 / 2 + 1) / 3, "first_kept": 1 / 3, "cosine": np.mean(cosines)}
  wanted["moved"] = np.mean(1 + 4 - 2 * 2 * cosines) / 4.0
  assert found.figures() == pytest.approx(wanted)


@pytest.mark.parametrize("distance, wanted", [("squared", [2, 0, 4]), ("cosine", [1, 0, 2])])
def test_objectives_by_hand(distance, wanted):
  """Of embeddings (1, 0) that move to (0, 1), stay, and move to (-1, 0)."""
  embed = lambda images: images[:, 0, :, 0]  # noqa: E731
  images = tf.constant([[1.0, 0.0]] * 3)[:, None, :, None]
  moved = tf.constant([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])[:, None, :, None]
  np.testing.assert_allclose(retrieval.objective(embed, images, distance)(moved), wanted, atol=1e-6)


def test_a_linear_embedding_moves_by_its_closed_form(rng, tmp_path):
  # |A d|^2 over the ball of linf is at most the sum over columns of (epsilon |a|_1)^2.
  matrix, epsilon = two_halves(rng), 0.02
  file = linear_file(tmp_path / "linear.keras", matrix)
  images = rng.integers(80, 176, size=(30, 8, 8, 1)).astype(np.uint8)  # away from the bounds
  (tmp_path / "photos").mkdir()
  for number, image in enumerate(images):
    keras.utils.save_img(tmp_path / "photos" / f"{number:02}.png", image, scale=False)
  # Without labels.
  data = {"dataset": f"folder:{tmp_path / 'photos'}", "split": "all", "image_size": 8}
  report = urkle_tf.assess(encoder=file, epsilon=epsilon, batch_size=8, **data)
  assert list(report) == ["retrieval", "config", "versions"]
  found = report["retrieval"]
  z = images.reshape(30, 64) / 255 @ matrix
  spread = np.mean(np.sum((z - z.mean(0)) ** 2, 1))
  worst = np.sum((epsilon * np.abs(matrix).sum(0)) ** 2)
  assert found["moved"] == pytest.approx(worst / spread, rel=1e-3)
  assert (found["examples"], found["references"], found["neighbours"]) == (30, 30, 10)
  assert 0 < found["overlap"] < 1


def test_an_encoder_beside_its_original(rng, tmp_path):
  matrix = two_halves(rng)
  before = linear_file(tmp_path / "before.keras", matrix)
  after = linear_file(tmp_path / "after.keras", 2 * matrix)
  options = {"epsilon": 0.02, "measure": "retrieval(steps=3, neighbours=5)", **DATA}
  found = urkle_tf.assess(encoder=after, against=before, **options)["retrieval"]
  z = sources.load("digits", "test", examples=40).images.reshape(40, 64) / 255 @ matrix
  drift = np.mean(np.sum(z**2, 1)) / np.mean(np.sum((z - z.mean(0)) ** 2, 1))
  assert found["drift"] == pytest.approx(drift, rel=1e-4)
  assert found["index"] == 1  # twice the embedding has the same neighbours by cosine
  assert found["index_attacked"] == pytest.approx(found["overlap"])
  # The attack's direction does not depend on the scale, and its figures are relative.
  assert found["moved"] == pytest.approx(found["original"]["moved"], rel=1e-4)
  alone = urkle_tf.assess(encoder=before, **options)["retrieval"]
  assert found["original"] == {name: alone[name] for name in found["original"]}
  turn = np.diag([1, 9])  # which finds others in the index
  other = linear_file(tmp_path / "other.keras", matrix @ turn)
  options["epsilon"] = 1e-6  # so that attacks change nothing
  found = urkle_tf.assess(encoder=other, against=before, **options)["retrieval"]
  index = retrieval.overlap(*(representation.nearest(rows, z, 5) for rows in (z, z @ turn)))
  for name in ("index", "index_attacked"):
    assert found[name] == pytest.approx(index.mean(), abs=0.01)
  assert index.mean() < 0.9


def test_more_steps_and_restarts_move_an_embedding_further(tmp_path, rng):
  """Of columns that overlap, so that corners of the ball differ, and the start decides."""
  file, moved = linear_file(tmp_path / "linear.keras", rng.normal(size=(64, 3))), []
  options = {"epsilon": 0.01, **DATA, "examples": 12}
  for given, seed in (("steps=1", 0), ("steps=9", 0), ("steps=9, restarts=5", 0), ("steps=9", 1)):
    measure = f"retrieval({given}, neighbours=1)"
    found = urkle_tf.assess(encoder=file, measure=measure, seed=seed, **options)
    moved.append(found["retrieval"]["moved"])
  assert moved[0] < moved[1] < moved[2]
  assert moved[1] != moved[3]


@pytest.mark.full
def test_cosine_is_attacked_where_it_is_asked_for(tmp_path):
  encoder = small_encoder()
  folder = str(export.export_encoder(encoder, tmp_path / "encoder"))
  options = {"encoder": folder, "epsilon": 0.05, "representation_examples": 0, **DATA}
  squared, cosine = (
    urkle_tf.assess(measure=f"retrieval(distance={distance})", **options)["retrieval"]
    for distance in ("squared", "cosine")
  )
  assert cosine["cosine"] < squared["cosine"]
  assert squared["moved"] > cosine["moved"]


def test_neighbours_of_another_split(tmp_path, rng):
  """Those of the original, of other dimensions, are searched there too."""
  file = linear_file(tmp_path / "linear.keras", rng.normal(size=(64, 3)))
  before = linear_file(tmp_path / "before.keras", rng.normal(size=(64, 2)))
  measure = "retrieval(reference='train[:70]', neighbours=60, steps=2, examples=20)"
  options = {"measure": measure, "epsilon": 0.01, **DATA}
  found = urkle_tf.assess(encoder=file, against=before, **options)["retrieval"]
  alone = urkle_tf.assess(encoder=before, **options)["retrieval"]
  assert found["original"] == {name: alone[name] for name in found["original"]}
  assert not {"drift", "index"} & set(found)
  assert (found["examples"], found["references"]) == (20, 70)
  assert found["overlap"] >= (2 * 60 - 70) / 60  # as large as it must be


@pytest.mark.parametrize(
  "measure, message",
  [
    ("retrieval(neighbours=40)", "from 1 to 39, the number of other images, got 40"),
    ("retrieval(neighbours=9, examples=9)", "from 1 to 8, the number of other images, got 9"),
    ("retrieval(distance=far)", "unknown distance of retrieval 'far' & cosine, squared"),
    ("retrieval(steps=0)", "retrieval: steps must be at least 1, got 0"),
    ("retrieval(reference=all, examples=9)", "'all' holds 9 of the 9 images that are measured"),
    ("clean", "clean is for & , and this model is an encoder made elsewhere"),
  ],
)
def test_mistakes_are_one_line(tmp_path, rng, measure, message):
  file = linear_file(tmp_path / "linear.keras", two_halves(rng))
  refuses(message, urkle_tf.assess, encoder=file, measure=measure, **DATA)
