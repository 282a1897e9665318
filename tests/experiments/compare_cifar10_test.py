"""The comparison on CIFAR-10: its figures, and a small one from images to table."""

import json

import commands
import pytest

from experiments import compare_cifar10 as script

CONFIG = "configs/cifar10_small.cfg"


def _stages(name, labels, *arguments):
  parser = script.jobs.parser("", script.NAME, script.ROWS, "cifar10")
  given = parser.parse_args(["--work=W", *arguments])
  asked = script.jobs.read(given, script.NAME, script.ROWS, "cifar10")
  return script.stages(script.find_row(name), 1, labels, asked, CONFIG, "images", 50000)


@pytest.mark.parametrize(
  "name, gradients",
  [("simclr", 2), ("rocl", 6), ("acl_ds", 10), ("simclr_urkle", 6), ("at", 4), ("trades", 5)],
)
def test_gradient_evaluations_of_an_image(name, gradients):
  """By hand: images of the training pass, and three steps for each that is attacked."""
  assert script.find_row(name).gradients(3) == gradients


def test_epochs():
  given = {"epochs": "4", "attack_steps": "3"}
  of = lambda name, equal: script.epochs(script.find_row(name), given, equal)  # noqa: E731
  assert [of(name, "images") for name in ("simclr", "acl_ds")] == [4, 4]
  # 4 epochs of 6 gradients are 12 of 2, and 2.4 of 10.
  assert [of(name, "gradients") for name in ("simclr", "simclr_urkle", "acl_ds")] == [12, 4, 2]


def test_rows_that_need_another_train_it_first():
  teacher, student, *_ = _stages("distil", "all")
  assert (teacher.folder, student.folder) == ("W/simclr-1", "W/distil-1")
  assert teacher == _stages("simclr", "all")[0]
  assert "--pretext=distil(teacher='W/simclr-1/encoder', start=true)" in student.words
  encoder, head, *_ = _stages("urrl_plain", "all")
  assert encoder == _stages("urrl", "all")[0]
  assert {"--encoder=W/urrl-1/encoder", "--protocol=similarity(weight=0)"} <= set(head.words)


def test_only_the_strong_seeds_and_labels_meet_autoattack(tmp_path, monkeypatch):
  found = []
  keep = lambda rows, publish, page: found.extend(stage.folder for row in rows for stage in row)  # noqa: E731
  monkeypatch.setattr(script.jobs, "run_rows", keep)
  arguments = ["--dataset=digits", f"--work={tmp_path}", "--rows=simclr,at", "--seeds=3"]
  arguments += ["--labels=all,64", "--strong_labels=64", "--strong_seeds=2"]
  script.compare(arguments)
  strong = [folder.rpartition("/")[2] for folder in found if folder.endswith("-autoattack")]
  wanted = [f"{name}-64-{seed}-autoattack" for seed in (0, 1) for name in ("simclr", "at")]
  assert strong == wanted
  assert sum(folder.endswith("-evaluate") for folder in found) == 2 * 2 * 3


def test_another_budget_does_not_replace_the_page_of_the_usual_one(tmp_path, monkeypatch):
  found = []
  monkeypatch.setattr(script.jobs, "run_rows", lambda rows, publish, page: found.append(page))
  script.compare(["--config=configs/digits.cfg", f"--work={tmp_path}"])
  assert found == [tmp_path / "cifar10_small.md"]


def _attack(mode, epsilon, accuracy):
  return {"mode": mode, "epsilon": epsilon, "accuracy": accuracy}


def test_scores():
  clean = {"mode": "sampled", "accuracy": 0.5, "ece": 0.12345, "examples": 20, "deterministic": {}}
  attacks = [("sampled", 8, 0.3), ("deterministic", 8, 0.1), ("sampled", 16, 0.0)]
  attacks = [_attack(mode, level / 255, accuracy) for mode, level, accuracy in attacks]
  report = {"clean": clean, "attacks": attacks, "representation": {"effective_rank": 7.123}}
  attacks = [_attack("sampled", 8 / 255, accuracy) for accuracy in (0.29, 0.25)]
  strong = {"clean": {"mode": "sampled"}, "attacks": attacks, "corruptions": {"mean": 0.4}}
  found = script.compare_page.scores(report, strong)
  expected = {"clean": 50.0, "pgd_8": 30.0, "pgd_16": 0.0, "autoattack": 25.0}
  assert found == {**expected, "corruptions": 40.0, "ece": 0.1235, "rank": 7.12}
  found = script.compare_page.scores(report, None)
  assert found["autoattack"] is found["corruptions"] is None


def test_differences_by_seed():
  """By hand: differences 2, 4 and 3 have the mean 3, and an interval of 4.303 / sqrt(3)."""

  def part(seeds, values):
    return {"all": {"seeds": seeds, **dict.fromkeys(("clean", "pgd_8", "pgd_16"), values)}}

  rows = [
    {"system": "RoCL", "labels": part([2, 0, 1], [7.0, 10.0, 20.0])},
    {"system": "SimCLR+Urkle", "labels": part([0, 1, 2, 3], [12.0, 24.0, 10.0, 1.0])},
  ]
  text = script.compare_page.paired({"rows": rows})
  assert text.count("| +3.00 | +0.52 to +5.48 | shown |") == 3
  rows[0]["labels"] = part([2, 0, 1], [7.0, 10.0, 29.0])  # 2, -5 and 3
  assert script.compare_page.paired({"rows": rows}).count("| no difference shown |") == 3
  assert script.compare_page.paired({"rows": rows[:1]}) == ""


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_small_comparison_and_then_nothing_more_to_do(tmp_path, monkeypatch):
  words = ["--rows=distil,standard", "--seeds=1", "--labels=64", "--strong_labels=64"]
  measured = "--corruptions=contrast --severities=5 --attacks='pgd(steps=2)'"
  measured += " --representation_examples=20"
  arguments = commands.small(tmp_path, *words, evaluate=measured)
  file = tmp_path / "cifar10_small.md"
  page = commands.run_experiment(script.compare, arguments, file, monkeypatch)
  document = json.loads((tmp_path / "cifar10_small.json").read_text())
  rows = {row["system"]: row for row in document["rows"]}
  assert list(rows) == ["Distil+Urkle", "Standard"]
  assert (document["examples"], document["strong_examples"]) == (20, 20)
  for row in rows.values():
    assert row["images_seen"] == [256]
    ((labels, part),) = row["labels"].items()
    assert (labels, part["seeds"]) == ("64", [0])
    assert 0 <= part["pgd_16"][0] <= part["pgd_8"][0] <= 100
    assert 0 <= part["autoattack"][0] <= 100
    assert part["ece"][0] >= 0
  assert "### 64 labels" in page
  assert str(tmp_path) not in page
  assert (tmp_path / "cifar10_small.png").exists()
