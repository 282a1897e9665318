"""The launcher of the transfer table: its arguments, its table from runs, and a small whole run."""

import json
import subprocess

import commands
import pytest
from small_models import small_encoder

from experiments import transfer as script
from urkle_tf import export


def test_counts_are_at_most_those_there_are():
  # digits has 1,797 images: 1,437 to train on, of which the first 90% are 1,293
  found = script.source("digits", "train[:90%]", None, None, False)
  counts = [script.at_most(count, found) for count in (5000, 100, 0.1, None)]
  assert counts == [1293, 100, 0.1, None]


# --- Hand-written runs ---


def _classes(clean, attacked, mu=None):
  part = {"mode": "deterministic" if mu is None else "sampled", "accuracy": clean}
  row = {"name": "pgd", "steps": 20, "norm": "linf", "epsilon": 0.1, "mode": part["mode"]}
  rows = [{**row, "accuracy": attacked}, {**row, "name": "square", "accuracy": attacked + 0.1}]
  if mu is not None:
    part["deterministic"] = {"accuracy": mu[0]}
    rows.append({**row, "mode": "deterministic", "accuracy": mu[1]})
  return {"clean": part, "attacks": rows}


def _numbers(clean, attacked):
  row = {"name": "pgd", "steps": 20, "norm": "linf", "epsilon": 0.1, "mode": "deterministic"}
  part = {"clean": {"mode": "deterministic", "rmse": clean}, "target": "degrees", "spread": 26.0}
  return {"regression": {**part, "attacks": [{**row, "rmse": attacked}]}}


def _write(folder, seed, report, row):
  made, measured = folder / f"slf-{seed}", folder / f"slf-{seed}-report"
  for path, name, content in ((made, "metrics.jsonl", row), (measured, "report.json", report)):
    path.mkdir(parents=True)
    (path / name).write_text(json.dumps(content))


def test_the_table(tmp_path):
  parity, angle = tmp_path / "urkle" / "mnist-parity", tmp_path / "urkle" / "mnist-rotation"
  report = _classes(0.9, 0.8, (0.91, 0.79))
  report["checks"] = [{"name": name, "passed": name == "noise"} for name in ("noise", "effort")]
  _write(parity, 0, report, {"validation_accuracy": 0.9})
  _write(parity, 1, _classes(0.92, 0.78, (0.91, 0.77)), {"validation_accuracy": 0.9})
  _write(angle, 0, _numbers(12.345, 23.4), {"validation_rmse": 12.0})
  (parity / "slf-2-report").mkdir()  # under way
  tasks = ["mnist:parity", "mnist:rotation", "mnist"]
  document = script.collect(tmp_path, ["Urkle", "Other"], tasks, ["slf"], lambda task: 0.51)
  first, second = document["rows"]
  assert (first["task"], first["measure"], first["seeds"]) == ("mnist:parity", "accuracy", [0, 1])
  assert (first["clean"], first["attacked"]) == ([90, 92], [80, 78])  # the worst of two attacks
  assert first["deterministic"] == {"clean": [91, 91], "attacked": [79, 77]}
  assert first["attacks"] == ["pgd-20, linf 0.1", "square-20, linf 0.1"]
  assert (first["failed_checks"], first["guess"], second["guess"]) == (["effort"], 51, 26)
  assert (second["clean"], second["attacked"]) == ([12.345], [23.4])
  page = script.page(document, "COMMAND")
  assert "that were looked at: mnist:parity, Urkle, slf: effort." in page
  cells = ["91.00 ± 1.41 (78.29 to 103.71)", "79.00 ± 1.41 (66.29 to 91.71)"]
  mu = "91.00 ± 0.00 (91.00 to 91.00) / 78.00 ± 1.41 (65.29 to 90.71)"
  assert f"| {' | '.join([*cells, mu])} |" in page


# --- All of it, small ---


@pytest.mark.full
@pytest.mark.timeout(600)
def test_from_an_encoder_to_the_table_and_then_nothing_more_to_do(tmp_path, monkeypatch):
  encoder = export.export_encoder(
    small_encoder(), tmp_path / "run" / "encoder", {"norm": "linf", "epsilon": 0.1}
  )
  arguments = [
    f"--encoder={encoder}",
    "--tasks=digits:parity,digits:rotation(degrees=30)",
    "--examples=200",
    "--validation_split=train[-100:]",
    "--test_examples=50",
    "--labels=0.5",
    "--attacks=pgd(steps=2)",
    "--extra_finetune=--epochs=2",
    "--extra_evaluate=--eot=2 --samples=5 --nochecks",
    "--extra_regression=--attack_steps=2 --eot=2 --samples=5",
    f"--work={tmp_path / 'work'}",
  ]
  with monkeypatch.context() as patch:
    patch.setattr(script.jobs.subprocess, "run", commands.here)
    script.transfer(arguments)
  parity, angle = json.loads((tmp_path / "work" / "transfer.json").read_text())["rows"]
  assert (parity["encoder"], parity["measure"], angle["measure"]) == ("run", "accuracy", "rmse")
  folder = tmp_path / "work" / "run" / "digits-parity"
  report = json.loads((folder / "slf-0-report" / "report.json").read_text())
  assert parity["clean"] == [pytest.approx(100 * report["clean"]["accuracy"])]
  assert parity["attacked"][0] <= parity["clean"][0]
  assert angle["attacked"][0] >= angle["clean"][0]
  assert 40 < parity["guess"] < 60
  assert angle["guess"] == pytest.approx(30 / 3**0.5, rel=0.1)  # of a uniform angle
  assert len(json.loads((folder / "slf-0" / "labels.json").read_text())["positions"]) == 100
  page = (tmp_path / "work" / "transfer.md").read_text()
  assert "| digits:rotation(degrees=30) | error in the angle in degrees |" in page
  assert str(tmp_path) not in page + (tmp_path / "work" / "transfer.json").read_text()
  assert "--tasks='digits:parity,digits:rotation(degrees=30)'" in page
  assert "--encoder=run=RUN/encoder" in page

  again = []
  fail = lambda words, **_: again.append(words) or subprocess.CompletedProcess(words, 1)  # noqa: E731
  monkeypatch.setattr(script.jobs.subprocess, "run", fail)
  script.transfer(arguments)
  assert again == []
  assert (tmp_path / "work" / "transfer.md").read_text() == page
  # Another encoder in the same folder is not taken for the first.
  metadata = json.loads((encoder / "metadata.json").read_text())
  (encoder / "metadata.json").write_text(json.dumps({**metadata, "fingerprint": "another"}))
  with pytest.raises(SystemExit):
    script.transfer(arguments)
  assert len(again) == 1
