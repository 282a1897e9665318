"""Losses of classifications against NumPy loops and numbers worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from urkle_tf.attacks import losses

UNTARGETED = {"cross_entropy", "margin", "dlr"}


def by_hand(name, z, y, t):
  """One example, in float64."""
  wrong = [j for j in range(len(z)) if j != y]
  best = max(wrong, key=lambda j: z[j])
  top = sorted(z, reverse=True)
  return {
    "cross_entropy": np.log(sum(np.exp(v - top[0]) for v in z)) + top[0] - z[y],
    "margin": z[best] - z[y],
    "dlr": -(z[y] - z[best]) / (top[0] - top[2]),
    "targeted_margin": z[t] - z[y],
    "targeted_dlr": -(z[y] - z[t]) / (top[0] - (top[2] + top[3]) / 2),
  }[name]


def evaluate(name, scores, labels, targets):
  arguments = (labels,) if name in UNTARGETED else (labels, targets)
  return getattr(losses, name)(scores, *arguments)


NAMES = ["cross_entropy", "margin", "dlr", "targeted_margin", "targeted_dlr"]


@pytest.mark.parametrize(
  "name, right, wrong",
  [  # scores 4, 1, 3, -2 with label 0 and label 2; target 1
    ("cross_entropy", 0.350759, 1.350759),
    ("margin", -1.0, 1.0),
    ("dlr", -1 / 3, 1 / 3),
    ("targeted_margin", -3.0, -2.0),
    ("targeted_dlr", -3 / 4.5, -2 / 4.5),
  ],
)
def test_literal_numbers(name, right, wrong):
  scores = tf.constant([[4.0, 1.0, 3.0, -2.0]] * 2)
  found = evaluate(name, scores, tf.constant([0, 2]), tf.constant([1, 1]))
  np.testing.assert_allclose(found, [right, wrong], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop_on_logits_and_log_probabilities(rng, name):
  z = 3 * rng.normal(size=(40, 6)).astype(np.float32)
  labels = rng.integers(6, size=40)
  targets = (labels + rng.integers(1, 6, size=40)) % 6
  wanted = [by_hand(name, *row) for row in zip(z.astype(np.float64), labels, targets)]
  for scores in (tf.constant(z), tf.nn.log_softmax(z)):
    np.testing.assert_allclose(evaluate(name, scores, labels, targets), wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ["dlr", "targeted_dlr"])
def test_dlr_ignores_scale_and_shift_and_keeps_its_gradient(rng, name):
  z, labels = 5 * rng.normal(size=(20, 5)).astype(np.float32), rng.integers(5, size=20)
  targets = (labels + 1) % 5
  gradients = {}
  for scale in (1.0, 1000.0):
    scores = tf.constant(scale * z + 7)
    with tf.GradientTape() as tape:
      tape.watch(scores)
      values = evaluate(name, scores, labels, targets)
    np.testing.assert_allclose(values, evaluate(name, z, labels, targets), rtol=1e-3, atol=1e-3)
    gradients[scale] = tape.gradient(values, scores).numpy() * scale
  np.testing.assert_allclose(gradients[1.0], gradients[1000.0], rtol=1e-2, atol=1e-3)


def test_wrong_classes_in_order():
  scores = np.array([[4, 1, 3, -2], [4, 1, 3, -2], [0, 5, 1, 2]], np.float32)
  labels = np.array([0, 2, 0])
  found = [losses.wrong_class(scores, labels, rank).numpy().tolist() for rank in range(3)]
  assert found == [[2, 0, 1], [1, 1, 3], [3, 3, 2]]


@pytest.mark.parametrize(
  "name, classes, words",
  [("dlr", 2, "at least 3 classes, but there are 2"), ("targeted_dlr", 3, "at least 4 classes")],
)
def test_too_few_classes_end_in_one_line(name, classes, words):
  refuses(words, evaluate, name, tf.zeros([1, classes]), [0], [1])
  assert evaluate("margin", tf.zeros([1, 2]), [0], [1]).shape == (1,)


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("labels", [np.eye(4)[:3], np.zeros([3, 1], int)])
def test_one_hot_labels_and_columns_end_in_one_line(name, labels):
  words = f"one class number for each image, got shape {labels.shape}"
  refuses(words, evaluate, name, tf.zeros([3, 4]), labels, None)
