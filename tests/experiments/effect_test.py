"""The picture of an attack's effect: a classifier of one pixel, whose worst neighbour is known."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from experiments import effect
from urkle_tf import attacks

IMAGES = tf.constant([0.45, 0.2, 0.9], shape=[3, 1, 1, 1])
LABELS = np.array([1, 1, 0])  # 1 below a half


def brighter(images):
  """Logits: class 0 where the pixel is above a half, else class 1."""
  pixels = images[:, 0, 0, 0]
  return tf.stack([10 * (pixels - 0.5), tf.zeros_like(pixels)], axis=1)


def test_each_image_is_moved_to_its_worst_neighbour():
  classifier = types.SimpleNamespace(frozen=lambda: types.SimpleNamespace(logits=brighter))
  clean, adversaries, after = effect.attacked(classifier, IMAGES, LABELS, attacks.Linf(0.1))
  assert clean.tolist() == [1, 1, 0]
  np.testing.assert_allclose(adversaries[:, 0, 0, 0], [0.55, 0.3, 0.8], atol=1e-5)
  assert after.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
  "plain, words",
  [
    ({}, "--robust=robust was trained without an attack"),  # it has no radius
    ({"image_size": [16, 16, 1]}, "--plain takes images of 16x16x1, but 'digits' has 8x8x1"),
    ({"classes": 5}, "the classifier knows 5 classes, but 'digits' has 10"),
  ],
)
def test_classifiers_that_do_not_fit_are_refused(tmp_path, monkeypatch, plain, words):
  """They ended in tracebacks."""
  usual = {"image_size": [8, 8, 1], "classes": 10}
  loaded = {"plain": {**usual, **plain}, "robust": usual}
  load = lambda name: types.SimpleNamespace(metadata=loaded[name])  # noqa: E731
  monkeypatch.setattr(effect.export, "load_classifier", load)
  arguments = [str(tmp_path / "effect.png"), "--plain=plain", "--robust=robust"]
  monkeypatch.setattr(sys, "argv", ["effect.py", *arguments])
  refuses(words, effect.main)
