"""What an earlier version wrote is resumed, evaluated and shown.

`earlier/earlier.tar.xz` holds, as commit 7f9ec8d wrote them on the bundled digits:

  run         a pre-training that SIGTERM ended after step 19 of 24, between two rows
  encoder     what it exports in the end
  head, aff   classifiers of that encoder by two protocols, ended after steps 126 and 5
  classifier  what `head` exports in the end
  report      the evaluation of that classifier, without its figures

`earlier/expected.json` holds what that commit made of them when it resumed them itself: all rows
of metrics, except for their times, and the logits of the first eight test images.  The test gives
each the flags of its flags.cfg again.
"""

import json
import pathlib
import tarfile

import commands
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


def _again(command, name, *more):
  """Runs a command with the flags of a folder."""
  code, said = commands.run(command, [f"--flagfile={name}/flags.cfg", *more])
  assert code == 0, said


def test_a_run_is_resumed(earlier):
  _again("train", "run")
  _check_rows(earlier / "run")
  resumed, known = (urkle_tf.load_encoder(folder).network for folder in ("run/encoder", "encoder"))
  same(resumed.get_weights(), known.get_weights(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["head", *slow("aff")])
def test_a_classifier_s_training_is_resumed(earlier, name):
  _again("finetune", name)
  _check_rows(earlier / name)
  assert urkle_tf.load_classifier(f"{name}/classifier").classes == 10


def test_a_classifier_is_evaluated(earlier):
  source = sources.load("digits", "test[:100]", None, False, None)
  batch = next(iter(source.batches(100, shuffle=False, drop_remainder=False)))
  images = batch["image"].numpy().astype("float32") / 255
  logits = urkle_tf.load_classifier("classifier").logits(images)
  np.testing.assert_allclose(logits[:8], EXPECTED["logits"], rtol=1e-4, atol=1e-5)
  _again("evaluate", "report", "--output_dir=again")
  report = json.loads((earlier / "again" / "report.json").read_text())
  assert report["clean"]["accuracy"] == 0.66
  hits = np.argmax(logits, 1) == batch["label"].numpy()
  assert report["clean"]["deterministic"]["accuracy"] == hits.mean() == 0.66
  attacked = {row["mode"]: row["accuracy"] for row in report["attacks"]}
  assert attacked == pytest.approx({"sampled": 0.31, "deterministic": 0.32}, abs=0.021)


def test_a_report_is_shown(earlier, capsys):
  folder = earlier / "report"
  known = (folder / "report.json").read_text()
  _again("evaluate", "report", "--html")
  assert "writing its page from the stored report" in capsys.readouterr().out
  assert (folder / "report.json").read_text() == known  # nothing is measured again
  page = (folder / "report.html").read_text()
  for figure in ("66.00", "31.00", "32.00"):
    assert figure in page
  assert "31.00" in urkle_tf.model_card("classifier", "report").read_text()
