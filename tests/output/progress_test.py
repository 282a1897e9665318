"""The progress of a loop, on a terminal and in a log."""

import io
import types

import pytest

from urkle_tf.output import progress


class _Error(io.StringIO):
  """A standard error that may be a terminal."""

  terminal = False

  def isatty(self):
    return self.terminal


@pytest.fixture
def shown(monkeypatch):
  """Standard error; a clock that stands at 100 seconds after 0, and a terminal of 100 columns."""
  error, clock = _Error(), iter([0.0] + 1000 * [100.0])
  monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=error))
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
  monkeypatch.setenv("COLUMNS", "100")
  return error


@pytest.mark.parametrize(
  "seconds, text", [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00")]
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text


def test_a_log_gets_a_line_each_tenth(shown):
  bar = progress.Progress("features", 400)
  for _ in range(50):
    bar.add(8, "note")
  lines = shown.getvalue().split("\n")
  assert len(lines) == 11
  assert lines[-1] == ""
  assert lines[0] == (
    "features [##..................] 40/400  0.40 images/s  1:40 spent, 15:00 left  note"
  )
  assert lines[9] == (
    "features [####################] 400/400  4.00 images/s  1:40 spent, 0:00 left  note"
  )
  assert bar.done == 400


def test_few_large_units_end_in_a_line(shown):
  bar = progress.Progress("checks", 3, "checks")
  bar.add(2)
  bar.add(1)
  assert [line.split("  ")[0] for line in shown.getvalue().splitlines()] == [
    "checks [#############.......] 2/3",
    "checks [####################] 3/3",
  ]


def test_a_terminal_shows_one_line_that_is_written_over(shown):
  shown.terminal = True
  bar = progress.Progress("embedding", 4000)
  for _ in range(4):
    bar.add(1000, 60 * "long ")
  written = shown.getvalue()
  assert written.count("\n") == 1
  assert written.endswith("\n")
  lines = [line for line in written.strip("\n").split("\r") if line]
  assert [line[:45] for line in dict.fromkeys(lines)] == [
    "embedding [#####...............] 1000/4000  1",
    "embedding [##########..........] 2000/4000  2",
    "embedding [###############.....] 3000/4000  3",
    "embedding [####################] 4000/4000  4",
  ]
  assert all(len(line) <= 100 for line in lines)


def test_what_ends_early_leaves_the_last_line_alone(shown):
  shown.terminal = True
  bar = progress.Progress("embedding", 2)
  bar.add(1)
  print("error: no more", file=shown)
  del bar
  assert "\n" not in shown.getvalue().split("error: no more\n")[1]
