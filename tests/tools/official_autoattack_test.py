"""The bridge to the official AutoAttack, and both on a linear classifier whose answer is known."""

import json
import sys

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import linear_digits, saved_model, sequential

from tools import official_autoattack as script
from urkle_tf.data import sources

torch = pytest.importorskip("torch")


def test_logits_and_gradients_are_those_of_numpy(rng):
  """d/dx sum_i c_i (W x)_i = W^T c, with images turned between the two layouts."""
  weights = rng.normal(size=(2 * 3 * 2, 5)).astype(np.float32)
  module = script.bridge(lambda x, seed: tf.reshape(x, [-1, 12]) @ weights)
  images = rng.uniform(size=(4, 2, 3, 2)).astype(np.float32)
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
  values = module(x)
  np.testing.assert_allclose(values.detach(), images.reshape(4, 12) @ weights, rtol=1e-5)
  cotangents = rng.normal(size=(4, 5)).astype(np.float32)
  values.backward(torch.from_numpy(cotangents))
  wanted = (cotangents @ weights.T).reshape(4, 2, 3, 2).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(x.grad, wanted, rtol=1e-5)


def test_a_gradient_is_taken_under_the_noise_of_its_call():
  """The value is n x and the gradient n: the same n, another one in every call."""
  noise = tf.random.stateless_normal
  module = script.bridge(lambda x, seed: noise([], seed) * tf.reshape(x, [-1, 1]))
  x = torch.ones(1, 1, 1, 1, requires_grad=True)
  found = []
  for _ in range(2):
    value = module(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert float(gradient) == pytest.approx(float(value))
    found.append(float(value))
  assert found[0] != found[1]


def test_scores_inside_a_model_are_not_judged_in_place_of_its_outputs(rng, tmp_path):
  weights = rng.normal(size=(64, 10)).astype(np.float32)
  classes = lambda images: tf.argmax(tf.reshape(images, [-1, 64]) @ weights, 1)  # noqa: E731
  path = saved_model(lambda images: tf.one_hot(classes(images), 10), tmp_path / "model")
  refuses("only scores inside", script.scores, path, sources.load("digits", "test"), False)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_both_find_what_a_linear_classifier_allows(tmp_path):
  """An image stands if its margin exceeds epsilon |w_y - w_j|_1, pixels at their bounds aside."""
  pytest.importorskip("pyautoattack")
  linear_digits()[0].save(tmp_path / "model.keras")
  command = [sys.executable, "tools/official_autoattack.py"]
  command += [f"--classifier={tmp_path}/model.keras", "--dataset=digits", "--examples=100"]
  command += ["--epsilon=0.1", f"--out={tmp_path}/out"]
  for _ in range(2):  # what is finished is not done again
    commands.process(*command)
  theirs = json.loads((tmp_path / "out" / "official.json").read_text())
  ours = json.loads((tmp_path / "out" / "ours" / "report.json").read_text())["attacks"][-1]
  standing = np.array(theirs["square"]["standing"])
  assert 0.2 < standing.mean() < 0.9
  assert abs(ours["accuracy"] - standing.mean()) <= 0.01


def test_results_of_other_flags_are_not_taken_for_these(tmp_path, monkeypatch):
  """They were printed as those of any other epsilon, classifier or number of images."""
  pytest.importorskip("pyautoattack")
  monkeypatch.setitem(script.STAGES, "standard", ())
  model = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(10))
  model.save(tmp_path / "model.keras")
  command = ["official", f"--classifier={tmp_path}/model.keras", "--dataset=digits"]
  command += [f"--out={tmp_path}/out", "--only=official", "--epsilon=0.1", "--examples=20"]
  loads, load = [], script.foreign_models.load
  monkeypatch.setattr(script.foreign_models, "load", lambda path: loads.append(path) or load(path))
  for more in ([], [], ["--epsilon=0.2"], ["--examples=10"], ["--norm=l2"], ["--sampled"]):
    monkeypatch.setattr(sys, "argv", [*command, *more])
    if more:
      refuses("results of other flags", script.main)
    else:
      script.main()
  assert len(loads) == 6  # once each time
  sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(10)).save(
    tmp_path / "model.keras"
  )
  monkeypatch.setattr(sys, "argv", command)
  refuses("or another classifier", script.main)


@pytest.mark.parametrize("rows", ["", "--rows out"])
def test_a_page_without_rows_keeps_its_table(tmp_path, monkeypatch, rows):
  page = tmp_path / "page.md"
  page.write_text("<!-- table -->\nkept\n<!-- /table -->\n")
  monkeypatch.setattr(sys, "argv", ["official", f"--page={page}", *rows.split()])
  refuses("give the rows of the page", script.main)
  assert "kept" in page.read_text()


@pytest.mark.full
def test_their_resnet18_has_the_same_logits_in_keras(rng):
  pytest.importorskip("pyautoattack")
  theirs, model = script.their_resnet18()
  images = rng.uniform(size=(8, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    wanted = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  assert np.ptp(wanted) > 5
  np.testing.assert_allclose(model(images, training=False), wanted, atol=1e-3)
