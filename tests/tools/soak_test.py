"""The soak: a real training under SIGKILL and damage, and a keeper who notices what is lost."""

import json
import random
import signal
import sys

import commands
import numpy as np
import pytest
from small_models import write_rows

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


def _run(folder, step=3, weight=1.0, zero=0.0, loss=0.5, seconds=1.0, fingerprint="a"):
  """As much of a run's folder as is compared."""
  (folder / "checkpoints").mkdir(parents=True)
  file = folder / "checkpoints" / f"step_{step:09d}.npz"
  np.savez(file, step=step, w=np.float32([weight, zero]))
  write_rows(folder, [{"loss": loss, "seconds": seconds}])
  soak.pages.write(folder / "encoder" / "metadata.json", {"fingerprint": fingerprint})
  return folder


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"seconds": 2.0}, None),
    ({"weight": np.nextafter(np.float32(1), np.float32(2))}, "1 of 2 arrays differ"),
    ({"zero": -0.0}, "1 of 2 arrays differ"),  # though 0.0 == -0.0
    ({"step": 4}, "1 of 2 arrays differ"),
    ({"loss": 0.5000001}, "the rows differ"),
    ({"fingerprint": "b"}, "the exports differ"),
  ],
)
def test_a_difference_of_one_bit_is_noticed(tmp_path, change, complaint):
  same = soak.compare(_run(tmp_path / "one"), _run(tmp_path / "other", **change))
  found = soak.complaints({"same": same, "attempts": []})
  assert found == ([complaint] if complaint else [])


@pytest.mark.parametrize("kind", ["truncated", "flipped", "emptied"])
def test_damage_is_never_harmless(tmp_path, kind):
  file = next((_run(tmp_path / "run") / "checkpoints").iterdir())
  whole = file.read_bytes()
  for seed in range(20):
    file.write_bytes(whole)
    soak.damage(file, kind, random.Random(seed))
    assert file.read_bytes() != whole
    with pytest.raises(Exception), np.load(file, allow_pickle=False) as stored:  # noqa: B017
      [stored[name] for name in ("step", "w")]
