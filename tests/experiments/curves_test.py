"""The script that draws the curves of runs."""

import sys

import commands
from commands import ROOT
from PIL import Image
from small_models import write_rows


def test_curves_are_drawn_and_a_missing_run_is_named(tmp_path):
  run, picture = tmp_path / "run", tmp_path / "curves.png"
  write_rows(run, [{"epoch": epoch, "loss": 1 / epoch} for epoch in (1, 2, 3)])
  words = (sys.executable, ROOT / "experiments" / "curves.py", picture, f"A={run}")
  done = commands.process(*words, f"B={tmp_path / 'rnu'}", code=2)
  assert done.stderr.startswith(f"error: {tmp_path / 'rnu' / 'metrics.jsonl'} does not exist")
  twice = commands.process(*words, f"A={run}", code=2)
  assert twice.stderr == "error: A is given twice: give each run another name\n"
  forgotten = commands.process(*words[:2], f"A={run}", f"B={run}", code=1, cwd=tmp_path)
  assert "OUT.png NAME=RUN" in forgotten.stderr
  assert [*tmp_path.iterdir()] == [run]
  assert commands.process(*words).stderr == ""
  assert Image.open(picture).size == (1200, 680)  # 15 by 8.5 inches, 80 pixels each
