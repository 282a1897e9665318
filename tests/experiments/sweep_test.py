"""The launcher of sweeps: its points, its folders, its table, and what a second call leaves out."""

import json
import pathlib
import sys

import pytest

from experiments import sweep as script
from urkle_tf import errors


def test_a_grid_has_each_value_with_each():
  texts = ["robustness=none, urkle(beta=0.1, attacked=1)", "--epochs=1,2"]
  assert script.points(script.read_values(texts)) == [
    {"robustness": "none", "epochs": "1"},
    {"robustness": "none", "epochs": "2"},
    {"robustness": "urkle(beta=0.1, attacked=1)", "epochs": "1"},
    {"robustness": "urkle(beta=0.1, attacked=1)", "epochs": "2"},
  ]


def test_random_points_are_drawn_from_lists_and_ranges():
  values = script.read_values(["rate=1e-4..1e-2:log", "steps=2..4", "beta=0..0.5", "seed=0,1"])
  found = script.points(values, 200, seed=3)
  assert found == script.points(values, 200, seed=3)
  assert found[:20] == script.points(values, 20, seed=3)  # more points are the same and more
  assert found != script.points(values, 200, seed=4)
  assert len({tuple(point.values()) for point in found}) == 200
  rates = [float(point["rate"]) for point in found]
  assert min(rates) >= 1e-4
  assert max(rates) <= 1e-2
  assert 0.35 < sum(rate < 1e-3 for rate in rates) / 200 < 0.65  # half of the logarithms
  assert {point["steps"] for point in found} == {"2", "3", "4"}
  assert {point["seed"] for point in found} == {"0", "1"}
  assert 0.2 < sum(float(point["beta"]) for point in found) / 200 < 0.3
  assert len(script.points(script.read_values(["seed=0,1"]), 10)) == 2


def test_folders_are_named_after_the_values():
  assert script.folder_name({"beta": "0.1", "seed": "1"}) == "beta=0.1,seed=1"
  alike = [script.folder_name({"robustness": f"urkle(beta{sign}1)"}) for sign in "=+"]
  assert alike[0] != alike[1]
  assert all("(" not in name for name in alike)
  assert len(script.folder_name({"x": "y" * 300})) < 100


def test_the_table_is_sorted_by_a_column():
  rows = [
    ({"beta": "0"}, {"clean": 0.9, "pgd": 0.1}),
    ({"beta": "1", "more": "a|b"}, {"clean": 0.7, "pgd": 0.51234}),
    ({"beta": "2"}, None),
    ({"beta": "3"}, {"clean": 0.6}),
  ]
  assert script.table(rows, "pgd").splitlines() == [
    "| beta | more | clean | pgd |",
    "| --- | --- | --- | --- |",
    "| 1 | a\\|b | 0.7 | 0.5123 |",
    "| 0 |  | 0.9 | 0.1 |",
    "| 2 |  | failed | failed |",
    "| 3 |  | 0.6 |  |",
  ]
  ascending = script.table(rows, "-clean").splitlines()
  assert [line.split("|")[1].strip() for line in ascending[2:]] == ["3", "1", "0", "2"]
  with pytest.raises(errors.UserError, match="clean"):
    script.table(rows, "cleen")


ATTACKS = [("sampled", 0.5), ("sampled", 0.4), ("deterministic", 0.1)]
REPORT = {
  "clean": {"mode": "sampled", "accuracy": 0.8, "deterministic": {"accuracy": 0.7}},
  "attacks": [
    {"name": "pgd", "norm": "linf", "epsilon": 0.1, "mode": mode, "accuracy": accuracy}
    for mode, accuracy in ATTACKS
  ],
}


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
  """A function of further arguments that sweeps with commands that only leave files behind.

  It returns (what it printed, its exit code, the commands that ran).
  """

  def run_stages(stages):
    for stage in stages:
      ran.append(stage.text)
      folder = pathlib.Path(stage.folder)
      folder.mkdir(parents=True, exist_ok=True)
      if stage.module == "evaluate":
        (folder / "report.json").write_text(json.dumps(REPORT))
        continue
      if "--beta=bad" in stage.words:
        sys.exit(2)
      beta = [float(w.split("=")[1]) for w in stage.words if w.startswith("--beta=")]
      row = {"loss": beta[0], "step": 1} if beta else {"validation_accuracy": 0.75}
      (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")

  ran = []
  monkeypatch.setattr(script.jobs, "run_stages", run_stages)

  def run(*arguments):
    ran.clear()
    words = ["sweep", f"--output_dir={tmp_path}", "--train=--epochs=1", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    code = 0
    try:
      script.main()
    except SystemExit as ended:
      code = ended.code
    return capsys.readouterr().out, code, list(ran)

  return run


def test_a_point_that_fails_does_not_end_it(sweep, tmp_path):
  said, code, _ = sweep("--values=beta=bad,0.5")
  assert code == 1
  assert "| bad | failed |" in said
  assert "| 0.5 | 0.5 |" in said
  said, code, ran = sweep("--values=beta=0.5,1", "--evaluate=--split=all", "--list")
  assert (code, ran) == (0, [])
  first, _ = said.splitlines()
  assert first.startswith("python -m urkle_tf.train --epochs=1 --beta=0.5 --output_dir=")
  assert f" && python -m urkle_tf.evaluate --encoder={tmp_path}/beta=0.5/encoder" in first


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_small_sweep_as_it_is(tmp_path, monkeypatch):
  train = "--encoder='convnet(width=4, layers=2)' --examples=64 --batch_size=32"
  words = ["sweep", f"--output_dir={tmp_path}", f"--train={train} --epochs=1 --attack_steps=1"]
  monkeypatch.setattr(sys, "argv", [*words, "--values=robustness=none,urkle(beta=0.1)"])
  script.main()
  first = (tmp_path / "sweep.md").read_text()
  assert first.count("\n") == 4
  events = sorted(tmp_path.glob("*/tensorboard/*"))
  script.main()
  assert (tmp_path / "sweep.md").read_text() == first
  assert sorted(tmp_path.glob("*/tensorboard/*")) == events  # nothing was trained again
