"""An evaluation that was killed resumes where it was, and ends with the same report."""

import json
import sys

import commands
import numpy as np
import pytest
from cases import refuses
from small_models import fitted_classifier, small_encoder

import urkle_tf
from urkle_tf import attacks, export
from urkle_tf.data import sources
from urkle_tf.evaluation import attacked, bound, corrupted, representation
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.measurements.bound import Bound
from urkle_tf.evaluation.measurements.representation import Representation
from urkle_tf.evaluation.store import Store


@pytest.fixture(scope="module")
def model():
  return fitted_classifier(small_encoder())


SETTINGS = {"attacks": "fgsm,pgd(steps=2)", "examples": 60, "batch_size": 10, "eot": 2}
SETTINGS |= {"samples": 20, "standing": True, "checks": False, "representation_examples": 0}
SETTINGS |= {"corruptions": "contrast", "severities": [4.0]}


def without_seconds(report):
  rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in report["attacks"]]
  return {**report, "attacks": rows}


@pytest.mark.full
def test_a_killed_evaluation_resumes(model, tmp_path, monkeypatch):
  metadata = {"norm": "linf", "epsilon": 0.01, "dataset": "digits"}
  folder = export.export_classifier(model, tmp_path / "classifier", metadata)
  command = [sys.executable, "-m", "urkle_tf.evaluate", f"--classifier={folder}"]
  command += [f"--output_dir={tmp_path / 'killed'}"]
  for name, value in SETTINGS.items():
    value = ",".join(map(str, value)) if isinstance(value, list) else value
    command.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
  partial = tmp_path / "killed" / "partial"
  process = commands.start(command, tmp_path / "log")
  # In the second attack: between two batches, or while one of them is written.
  commands.wait((partial / "attack-1-0-0.npz").exists, process, tmp_path / "log")
  process.kill()
  process.wait()
  kept = len(list(partial.glob("attack-*.npz")))
  assert not (tmp_path / "killed" / "report.json").exists()

  batches = []
  original = attacked._attack
  monkeypatch.setattr(attacked, "_attack", lambda *a: batches.append(a) or original(*a))
  arguments = {"classifier": str(folder), **SETTINGS}
  whole = urkle_tf.assess(**arguments, output_dir=str(tmp_path / "whole"))
  needed = len(batches)
  assert 3 <= kept < needed
  batches.clear()
  # Other settings do not mix with what is there, nor does another model.
  refuses("--seed=0", urkle_tf.assess, **arguments, output_dir=str(tmp_path / "killed"), seed=1)
  owner = partial / "owner.json"
  own = owner.read_text()
  owner.write_text(own.replace(json.loads(own)["fingerprint"], "another"))
  refuses("another model", urkle_tf.assess, **arguments, output_dir=str(tmp_path / "killed"))
  owner.write_text(own)
  assert not batches

  resumed = urkle_tf.assess(**arguments, output_dir=str(tmp_path / "killed"))
  assert len(batches) == needed - kept
  assert without_seconds(resumed) == without_seconds(whole)
  stored = json.loads((tmp_path / "killed" / "report.json").read_text())
  assert without_seconds(stored) == without_seconds(json.loads(json.dumps(whole)))
  pictures = [tmp_path / name / "figures" / "examples.png" for name in ("killed", "whole")]
  assert pictures[0].read_bytes() == pictures[1].read_bytes()
  assert not partial.exists()
  assert not (tmp_path / "whole" / "partial").exists()


def forbidden(*_, **__):
  raise AssertionError("this was measured before")


@pytest.mark.full
def test_what_was_measured_is_not_measured_again(model, tmp_path, monkeypatch):
  source = sources.load("digits", "test", examples=30)
  store = Store(tmp_path / "partial", {})
  found = corrupted.plan("contrast,fog", [3.0], source)

  def score(images):
    values = np.stack([-images.mean((1, 2, 3))] * 10, 1) - np.arange(10, dtype=np.float32)
    return {"sampled": values, "deterministic": values + 1}

  def parts(scorer):
    yield corrupted.measure(scorer, source, found, batch_size=20, store=store)
    context = Context(source, "linf", [0.1], model, model.network, batch_size=20, store=store)
    context.save_images = True
    yield representation.measure(context, Representation(steps=3, restarts=1))
    yield {name: array.tolist() for name, array in context.arrays.items()}
    options = {"steps": 3, "restarts": 1, "loss_steps": 2, "eot": 2, "samples": 20}
    yield bound.measure(context, Bound(loss_cap=3.0, **options))

  first = list(parts(score))
  with monkeypatch.context() as patch:
    patch.setattr(attacks.PGD, "run", forbidden)
    patch.setattr(corrupted.corruptions, "corrupt", forbidden)
    assert list(parts(forbidden)) == first
  # A part of it is made again: of the representation's two batches one is missing.
  (tmp_path / "partial" / "representation-1.npz").unlink()
  kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "partial").iterdir()}
  assert list(parts(forbidden)) == first
  assert (tmp_path / "partial" / "representation-1.npz").exists()
  assert all(file.stat().st_mtime_ns == written for file, written in kept.items())


def test_a_torn_file_counts_as_missing(tmp_path):
  store = Store(tmp_path / "partial", {"fingerprint": "a"})
  assert not (tmp_path / "partial").exists()  # nothing to keep yet
  values = {"x": np.arange(1000.0), "y": np.float64(0.1)}
  kept = store.arrays("one", lambda: values)
  again = Store(tmp_path / "partial", {"fingerprint": "a"})
  for name, value in again.arrays("one", forbidden).items():
    np.testing.assert_array_equal(value, kept[name])
  assert again.json("rows", lambda: [{"a": 0.1}]) == store.json("rows", forbidden)
  file = tmp_path / "partial" / "one.npz"
  whole = file.read_bytes()
  for torn in (b"", whole[:100], whole[:-30], whole[:500] + b"????" + whole[504:]):
    file.write_bytes(torn)
    assert store.find("one") is None
  refuses("another model", Store, tmp_path / "partial", {"fingerprint": "b"})
  nothing = Store()
  assert nothing.find("one") is None
  assert nothing.arrays("one", lambda: values)["y"] == 0.1
