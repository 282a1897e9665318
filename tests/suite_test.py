"""`benchmark.py --suite`: its parts, its JSON and the page that it writes."""

import argparse
import json
import pathlib
import subprocess
import sys

import pytest

from tools import speed_page, suite
from urkle_tf import errors

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _step(width, precision, rate, share):
  return {
    "width": width,
    "precision": precision,
    "step_images_per_second": rate,
    "step_core_seconds": 40 / rate,
    "forward_images_per_second": 34 * rate / share,
    "passes": 34,
    "share_of_ceiling": share,
    "waiting_share": 0.01,
    "start_seconds": 5.0,
    "build_seconds": 2.0,
    "compile_seconds": 12.0,
    "peak_memory_mib": 1500.0,
    "machine": {"cores": 2, "tensorflow": "2.21.0", "keras": "3.15.1", "load": 0.1},
    "settings": {"pretext": "simclr"},
  }


def _tried(*rows):
  names = ("epochs", "minutes", "core_minutes", "clean", "accuracy")
  return [dict(zip(names, row, strict=True)) for row in rows]


def _grown(value, seconds, mib, passes=18):
  times = {"build_seconds": 2.0, "compile_seconds": 9.5, "passes": passes}
  times |= {"step_seconds": seconds, "step_core_seconds": 1.5 * seconds}
  return {"value": value, "step_memory_mib": mib, **times}


def _option(system, core_minutes, accuracy):
  (row,) = _tried((1, 3.0, core_minutes, 0.98, accuracy))
  return {"system": system, "kl": 1.5, "examples": 4000, **row}


FOUND = {
  "scale": "full",
  "date": "2026-01-02",
  "command": "python tools/benchmark.py --suite --scale=full",
  "step": [_step(64, "float32", 10.0, 0.9), _step(64, "mixed_bfloat16", 17.0, 0.7)],
  "pipeline": {
    "images_per_second": 12_000.0,
    "images_per_core_second": 14_900.0,
    "settings": {"image_size": 32},
  },
  "growth": {
    "batch_size": [_grown(32, 0.1, 100.0), _grown(64, 0.21, 190.0)],
    "attack_steps": [_grown(1, 0.1, 100.0), _grown(8, 0.4, 105.0, 46)],
  },
  "workers": {
    "steps": 100,
    "step_seconds": {"1": 0.1, "2": 0.125},
    "overhead": 0.25,
    "first_difference": 1.5e-7,
    "loss_difference": 3.2e-6,
  },
  "soak": {"steps": 400, "curve": [[10 * k, 800.0 + k] for k in range(1, 41)], "grown_mib": 1.5},
  "options": [_option("plain", 4.0, 0.95), _option("fast", 1.0, 0.94)],
  "views": [_option("two views", 2.0, 0.8), _option("one view", 1.5, 0.79)],
  "target": {
    "target": 0.97,
    "systems": [
      {
        "system": "plain",
        "tried": _tried((4, 3.0, 6.0, 0.98, 0.9), (8, 6.0, 12.0, 0.99, 0.971)),
      },
      {"system": "fast", "tried": _tried((4, 1.5, 3.0, 0.99, 0.975))},
      {"system": "slow", "tried": _tried((4, 1.5, 9.0, 0.99, 0.975))},
      {"system": "weak", "tried": _tried((4, 1.0, 2.0, 0.99, 0.2))},
    ],
  },
  "minutes": {"step": 6.5},
  "loads": {"step": [0.1, 2.0]},
}


def test_the_page_holds_what_was_measured():
  text = speed_page.page(FOUND)
  for line in (
    "| 64 | float32 | 10.0 | 378 | 34 | 90.0% | 1.0% |",
    "- width 64: 90.0% of the ceiling in float32 (goal 85%: met); bfloat16 1.70 times float32, "
    "by processor time 1.70 times (goal 1.8: not met)",
    "- waiting at most 1.0% (goal 3%: met)",
    "One SimCLR view, 32x32, one thread: 12,000 images a second, and 14,900 by processor time "
    "(goal 15,000 a core: not met).",
    "| 64 | 210 ms | 315 ms | 190 MiB | 2.0 s | 9.5 s |",
    "2 times the images a step: 2.10 times the processor time, 1.90 times the memory.",
    "8 times the PGD steps: 4.00 times the processor time, 1.05 times the memory (goal: flat, "
    "within 10%: met), and 2.56 times the passes.",
    "| fast | 1.00 | 0.25 | 3.00 | 1.50 | 98.00 | 94.00 |",
    "| one view | 1.50 | 0.75 | 3.00 | 1.50 | 98.00 | 79.00 |",
    "Epochs: 1, one seed each, 4,000 test images: a standard error of about 0.3 points.",
    "| plain | 8 | 12.00 | 6.00 | 99.00 | 97.10 |",
    "- fast: 0.25 of the time of plain (goal 0.33: met)",
    "- slow: 0.75 of the time of plain (goal 0.33: not met)",
    "- weak: not reached within 4 epochs",
    "100 steps: 100.0 ms by one worker, 125.0 ms by two that share the same cores: 25.0% more.",
    "differ by at most 3.2e-06 of their value, the first by 1.5e-07.",
    "| 400 | 840 MiB |",
    "From the second quarter of the steps to the last it grew by 1.5 MiB",
    "| step | 6.5 | 0.1 | 2.0 |",
  ):
    assert line in text, line
  assert "shows nothing" not in text
  assert "cap" not in text
  assert "shows nothing" in speed_page.page({**FOUND, "scale": "tiny"})


def test_a_target_that_plain_training_misses_is_said(monkeypatch):
  plain, fast = FOUND["target"]["systems"][:2]
  short = {**plain, "tried": plain["tried"][:1]}
  found = {**FOUND, "target": {"target": 0.97, "systems": [short, fast]}}
  text = speed_page.page(found)
  assert "plain stopped at the cap of 4 epochs, below the target." in text
  assert "- fast: at most 0.50 of the time of plain (goal 0.33: not shown)" in text


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
  from urkle_tf import attack_schedules, attacks, robustness, spec, train

  assert set(suite.RACING) <= set(suite.SYSTEMS)
  for flags in [*suite.SYSTEMS.values(), *suite.VIEWS.values()]:
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert set(given) <= {*train._SHARED, *train._OWN}
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
