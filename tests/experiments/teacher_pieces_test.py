"""The pieces of the teacher's recipe: the table by hand, and a small whole run."""

import json

import commands
import pytest

from experiments import teacher_pieces as script


def test_pieces_are_compared_by_seed():
  """By hand: 2 and 4 ahead are 3 on the mean; the deviation is sqrt(2), and t is 12.706."""
  recipe, views = {"0": 70.0, "1": 72.0, "2": 50.0}, {"1": 68.0, "0": 68.0}
  lines = script.table({"recipe": recipe, "views": views}).splitlines()
  assert lines[2].startswith("| nothing | 64.00 ± 12.17 (")
  name, difference = "2 views, twice the batch and epochs", "+3.00 ± 1.41 (-9.71 to +15.71)"
  assert lines[3] == f"| {name} | 68.00 ± 0.00 (68.00 to 68.00) | {difference} | 2 |"
  assert script.table({"views": views}).splitlines()[2].endswith("|  | 2 |")


def test_what_is_measured_was_not_trained_on():
  given = script.jobs.parser("", script.NAME, script.ROWS, "cifar10").parse_args(["--work=W"])
  asked = script.jobs.read(given, script.NAME, script.ROWS, "cifar10")
  given.epochs, given.precision = 10, "mixed_bfloat16"
  found = script.stages(script.jobs.find_row(script.ROWS, "views"), 1, asked, given)
  flags = [script.jobs.flags(stage.arguments) for stage in found]
  assert flags[0]["epochs"] == "20"  # twice as many, of half as many views
  assert [each["dataset"] for each in flags] == ["cifar10"] * 3
  splits = ["train[:45000]", "train[:45000]", "train[45000:]"]
  assert [each["split"] for each in flags] == splits


@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_was_measured_elsewhere_stays(tmp_path, monkeypatch):
  kept = {"recipe": {"0": 71.5}}
  (tmp_path / "teacher_pieces.json").write_text(json.dumps({"2 epochs": kept}))
  splits = {"train": "--split=train", "finetune": "--split=train", "evaluate": "--split=test"}
  arguments = commands.small(tmp_path, "--rows=recipe,views", "--seeds=1", **splits)
  page = commands.run_experiment(script.run, arguments, tmp_path / "teacher_pieces.md", monkeypatch)
  assert "| nothing | 71.50 |  | 1 |" in page
  assert not (tmp_path / "2-float32/recipe-0").exists()
  found = json.loads((tmp_path / "teacher_pieces.json").read_text())["2 epochs"]
  assert 0 <= found["views"]["0"] <= 100
