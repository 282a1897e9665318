"""The supervised pretext against NumPy, and what it asks of the data."""

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from scipy import special, stats
from small_models import RUN, array_source, representations, tiny_encoder

import urkle_tf
from urkle_tf import pretexts
from urkle_tf.data import pipeline, sources


def _attached(**options):
  pretext = pretexts.Supervised(width=8, layers=2, **options)
  pretext.attach(tiny_encoder(4))
  return pretext


def _tuples(n=6, members=2):
  loc = np.random.default_rng(0).normal(size=(n, members, 4)).astype("float32")
  return representations(loc, 0.5)


def test_classification_is_the_cross_entropy():
  pretext, drawn, labels = _attached(outputs=3), _tuples(), np.array([0, 1, 2, 2, 1, 0])
  logits = pretext.network(np.reshape(drawn.z, (-1, 4)), training=True).numpy().astype(np.float64)
  logs = special.log_softmax(logits, -1).reshape(6, 2, 3)
  expected = [-np.mean([logs[i, t, y] for t in range(2)]) for i, y in enumerate(labels)]
  np.testing.assert_allclose(pretext.loss(drawn, labels)["cross_entropy"], expected, rtol=1e-4)


def test_regression_is_a_gaussian_of_variance_one():
  pretext, drawn = _attached(task="regression", outputs=2), _tuples(members=1)
  truth = np.random.default_rng(2).normal(size=(6, 2))
  found = pretext.loss(drawn, truth, training=False)["squared_error"]
  mean = pretext.network(drawn.z[:, 0], training=False).numpy()
  expected = -stats.norm.logpdf(truth, mean, 1.0).sum(1) - np.log(2 * np.pi)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert pretext.head is None  # a classifier is not made of it


def test_divergence_is_the_kl_of_predictions():
  pretext = _attached(outputs=3)
  one, other = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
  p, q = special.softmax(one, -1), special.softmax(other, -1)
  expected = [stats.entropy(a, b) for a, b in zip(p, q, strict=True)]
  np.testing.assert_allclose(pretext.divergence(one, other), expected, rtol=1e-4)


def test_numpys_integers_count_classes():
  """As `labels.max() + 1` does; Keras refuses them."""
  assert _attached(outputs=np.int64(3)).network.output_shape == (None, 3)


def test_classes_come_from_the_data():
  pretext = pretexts.Supervised()
  pretext.adopt(sources.load("digits", "train[:20]"))
  assert pretext.outputs == 10


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_are_any_integers(dtype):
  pretext, drawn = _attached(outputs=3), _tuples()
  loss = lambda labels: pretext.loss(drawn, pretext.prepare(None, {"label": labels}))  # noqa: E731
  labels = np.array([0, 1, 2, 2, 1, 0])
  expected = loss(labels)["cross_entropy"]
  np.testing.assert_array_equal(loss(labels.astype(dtype))["cross_entropy"], expected)


@pytest.mark.parametrize("outputs", [5, 20])
def test_the_classes_are_those_of_the_data(outputs):
  source = sources.load("digits", examples=20)
  refuses("has 10 classes", pretexts.Supervised(outputs=outputs).adopt, source)


@pytest.mark.parametrize("labels", [np.array([0, 1, -1, 1]), None])
def test_images_without_a_label_are_refused(labels, monkeypatch):
  """TFDS labels them -1, which ended in a traceback; of data that is not in memory the first is."""
  source = array_source(np.zeros((4, 8, 8, 1), np.uint8), labels)
  if labels is None:
    monkeypatch.setattr(pipeline, "first", lambda *_: (None, np.array([-1])))
  refuses("images without a label (-1)", pretexts.Supervised().adopt, source)


@pytest.mark.parametrize("labels", [np.zeros([6, 1], np.uint8), np.eye(3)[[0, 1, 2, 2, 1, 0]]])
def test_labels_of_a_column_and_one_hot_end_in_one_line(labels):
  """`keras.datasets` gives columns."""
  pretext = _attached(outputs=3)
  labels = pretext.prepare(None, {"label": labels})
  refuses("one class number for each image & labels[:, 0]", pretext.loss, _tuples(), labels)


def test_labels_must_be_there():
  refuses('a "label"', _attached(outputs=3).prepare, tf.zeros([2, 1, 8, 8, 1]), {})


def test_regression_trains_and_exports_an_encoder(tmp_path):
  result = urkle_tf.pretrain(
    output_dir=str(tmp_path / "run"),
    pretext="supervised(task=regression, width=8)",
    robustness="trades(beta=0.1)",
    **{**RUN, "attack_steps": 1, "augment": "none"},
  )
  assert np.isfinite(result["squared_error"])
  assert "classifier" not in result
