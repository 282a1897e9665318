"""The Keras app: it trains, saves, serves and answers where urkle_tf cannot be imported."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from urllib import error, request

import commands
import numpy as np
import pytest
import tensorflow as tf
from small_models import digits, small_encoder

from examples import finetune_export
from examples.keras_app import ask, train
from urkle_tf import export

APP = commands.ROOT / "examples" / "keras_app"

# A shell's background job, and what it starts, would ignore Ctrl-C.
RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
RUN += 'import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}


def command(script, *arguments):
  """The words that run a script of the app."""
  return [sys.executable, "-c", commands.ALONE + RUN, str(APP / script), *map(str, arguments)]


def run(script, *arguments, cwd):
  words = command(script, *arguments)
  return commands.process(*words, environment=ENVIRONMENT, cwd=cwd).stdout


@pytest.fixture(scope="module")
def app(tmp_path_factory):
  """A folder with labelled.npz and the app, whose head has learnt."""
  folder = tmp_path_factory.mktemp("app")
  export.export_encoder(small_encoder(), folder / "encoder")
  images, labels = digits()
  np.savez(folder / "labelled.npz", images=images[:600], labels=labels[:600])
  said = run("train.py", "encoder", "labelled.npz", "app", "30", cwd=folder)
  assert float(said.split("accuracy ")[1]) > 0.5  # of an untrained encoder of 6 dimensions
  shutil.rmtree(folder / "encoder")  # the app holds it
  return folder


@pytest.mark.full
def test_it_serves_probabilities_with_their_uncertainty(app):
  model = tf.saved_model.load(str(app / "app"))
  images = tf.constant(digits()[0][600:900])
  found = model.signatures["serving_default"](images)
  probabilities = found["probabilities"].numpy().astype(np.float64)
  np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
  entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1) / np.log(10)
  np.testing.assert_allclose(found["uncertainty"], entropy, atol=1e-5)
  wrong = probabilities.argmax(1) != digits()[1][600:900]
  assert found["uncertainty"].numpy()[wrong].mean() > found["uncertainty"].numpy()[~wrong].mean()
  again = model.signatures["serving_default"](images)["probabilities"]
  assert 0 < np.abs(again - found["probabilities"]).max() < 0.5  # it is a mean over fresh samples


@pytest.mark.full
def test_a_client_is_answered(app):
  with subprocess.Popen(
    command("serve.py", "app", "0"),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, **ENVIRONMENT},
    cwd=app,
  ) as serving:
    try:
      url = serving.stdout.readline().strip()
      assert url.startswith("http://localhost:"), serving.stderr.read()
      lines = run("ask.py", "labelled.npz", url, cwd=app).splitlines()
      assert len(lines) == 5
      assert lines[0].startswith("image 0: class ")
      with pytest.raises(error.HTTPError) as refused:
        request.urlopen(request.Request(url, json.dumps({"instances": [[1.0]]}).encode()))
      assert refused.value.code == 400
      serving.send_signal(signal.SIGINT)
      assert "Traceback" not in serving.communicate(timeout=60)[1]
    finally:
      serving.kill()


@pytest.mark.parametrize("read", [train.read, finetune_export.read, ask.read])
@pytest.mark.parametrize("found", [np.uint8(255), np.int64(1), np.float32(255), np.float32("nan")])
def test_only_floats_between_0_and_1_are_read(read, found, tmp_path):
  file = tmp_path / "labelled.npz"
  np.savez(file, images=np.full((2, 8, 8, 1), found), labels=[0, 1])
  with pytest.raises(SystemExit, match=r"images must be floats in \[0, 1\], got .*: divide"):
    read(file)


def test_labels_and_encoders_that_do_not_fit_are_named(tmp_path):
  file, encoder = tmp_path / "labelled.npz", tmp_path / "encoder"
  images = np.zeros((2, 8, 8, 1), np.float32)
  for labels in ([0.0, 1.0], [0, 1, 2], [0, -1]):
    np.savez(file, images=images, labels=labels)
    with pytest.raises(SystemExit, match="whole numbers from 0, one for each image"):
      train.read(file)
  np.savez(file, images=images, labels=[0, 1])
  with pytest.raises(SystemExit, match="is no exported encoder"):
    train.main(str(encoder), file, "app", 1)
  export.export_encoder(small_encoder(), encoder)
  np.savez(file, images=images[:, 1:], labels=[0, 1])
  with pytest.raises(SystemExit, match=r"takes images of \(8, 8, 1\), and .* \(7, 8, 1\)"):
    train.main(str(encoder), file, "app", 1)


@pytest.mark.parametrize("read", [train.read, finetune_export.read, ask.read])
def test_what_cannot_be_read_is_named(read, tmp_path):
  np.savez(tmp_path / "other.npz", pictures=[1.0])
  np.save(tmp_path / "array.npy", [1.0])
  for name in ("other.npz", "missing.npz", "array.npy"):
    with pytest.raises(SystemExit, match=f"cannot read images .*{name}: "):
      read(tmp_path / name)


def test_a_server_that_is_down_is_named(tmp_path):
  np.savez(tmp_path / "labelled.npz", images=np.zeros((1, 8, 8, 1), np.float32))
  with pytest.raises(SystemExit, match=r"no answer from http://localhost:1/: .* Start serve\.py"):
    ask.main(tmp_path / "labelled.npz", "http://localhost:1/")


@pytest.mark.parametrize("script", ["train.py", "serve.py", "ask.py", "../finetune_export.py"])
def test_missing_arguments_are_named(script, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", [script])
  with pytest.raises(SystemExit):
    runpy.run_path(str(APP / script), run_name="__main__")
  assert "the following arguments are required: f" in capsys.readouterr().err
