"""How far a long loop is: a line that fills on a terminal, ten lines elsewhere."""

import sys
import time


def duration(seconds):
  """Seconds as m:ss or h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
  """Says on standard error how much of a loop is done, and when it will be.

  Args:
    name: what is being done.
    total: how many units there are, at least 1.
    unit: what they are called, for the rate.

  Attributes:
    done: how many are done.
  """

  def __init__(self, name, total, unit="images"):
    self._name, self._total, self._unit = name, max(total, 1), unit
    self.done, self._tenth = 0, 0
    self._started = time.perf_counter()
    self._terminal = sys.stderr.isatty()

  def add(self, count, note=""):
    """Counts `count` more units; `note` is shown behind the figures."""
    self.done += count
    spent = time.perf_counter() - self._started
    tenth = 10 * self.done // self._total
    if not self._terminal and tenth == self._tenth:
      return
    self._tenth = tenth
    left = spent * (self._total - self.done) / max(self.done, 1)
    bar = "#" * (2 * tenth) + "." * (20 - 2 * tenth)
    rate = self.done / max(spent, 1e-9)
    line = (
      f"{self._name} [{bar}] {self.done}/{self._total}  "
      f"{rate:,.{0 if rate >= 10 else 2}f} {self._unit}/s  {duration(spent)} spent, "
      f"{duration(left)} left  {note}"
    ).rstrip()
    end = "\n" if not self._terminal or self.done >= self._total else ""
    print(("\r\033[K" if self._terminal else "") + line, end=end, file=sys.stderr, flush=True)
