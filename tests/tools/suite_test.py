"""`benchmark.py --suite`: its parts, its JSON and the page that it writes."""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import pages
from tools import speed_page, suite
from urkle_tf import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _tried(*rows):
  names = ("epochs", "minutes", "core_minutes", "clean", "accuracy")
  return [dict(zip(names, row, strict=True)) for row in rows]


def _grown(value, seconds, mib, passes=18):
  times = {"build_seconds": 2.0, "compile_seconds": 9.5, "passes": passes}
  times |= {"step_seconds": seconds, "step_core_seconds": 1.5 * seconds}
  return {"value": value, "step_memory_mib": mib, **times}


FOUND = pages.read(ROOT / "docs" / "results" / "speed.json")


@pytest.mark.parametrize(
  "plain, said",
  [
    (
      [(4, 3.0, 6.0, 0.98, 0.9), (8, 6.0, 12.0, 0.99, 0.971)],
      "0.25 of the time of plain (goal 0.33: met)",
    ),
    ([(4, 3.0, 6.0, 0.98, 0.9)], "at most 0.50 of the time of plain (goal 0.33: not shown)"),
  ],
)
def test_the_race_to_a_target(plain, said):
  systems = {
    "plain": plain,
    "fast": [(4, 1.5, 3.0, 0.99, 0.975)],
    "slow": [(4, 1.5, 9.0, 0.99, 0.975)],
    "weak": [(4, 1.0, 2.0, 0.99, 0.2)],
  }
  race = [{"system": name, "tried": _tried(*rows)} for name, rows in systems.items()]
  text = speed_page.page({**FOUND, "target": {"target": 0.97, "systems": race}})
  assert f"- fast: {said}" in text
  slow = "- slow: 0.75 of the time of plain (goal 0.33: not met)"
  assert (slow in text) == (len(plain) == 2)
  assert "- weak: not reached within 4 epochs" in text
  assert ("plain stopped at the cap of 4 epochs" in text) == (len(plain) == 1)


def _options(folder, **more):
  given = {"scale": "tiny", "out": str(folder / "speed.json"), "page": None, "work": str(folder)}
  given["parts"] = None
  return argparse.Namespace(**{**given, "data_dir": None, **more})


def test_a_part_is_measured_once_and_the_page_follows(tmp_path, monkeypatch):
  measured = []
  for name in suite.PARTS:

    def part(scale, options, name=name):
      """One line."""
      measured.append(name)
      if name == "soak" and measured.count("soak") == 1:
        raise KeyboardInterrupt
      return FOUND[name]

    monkeypatch.setitem(suite.PARTS, name, part)
  page = tmp_path / "results" / "speed.md"
  with pytest.raises(KeyboardInterrupt):
    suite.run(_options(tmp_path, page=str(page)))
  assert not page.exists()
  suite.run(_options(tmp_path, page=str(page)))
  assert sorted(measured) == sorted([*suite.PARTS, "soak"])
  found = json.loads((tmp_path / "speed.json").read_text())
  expected = json.loads(json.dumps({name: FOUND[name] for name in suite.PARTS}))
  assert {name: found[name] for name in suite.PARTS} == expected
  assert page.read_text() == speed_page.page(found)
  assert set(found["minutes"]) == set(found["loads"]) == set(suite.PARTS)
  with pytest.raises(errors.UserError, match="did you mean 'soak'"):
    suite.run(_options(tmp_path, parts="step,soap"))
  del found["views"]
  (tmp_path / "speed.json").write_text(json.dumps(found))
  suite.run(_options(tmp_path, parts="step", page=str(page)))
  assert "## One attacked view or two\n\nNot measured yet: `--parts=views`." in page.read_text()
  with pytest.raises(errors.UserError, match="holds figures of --scale=tiny"):
    suite.run(_options(tmp_path, scale="full"))
  with pytest.raises(errors.UserError, match="did you mean 'tiny'"):
    suite.run(_options(tmp_path, scale="tiy"))


def test_sizes_are_measured_one_at_a_time(monkeypatch):
  asked = []

  def benchmark(folder, **options):
    asked.append(options)
    return _grown(0, 1.0, 2.0)

  monkeypatch.setattr(suite, "_benchmark", benchmark)
  scale = suite.SCALES["tiny"]
  found = suite.growth(scale, argparse.Namespace(work="."))
  names = {"batch_size": scale.batches, "attack_steps": scale.attack_steps}
  assert {name: tuple(row["value"] for row in rows) for name, rows in found.items()} == {
    **names,
    "image_size": scale.sizes,
  }
  first = {name: values[0] for name, values in {**names, "image_size": scale.sizes}.items()}
  for options in asked:
    assert sum(options[name] != value for name, value in first.items()) <= 1


def test_every_system_is_a_training(tmp_path):
  """The flags of the race to the target are flags, and its cells make sense."""
  from urkle_tf import attacks, robustness, settings, spec
  from urkle_tf.training import attack_schedules

  assert set(suite.RACING) <= set(suite.SYSTEMS)
  for flags in [*suite.SYSTEMS.values(), *suite.VIEWS.values()]:
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert set(given) <= {field.name for field in dataclasses.fields(settings.Pretrain)}
    scheme = spec.build("robustness", given.get("robustness", "urkle"), robustness.Robustness)
    threat = attacks.Linf(0.1)
    attack = attacks.from_spec(
      given.get("attack", "pgd"), threat, int(given.get("attack_steps", 2))
    )
    schedule = attack_schedules.from_spec(given.get("attack_schedule", "constant"))
    schedule.check(attack, scheme)


def test_a_figure_is_measured_once(tmp_path, monkeypatch):
  """What a run of benchmark.py printed is kept by its flags; a failure is one line, and not."""
  printed = [(1, "", "error: no"), (0, '{"step_seconds": 2.5}', ""), (0, '{"step_seconds": 7}', "")]

  def run(command, **options):
    return subprocess.CompletedProcess(command, *printed.pop(0))

  monkeypatch.setattr(suite.subprocess, "run", run)
  with pytest.raises(errors.UserError, match=r"benchmark.py --steps=3 failed: error: no"):
    suite._benchmark(tmp_path, steps=3)
  for _ in range(2):
    assert suite._benchmark(tmp_path, steps=3) == {"step_seconds": 2.5}
  assert suite._benchmark(tmp_path, steps=4) == {"step_seconds": 7}


def test_the_suite_for_real(request, tmp_path):
  """At its tiniest; it still takes minutes, so only with --full."""
  if not request.config.getoption("--full"):
    pytest.skip("run with --full")
  flags = ["--suite", "--scale=tiny", f"--out={tmp_path / 'speed.json'}"]
  flags += [f"--page={tmp_path / 'speed.md'}", f"--work={tmp_path / 'work'}"]
  command = [sys.executable, ROOT / "tools" / "benchmark.py", *flags]
  subprocess.run(command, check=True, cwd=ROOT, timeout=1800)
  found = json.loads((tmp_path / "speed.json").read_text())
  assert set(suite.PARTS) <= set(found)
  assert found["workers"]["loss_difference"] < 1e-3
  assert (tmp_path / "speed.md").read_text() == speed_page.page(found)
