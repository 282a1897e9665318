"""The progress of a loop in a log."""

import contextlib
import io
import os
import re
import subprocess
import sys
import types

import commands
import pytest

from urkle_tf.output import progress


@pytest.mark.parametrize(
  "seconds, text", [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00")]
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text


def _in_a_log(monkeypatch):
  """What is shown in a log, and the clock: its `seconds`."""
  shown, clock = io.StringIO(), types.SimpleNamespace(seconds=0.0)
  monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=shown))
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.seconds))
  return shown, clock


def test_a_log_gets_one_line_of_a_task_that_is_done_within_a_second(monkeypatch):
  shown, clock = _in_a_log(monkeypatch)
  bar = progress.Progress("head", 100)
  for _ in range(100):
    clock.seconds += 0.009
    bar.add(1)
  assert shown.getvalue().splitlines() == [
    "head [####################] 100/100  111 images/s  0:00 spent, 0:00 left"
  ]


def test_a_log_gets_a_line_each_tenth(monkeypatch):
  shown, clock = _in_a_log(monkeypatch)
  bar = progress.Progress("features", 400)
  for _ in range(50):
    clock.seconds += 2
    bar.add(8, "note")
  lines = shown.getvalue().split("\n")
  assert len(lines) == 11
  assert lines[-1] == ""
  assert lines[0] == (
    "features [##..................] 40/400  4.00 images/s  0:10 spent, 1:30 left  note"
  )
  assert lines[9] == (
    "features [####################] 400/400  4.00 images/s  1:40 spent, 0:00 left  note"
  )
  assert bar.done == 400


def test_a_terminal_of_unknown_size_shows_the_bar_and_errors_on_a_line_of_their_own():
  """The bar was not shown, or the error stood behind it."""
  program = "from urkle_tf import command_line\nfrom urkle_tf.output import progress\n"
  program += "bar = progress.Progress('attack', 10)\nbar.add(3)\ncommand_line._fail('no', 2)\n"
  ours, theirs = os.openpty()
  words = [sys.executable, "-c", program]
  with subprocess.Popen(words, stderr=theirs, cwd=commands.ROOT) as process:
    assert process.wait() == 2
  os.close(theirs)
  shown = b""
  with contextlib.suppress(OSError):  # at the end
    while part := os.read(ours, 10_000):  # the terminal may not have passed on all of it yet
      shown += part
  os.close(ours)
  shown = shown.decode()
  assert "attack [######" in shown
  assert re.search(r"\r *\rerror: no\r\n", shown)
