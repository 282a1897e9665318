"""What an earlier version wrote is resumed, evaluated and shown.

`earlier/earlier.tar.xz` holds, as commit 7f9ec8d wrote them on the bundled digits:

  run         a pre-training that SIGTERM ended after step 19 of 24, between two rows
  encoder     what it exports in the end
  head, aff   classifiers of that encoder by two protocols, ended after steps 126 and 5
  classifier  what `head` exports in the end
  report      the evaluation of that classifier, without its figures

`earlier/expected.json` holds what that commit made of them when it resumed them itself: all rows
of metrics, except for their times, and the logits of the first eight test images.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from alike import same
from cases import slow
from small_models import rows_of

import urkle_tf
from urkle_tf.data import sources

HERE = pathlib.Path(__file__).parent / "earlier"
EXPECTED = json.loads((HERE / "expected.json").read_text())
TIMES = ("seconds", "images_per_second")
RUN = {
  "encoder": "convnet(width=8, layers=2)",
  "pretext": "simclr(projector=16, projection=8)",
  "robustness": "urkle(k=2)",
  "split": "train[:256]",
  "batch_size": 32,
  "epochs": 3,
  "attack_steps": 2,
  "epsilon": 0.05,
  "log_every": 3,
  "checkpoint_every": 5,
  "learning_rate": 0.01,
  "probe_split": "train[300:500]",
}
HEAD = {"protocol": "slf", "split": "train[:400]", "epochs": 20, "batch_size": 50}
HEAD |= {"weight_decay": 0.01}
AFF = {"protocol": "aff", "split": "train[:96]", "epochs": 3, "batch_size": 32, "attack_steps": 2}
AFF |= {"learning_rate": 0.01, "weight_decay": 2e-4}  # that was its default
REPORT = {"split": "test[:100]", "attacks": "pgd(steps=3)"}
REPORT |= {"checks": False, "representation_examples": 0}


@pytest.fixture
def earlier(tmp_path, monkeypatch):
  """A copy of the folders, as the working directory: flags.cfg names them from there."""
  monkeypatch.chdir(tmp_path)
  with tarfile.open(HERE / "earlier.tar.xz") as archive:
    # Python has filters from 3.11.4 on.
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(tmp_path, **safe)
  return tmp_path


def _check_rows(folder):
  """The rows of metrics are those of the version that began the run."""
  rows = rows_of(folder)
  expected = EXPECTED[folder.name]
  assert len(rows) == len(expected)
  for row, known in zip(rows, expected, strict=True):
    assert list(row) == [*list(known)[:2], *TIMES, *list(known)[2:]]
    for name, value in known.items():
      # On another processor one image of a hundred may be classified otherwise.
      tolerance = {"atol": 0.021} if "accuracy" in name else {"rtol": 1e-3, "atol": 1e-4}
      np.testing.assert_allclose(row[name], value, **tolerance, err_msg=f"{name}: {known}")
  return rows


def test_a_run_is_resumed(earlier):
  result = urkle_tf.pretrain(output_dir="run", **RUN)
  rows = _check_rows(earlier / "run")
  assert {**rows[-1], "encoder": "run/encoder"} == result
  weights, known = (
    urkle_tf.load_encoder(folder).network.get_weights() for folder in ("run/encoder", "encoder")
  )
  same(weights, known, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, settings", [("head", HEAD), *slow(("aff", AFF))])
def test_a_classifier_s_training_is_resumed(earlier, name, settings):
  result = urkle_tf.adapt(
    output_dir=name, encoder="encoder", validation_split="test[:100]", log_every=3, **settings
  )
  rows = _check_rows(earlier / name)
  assert {**rows[-1], "classifier": f"{name}/classifier"} == result


@pytest.mark.usefixtures("earlier")
def test_a_classifier_is_evaluated():
  source = sources.load("digits", "test[:100]", None, False, None)
  batch = next(iter(source.batches(100, shuffle=False, drop_remainder=False)))
  images = batch["image"].numpy().astype("float32") / 255
  logits = urkle_tf.load_classifier("classifier").logits(images)
  np.testing.assert_allclose(logits[:8], EXPECTED["logits"], rtol=1e-4, atol=1e-5)
  report = urkle_tf.assess(classifier="classifier", **REPORT)
  assert report["clean"]["accuracy"] == 0.66
  hits = np.argmax(logits, 1) == batch["label"].numpy()
  assert report["clean"]["deterministic"]["accuracy"] == hits.mean() == 0.66
  attacked = {row["mode"]: row["accuracy"] for row in report["attacks"]}
  assert attacked == pytest.approx({"sampled": 0.31, "deterministic": 0.32}, abs=0.021)


def test_a_report_is_shown(earlier, capsys):
  folder = earlier / "report"
  known = json.loads((folder / "report.json").read_text())
  found = urkle_tf.assess(classifier="classifier", output_dir="report", html=True, **REPORT)
  assert found == known  # nothing is measured again
  assert "writing its page from the stored report" in capsys.readouterr().out
  page = (folder / "report.html").read_text()
  for figure in ("66.00", "31.00", "32.00"):
    assert figure in page
  assert "31.00" in urkle_tf.model_card("classifier", "report").read_text()
