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
