"""The online probe."""

import contextlib
import types

import numpy as np
import pytest
import tensorflow as tf
from small_models import FakeRecorder

from urkle_tf.data import compatibility, sources
from urkle_tf.training import probe


class _Model:
  """As much of a trainer as the probe looks at."""

  seed = 0

  def __init__(self):
    self.within = False
    self.encoder = types.SimpleNamespace(network=self._network)

  def _network(self, images, training):
    assert not training
    assert self.within  # the encoder that would be exported, not the one in training
    return {"loc": tf.reshape(images, [-1, images.shape[1] * images.shape[2] * images.shape[3]])}

  @contextlib.contextmanager
  def averaged(self):
    self.within = True
    yield
    self.within = False


def four_classes(rng, count):
  labels = rng.integers(0, 4, count)
  return np.eye(4)[labels][:, :, None, None] + 0.01 * rng.random((count, 4, 1, 1)), labels


def test_the_probe_votes_among_neighbours(rng):
  images, labels = four_classes(rng, 400)
  record = FakeRecorder()
  for wrong, accuracy in ((0, 1.0), (200, 0.0)):
    known = labels.copy()
    known[:wrong] = (known[:wrong] + 1) % 4  # the half that votes
    callback = probe.NearestNeighbours(images.astype("float32"), known, record)
    callback.set_model(_Model())
    callback.on_epoch_end(0)
    assert record.extra.pop("knn_accuracy") == accuracy


@pytest.mark.parametrize(
  "split, seen",
  [
    ("train[64:100]", None),
    ("train[50:100]", "14 of its 50"),
    ("train[50:200]", "14 of its 60"),  # the first 60 are measured
    ("train[70:200]+train[:9]", None),
  ],
)
def test_a_probe_of_trained_images_is_pointed_out(split, seen, caplog):
  held_out, trained = (sources.load("digits", each) for each in (split, "train[:64]"))
  compatibility.warn_of_seen(held_out, trained, "--probe_split", 60)
  assert f"{seen} images are trained on" in caplog.text if seen else not caplog.text


def test_the_probe_attacks_what_it_classifies(rng, monkeypatch):
  images, labels = four_classes(rng, 800)
  monkeypatch.setattr(probe, "kl_objective", lambda encoder, clean: clean)
  seen = []

  def attack(objective, clean, seed):
    assert objective is clean
    seen.append(clean.shape[0])
    return tf.concat([tf.roll(clean[:64], 1, 1), clean[64:]], 0)  # 64 now look like another class

  record = FakeRecorder()
  callback = probe.NearestNeighbours(images.astype("float32"), labels, record, attack=attack)
  callback.set_model(_Model())
  callback.on_epoch_end(0)
  assert record.extra == {"knn_accuracy": 1.0, "knn_robust_accuracy": 0.75}
  assert seen == [256]
