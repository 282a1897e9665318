"""The soak: a real training under SIGKILL and damage, and a keeper who notices what is lost."""

import json
import signal
import sys

import commands
import pytest

from tools import soak


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_and_damaged_loses_nothing(tmp_path):
  options = ["--kills=4", "--steps=32", "--others=0", "--damages=1", "--seed=1"]
  words = (soak.__file__, f"--output_dir={tmp_path / 'soak'}", *options)
  done = commands.process(sys.executable, *words)
  result = json.loads((tmp_path / "soak" / "soak.json").read_text())
  faults = [attempt["fault"] for attempt in result["attempts"]]
  assert faults.count("training") == 2
  assert {"checkpoint", "move"} & set(faults)
  assert faults[-2:] == ["export", None]
  killed = [a for a in result["attempts"] if a["status"] == -signal.SIGKILL]
  assert len(killed) >= 3  # an export may have been faster than its signal
  assert sum(a["fell_back"] for a in result["attempts"]) == 1
  assert result["same"]["different"] == []
  assert result["same"]["arrays"] == 36  # all that a checkpoint of it holds
  assert "the same in every bit" in done.stdout
