"""`benchmark.py --suite`: its parts, its JSON and the page that it writes."""

import argparse
import json
import pathlib
import subprocess
import sys

import pytest

from urkle_tf import errors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
import speed_page
import suite

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _step(width, precision, rate, share):
  return {
    "width": width,
    "precision": precision,
    "step_images_per_second": rate,
    "forward_images_per_second": 34 * rate / share,
    "passes": 34,
    "share_of_ceiling": share,
    "waiting_share": 0.01,
    "start_seconds": 5.0,
    "build_seconds": 2.0,
    "compile_seconds": 12.0,
    "peak_memory_mib": 1500.0,
    "machine": {"cores": 2, "tensorflow": "2.21.0", "keras": "3.15.1", "load": 0.1},
  }


def _tried(*rows):
  names = ("epochs", "minutes", "clean", "accuracy")
  return [dict(zip(names, row, strict=True)) for row in rows]


FOUND = {
  "scale": "full",
  "date": "2026-01-02",
  "command": "python launch/benchmark.py --suite --scale=full",
  "step": [_step(64, "float32", 10.0, 0.9), _step(64, "mixed_bfloat16", 17.0, 0.7)],
  "pipeline": {"images_per_second": 14_900.0},
  "growth": {
    "batch_size": [
      {"value": 32, "step_seconds": 0.1, "step_memory_mib": 100.0},
      {"value": 64, "step_seconds": 0.21, "step_memory_mib": 190.0},
    ]
  },
  "workers": {
    "steps": 100,
    "step_seconds": {"1": 0.1, "2": 0.125},
    "overhead": 0.25,
    "loss_difference": 3.2e-6,
  },
  "soak": {"curve": [[10 * k, 800.0 + k] for k in range(1, 41)], "grown_mib": 1.5},
  "target": {
    "target": 0.97,
    "systems": [
      {"system": "plain", "flags": [], "tried": _tried((4, 3.0, 0.98, 0.9), (8, 6.0, 0.99, 0.971))},
      {"system": "fast", "flags": [], "tried": _tried((4, 1.5, 0.99, 0.975))},
      {"system": "weak", "flags": [], "tried": _tried((4, 1.0, 0.99, 0.2))},
    ],
  },
}


def test_the_page_holds_what_was_measured():
  text = speed_page.page(FOUND)
  for line in (
    "| 64 | float32 | 10.0 | 378 | 34 | 90.0% | 1.0% |",
    "- width 64: 90.0% of the ceiling in float32 (goal 85%: met); bfloat16 1.70 times float32 "
    "(goal 1.8: not met)",
    "- waiting at most 1.0% (goal 3%: met)",
    "One SimCLR view, one core: 14,900 images a second (goal 15,000: not met).",
    "| 64 | 210.0 ms | 190 MiB |",
    "2 times the images a step: 2.10 times the time, 1.90 times the memory.",
    "| plain | 8 | 6.00 | 1.00 | 99.00 | 97.10 |",
    "| fast | 4 | 1.50 | 0.25 | 99.00 | 97.50 |",
    "| weak | 4 | not in 1.00 |  | 99.00 | 20.00 |",
    "100 steps: 100.0 ms by one worker, 125.0 ms by two that share the same cores: 25.0% more.",
    "| 400 | 840 MiB |",
    "From the first quarter to the end it grew by 1.5 MiB.",
  ):
    assert line in text, line
  assert "shows nothing" not in text
  assert "shows nothing" in speed_page.page({**FOUND, "scale": "tiny"})


def _options(folder, **more):
  given = {"scale": "tiny", "out": str(folder / "speed.json"), "page": None, "work": str(folder)}
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
  assert {name: found[name] for name in suite.PARTS} == {n: FOUND[n] for n in suite.PARTS}
  assert page.read_text() == speed_page.page(found)
  with pytest.raises(errors.UserError, match="holds figures of --scale=tiny"):
    suite.run(_options(tmp_path, scale="full"))
  with pytest.raises(errors.UserError, match="did you mean 'tiny'"):
    suite.run(_options(tmp_path, scale="tiy"))


def test_sizes_are_measured_one_at_a_time(monkeypatch):
  asked = []

  def benchmark(**options):
    asked.append(options)
    return {"step_seconds": 1.0, "step_memory_mib": 2.0}

  monkeypatch.setattr(suite, "_benchmark", benchmark)
  scale = suite.SCALES["tiny"]
  found = suite.growth(scale, None)
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
  from urkle_tf import attack_schedules, attacks, robustness, spec, train

  for flags in suite.SYSTEMS.values():
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert set(given) <= {*train._SHARED, *train._OWN}
    scheme = spec.build("robustness", given.get("robustness", "urkle"), robustness.Robustness)
    threat = attacks.Linf(0.1)
    attack = attacks.from_spec(
      given.get("attack", "pgd"), threat, int(given.get("attack_steps", 2))
    )
    schedule = attack_schedules.from_spec(given.get("attack_schedule", "constant"))
    schedule.check(attack, scheme)


def test_the_suite_for_real(request, tmp_path):
  """At its tiniest; it still takes minutes, so only with --full."""
  if not request.config.getoption("--full"):
    pytest.skip("run with --full")
  flags = ["--suite", "--scale=tiny", f"--out={tmp_path / 'speed.json'}"]
  flags += [f"--page={tmp_path / 'speed.md'}", f"--work={tmp_path / 'work'}"]
  command = [sys.executable, ROOT / "launch" / "benchmark.py", *flags]
  subprocess.run(command, check=True, cwd=ROOT, timeout=1800)
  found = json.loads((tmp_path / "speed.json").read_text())
  assert set(suite.PARTS) <= set(found)
  assert found["workers"]["loss_difference"] < 1e-3
  assert (tmp_path / "speed.md").read_text() == speed_page.page(found)
