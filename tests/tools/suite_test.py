"""`benchmark.py --suite`: its parts, its JSON and the page that it writes."""

import argparse
import json
import subprocess
import sys

import pytest

from experiments import jobs, pages
from tools import speed_page, suite
from urkle_tf import errors

FOUND = pages.read(jobs.ROOT / "docs" / "results" / "speed.json")


@pytest.mark.parametrize(
  "plain, said",
  [
    ([(4, 6.0, 0.9), (8, 12.0, 0.971)], "0.25 of the time of plain (goal 0.33: met)"),
    ([(4, 6.0, 0.9)], "at most 0.50 of the time of plain (goal 0.33: not shown)"),
  ],
)
def test_the_race_to_a_target(plain, said):
  names, usual = ("epochs", "core_minutes", "accuracy"), FOUND["options"][0]
  systems = {"plain": plain, "fast": [(4, 3.0, 0.975)], "slow": [(4, 9.0, 0.975)]}
  systems["weak"] = [(4, 2.0, 0.2)]
  race = [
    {"system": name, "tried": [{**usual, **dict(zip(names, row, strict=True))} for row in rows]}
    for name, rows in systems.items()
  ]
  text = speed_page.page({**FOUND, "target": {"target": 0.97, "systems": race}})
  assert f"- fast: {said}" in text
  slow = "- slow: 0.75 of the time of plain (goal 0.33: not met)"
  assert (slow in text) == (len(plain) == 2)
  assert "- weak: not reached within 4 epochs" in text
  assert ("plain stopped at the cap of 4 epochs" in text) == (len(plain) == 1)


def test_a_part_is_measured_once_and_the_page_follows(tmp_path, monkeypatch):
  page, out = tmp_path / "speed.md", tmp_path / "speed.json"

  def run(**more):
    given = {"scale": "tiny", "out": str(out), "page": str(page), "parts": None, **more}
    suite.run(argparse.Namespace(**given))

  measured = []
  for name in suite.PARTS:

    def part(scale, options, name=name):
      """One line."""
      measured.append(name)
      if measured.count("growth") == 1:
        raise KeyboardInterrupt
      return FOUND[name]

    monkeypatch.setitem(suite.PARTS, name, part)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert not page.exists()
  run()
  assert sorted(measured) == sorted([*suite.PARTS, "growth"])
  found = pages.read(out)
  assert {name: found[name] for name in suite.PARTS} == {name: FOUND[name] for name in suite.PARTS}
  assert page.read_text() == speed_page.page(found)
  del found["views"]
  out.write_text(json.dumps(found))
  run(parts="step")
  assert "Not measured yet: `--parts=views`." in page.read_text()
  for wrong, said in (
    ({"parts": "step,grwth"}, "did you mean 'growth'"),
    ({"scale": "full"}, "holds figures of --scale=tiny"),
    ({"scale": "tiy"}, "did you mean 'tiny'"),
  ):
    with pytest.raises(errors.UserError, match=said):
      run(**wrong)


def test_sizes_are_measured_one_at_a_time(monkeypatch):
  asked = []

  def benchmark(scale, **options):
    asked.append(options)
    return FOUND["growth"]["image_size"][0]

  monkeypatch.setattr(suite, "_benchmark", benchmark)
  found = suite.growth(suite.SCALES["full"], None)
  assert [row["value"] for row in found["attack_steps"]] == [1, 2, 4, 8]
  first = {"batch_size": 16, "attack_steps": 1, "image_size": 32}
  changed = [sum(options[name] != value for name, value in first.items()) for options in asked]
  assert changed == [0, 1, 1, 1, 0, 1, 1, 1, 0, 1]


def test_every_system_is_a_training():
  """The flags of the race to the target are flags, and its cells make sense."""
  from urkle_tf import attacks, robustness, settings, spec
  from urkle_tf.training import attack_schedules

  assert set(suite.RACING) <= set(suite.SYSTEMS)
  for flags in [*suite.SYSTEMS.values(), *suite.VIEWS.values()]:
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert set(given) <= set(settings.Pretrain.__dataclass_fields__)
    scheme = spec.build("robustness", given.get("robustness", "urkle"), robustness.Robustness)
    steps, threat = int(given.get("attack_steps", 2)), attacks.Linf(0.1)
    attack = attacks.from_spec(given.get("attack", "pgd"), threat, steps)
    schedule = attack_schedules.from_spec(given.get("attack_schedule", "constant"))
    schedule.check(attack, scheme)


def test_a_figure_is_measured_once(monkeypatch):
  """A failure is one line, and is tried again; what was printed is taken again."""
  printed = [(1, "", "error: no"), (0, '{"step_seconds": 2.5}', "")]
  run = lambda command, **_: subprocess.CompletedProcess(command, *printed.pop(0))  # noqa: E731
  monkeypatch.setattr(suite.subprocess, "run", run)
  scale = suite.SCALES["full"]
  with pytest.raises(errors.UserError, match=r"benchmark.py --steps=-3 failed: error: no"):
    suite._benchmark(scale, steps=-3)
  for _ in range(2):
    assert suite._benchmark(scale, steps=-3) == {"step_seconds": 2.5}


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_suite_for_real(tmp_path):
  """At its tiniest."""
  flags = ["--suite", "--scale=tiny", f"--out={tmp_path / 'speed.json'}"]
  flags += [f"--page={tmp_path / 'speed.md'}", f"--work={tmp_path / 'work'}"]
  subprocess.run([sys.executable, suite.BENCHMARK, *flags], check=True, cwd=jobs.ROOT)
  found = pages.read(tmp_path / "speed.json")
  assert set(suite.PARTS) <= set(found)
  assert (tmp_path / "speed.md").read_text() == speed_page.page(found)
