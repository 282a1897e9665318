"""`benchmark.py --suite`, for real: its parts, its JSON and the page that it writes."""

import sys
import types

import commands
import pytest
from cases import refuses
from small_models import write_rows

from experiments import jobs, pages
from tools import speed_page, suite


def test_a_training_that_is_only_looked_at_again_keeps_its_time(tmp_path, monkeypatch):
  """With another --data_dir, the command is run again, and finds that there is nothing to do."""
  run = tmp_path / "run-1"
  pages.write(run / "spent.json", {"seconds": 600.0})
  report = {"clean": {"accuracy": 0.9, "examples": 10}, "attacks": [{"accuracy": 0.5}]}
  pages.write(tmp_path / "run-1-report" / "report.json", report)
  write_rows(run, [{"seconds": 300.0, "kl": 0.5}])
  monkeypatch.setattr(jobs, "run_python", lambda words: 0)
  options = types.SimpleNamespace(work=str(tmp_path), data_dir=str(tmp_path))
  found = suite._trained(suite.SCALES["tiny"], options, "run", [], 1)
  assert (found["core_minutes"], found["minutes"]) == (10.0, 5.0)


def test_a_benchmark_that_fails_says_why_in_one_line(tmp_path, monkeypatch):
  program = tmp_path / "benchmark.py"
  monkeypatch.setattr(suite, "BENCHMARK", program)
  for text, why in (("1 / 0", "ZeroDivisionError: division by zero"), ("exit(3)", "exit code 3")):
    program.write_text(text)
    refuses(f"benchmark.py --why={why} failed: {why}", suite._printed, f"--why={why}")


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_suite_for_real(tmp_path):
  """At its tiniest."""
  flags = ["--suite", "--scale=tiny", f"--out={tmp_path / 'speed.json'}"]
  flags += [f"--page={tmp_path / 'speed.md'}", f"--work={tmp_path / 'work'}"]
  commands.process(sys.executable, suite.BENCHMARK, *flags)
  found = pages.read(tmp_path / "speed.json")
  assert set(suite.PARTS) <= set(found)
  assert (tmp_path / "speed.md").read_text() == speed_page.page(found)
