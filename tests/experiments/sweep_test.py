"""The launcher of sweeps: its points, its folders, its table, and a small whole run."""

import itertools
import sys

import pytest
from cases import refuses
from small_models import write_rows

from experiments import sweep as script


def test_a_grid_has_each_value_with_each():
  texts = ["robustness=none, urkle(beta=0.1, attacked=1)", "--epochs=1,2"]
  wanted = itertools.product(("none", "urkle(beta=0.1, attacked=1)"), ("1", "2"))
  wanted = [{"robustness": scheme, "epochs": epochs} for scheme, epochs in wanted]
  assert script.points(script.read_values(texts)) == wanted
  assert script.points(script.read_values(["epochs=1, 2, 1"])) == [{"epochs": "1"}, {"epochs": "2"}]


def test_random_points_are_drawn_from_lists_and_ranges():
  values = script.read_values(["rate=1e-4..1e-2:log ", "steps=2..4", "beta=0..0.5", "seed=0,1"])
  found = script.points(values, 200, seed=3)
  assert found == script.points(values, 200, seed=3)
  assert found[:20] == script.points(values, 20, seed=3)  # more points are the same and more
  assert found != script.points(values, 200, seed=4)
  assert len({tuple(point.values()) for point in found}) == 200
  rates = [float(point["rate"]) for point in found]
  assert 1e-4 <= min(rates) <= max(rates) <= 1e-2
  assert 0.35 < sum(rate < 1e-3 for rate in rates) / 200 < 0.65  # half of the logarithms
  assert {point["steps"] for point in found} == {"2", "3", "4"}
  assert {point["seed"] for point in found} == {"0", "1"}
  assert 0.2 < sum(float(point["beta"]) for point in found) / 200 < 0.3
  assert len(script.points(script.read_values(["seed=0,1"]), 10)) == 2


def test_a_range_between_whole_numbers_gives_whole_ones_in_logarithms_too():
  found = script.points(script.read_values(["batch_size=8..4096:log"]), 100)
  assert all(8 <= int(point["batch_size"]) <= 4096 for point in found)
  # A path is no range.
  found = script.read_values(["dataset=folder:../a,folder:../b"])
  assert found == {"dataset": ["folder:../a", "folder:../b"]}


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
  refuses("clean", script.table, rows, "cleen")


def test_the_figures_of_a_head_are_those_of_its_exported_epoch(tmp_path):
  """`aff` exports the epoch that did best under attack, which need not be the last one."""
  head = tmp_path / "head"
  accuracies = {3: 0.5, 6: 0.75, 9: 0.25}
  rows = [{"step": step, "validation_robust_accuracy": a} for step, a in accuracies.items()]
  write_rows(head, rows)
  assert script.results(tmp_path) == {}  # of a sweep whose --finetune was interrupted
  write_rows(tmp_path, [{"loss": None}])  # all steps were skipped
  selected = {"selected": {"step": 6, "epoch": 2}}
  script.pages.write(head / "classifier" / "metadata.json", selected)
  assert script.results(tmp_path) == {"validation_robust_accuracy": 0.75}


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
