"""`benchmark.py --suite`, for real: its parts, its JSON and the page that it writes."""

import sys

import commands
import pytest

from experiments import pages
from tools import speed_page, suite


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
