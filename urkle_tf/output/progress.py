"""The progress of a long loop: tqdm's bar on a terminal, separate lines elsewhere."""

import shutil
import sys
import time

import tqdm

_PAUSE = 1.0  # seconds between two lines of a log
_FORMAT = "{desc} [{bar:20}] {words}"


def duration(seconds):
  """Seconds as m:ss or h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def speed(rate, unit):
  """`rate` in units per second, as text."""
  digits = 0 if rate >= 10 or not rate else 2
  return f"{rate:,.{digits}f} {unit}/s"


def pace(rate, unit, spent, left):
  """`rate` in units per second, and the seconds spent and left, as text."""
  return f"{speed(rate, unit)}  {duration(spent)} spent, {duration(left)} left"


class _Line(tqdm.tqdm):
  """A line on a terminal with its own text."""

  monitor_interval = 0  # no thread
  text = ""

  def __str__(self):
    return self.text


class Bar:
  """Shows progress on standard error.

  Args:
    terminal: whether one line is overwritten each time; None if standard error is a terminal.
  """

  def __init__(self, terminal=None):
    self.terminal = sys.stderr.isatty() if terminal is None else terminal
    self._line, self._shown = None, time.perf_counter()

  def show(self, name, share, place, pace, note=""):
    """Shows the progress; a finished task keeps its line, and a log skips lines of fast tasks.

    Args:
      name: what is being done.
      share: how much of it is done, in [0, 1].
      place: the progress in words.
      pace: see `pace`; empty if it is not known yet.
      note: further figures.
    """
    if not self.terminal and share < 1 and time.perf_counter() < self._shown + _PAUSE:
      return
    # A line that is longer than the terminal's would not be overwritten.
    columns = shutil.get_terminal_size().columns if self.terminal else None
    how = {"ncols": columns, "ascii": ".#", "bar_format": _FORMAT}
    words = "  ".join(filter(None, (place, pace, note)))
    text = tqdm.tqdm.format_meter(share, 1, 0, prefix=name, words=words, **how).rstrip()
    if not self.terminal:
      print(text, file=sys.stderr, flush=True)
      self._shown = time.perf_counter()
      return
    if self._line is None:
      # A terminal that does not know its size has 0 rows, and would show nothing.
      self._line = _Line(file=sys.stderr, leave=False, nrows=shutil.get_terminal_size().lines)
    self._line.text = text
    self._line.refresh()
    if share >= 1:
      self._line.leave = True
      self._line.close()
      self._line = None


class Progress:
  """The progress of a loop, and the time until its end; in a log, at most ten lines.

  Args:
    name: what is being done.
    total: the number of units, at least 1.
    unit: their name, for the rate.

  Attributes:
    done: the number of units done.
  """

  def __init__(self, name, total, unit="images"):
    self._name, self._total, self._unit = name, max(total, 1), unit
    self._bar, self._started = Bar(), time.perf_counter()
    self.done, self._tenth = 0, 0

  def add(self, count, note=""):
    """Counts `count` more units; `note` is shown after the figures."""
    self.done += count
    before, self._tenth = self._tenth, 10 * self.done // self._total
    if not self._bar.terminal and self._tenth == before:
      return
    spent = time.perf_counter() - self._started
    left = spent * (self._total - self.done) / max(self.done, 1)
    figures = pace(self.done / max(spent, 1e-9), self._unit, spent, left)
    place = f"{self.done}/{self._total}"
    self._bar.show(self._name, self.done / self._total, place, figures, note)
