"""The launcher of the transfer table: a small whole run."""

import json

import commands
import pytest
from small_models import small_encoder, write_rows

from experiments import transfer as script
from urkle_tf import export


def test_counts_are_at_most_those_there_are():
  # digits has 1,797 images: 1,437 to train on, of which the first 90% are 1,293
  found = script.source("digits", "train[:90%]", None, None, False)
  counts = [script.at_most(count, found) for count in (5000, 100, 0.1, None)]
  assert counts == [1293, 100, 0.1, None]


def test_the_validation_of_a_head_is_that_of_the_weights_that_were_kept(tmp_path):
  """The first of two epochs was the better one under attack."""
  folder = tmp_path / "run" / "digits"
  clean = {"mode": "deterministic", "accuracy": 0.5}
  row = {"name": "pgd", "norm": "linf", "epsilon": 0.1, "mode": "deterministic", "accuracy": 0.25}
  rows = [{"step": 1, "validation_accuracy": 0.75}, {"step": 2, "validation_accuracy": 0.875}]
  script.pages.write(folder / "aff-0-report" / "report.json", {"clean": clean, "attacks": [row]})
  write_rows(folder / "aff-0", rows)
  selected = {"selected": {"step": 1, "epoch": 1}}
  script.pages.write(folder / "aff-0" / "classifier" / "metadata.json", selected)
  found = script.collect(tmp_path, ["run"], ["digits"], ["aff"], lambda task: None)["rows"]
  assert [(one["validation"], one["attacked"]) for one in found] == [([75.0], [25.0])]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_from_an_encoder_to_the_table_and_then_nothing_more_to_do(tmp_path, monkeypatch, capfd):
  threat = {"norm": "linf", "epsilon": 0.1}
  encoder = export.export_encoder(small_encoder(), tmp_path / "run" / "encoder", threat)
  arguments = [f"--encoder={encoder}", "--tasks=digits:parity,digits:rotation(degrees=30)"]
  arguments += ["--examples=200", "--validation_split=train[-100:]", "--test_examples=50"]
  arguments += ["--labels=0.5", "--attacks=pgd(steps=2)", "--extra_finetune=--epochs=2"]
  arguments += ["--extra_evaluate=--eot=2 --samples=5", "--extra_evaluate=--nochecks"]
  arguments += ["--extra_regression=--attack_steps=2 --eot=2 --samples=5"]
  monkeypatch.setenv("HOME", str(tmp_path))
  arguments += ["--work=~/work"]  # a shell leaves it so
  file = tmp_path / "work" / "transfer.md"
  page = commands.run_experiment(script.transfer, arguments, file, monkeypatch)
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
  assert "| digits:rotation(degrees=30) | error in the angle in degrees |" in page
  assert str(tmp_path) not in page + (tmp_path / "work" / "transfer.json").read_text()
  assert "--tasks='digits:parity,digits:rotation(degrees=30)'" in page
  assert "--encoder=run=RUN/encoder" in page
  # Another encoder in the same folder is not taken for the first.
  metadata = json.loads((encoder / "metadata.json").read_text())
  (encoder / "metadata.json").write_text(json.dumps({**metadata, "fingerprint": "another"}))
  with pytest.raises(SystemExit):
    script.transfer(arguments)
  assert "made from another encoder" in capfd.readouterr().err
