"""Orderly stops: a first SIGTERM or Ctrl-C finishes the step, a second one ends the process."""

import contextlib
import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_outer: "Watch | None" = None  # made by the outermost `watch`


class Stopped(KeyboardInterrupt):
  """A task has stopped because of a signal; a training has written a checkpoint.

  Attributes:
    number: the signal.
    step: the step of the checkpoint; None without steps.
  """

  def __init__(self, number, step=None):
    where = "" if step is None else f" after step {step}"
    super().__init__(f"stopped by {signal.Signals(number).name}{where}")
    self.number, self.step = number, step


class Watch:
  """Whether a signal has come: `number` is the signal, or 0.

  Args:
    agree: a function from a worker's number to the largest of all workers
      (`distribution.agreement`), so that a signal to one stops all of them after the same step.
      None for one process.
  """

  def __init__(self, agree=None):
    self.number, self._agree = 0, agree or (lambda number: number)

  def check(self, step=None, save=None):
    """Ends the training if a signal has come, to this worker or another.

    Args:
      step: the step that has just ended; None without steps.
      save: a function of the step that writes a checkpoint; None if there is nothing to save.

    Raises:
      Stopped: after the checkpoint is written.
    """
    if number := int(self._agree(self.number)):
      if save is not None:
        save(step)
      raise Stopped(number, step)


@contextlib.contextmanager
def watch(agree=None):
  """Catches the first SIGTERM or SIGINT; the next one ends the process as usual.

  Signals reach only the main thread; in other threads nothing is caught.  Within another `watch`,
  this yields the `Watch` of that one, so a task of several trainings can stop in any of them.

  Args:
    agree: see `Watch`.

  Yields:
    A `Watch`.
  """
  global _outer
  if threading.current_thread() is not threading.main_thread():
    yield Watch(agree)
    return
  if _outer is not None:
    yield _outer
    return
  found = Watch(agree)

  def caught(number, frame):
    found.number = number
    for each, handler in before.items():
      signal.signal(each, signal.SIG_DFL if handler is _raise else handler)

  before = {number: signal.getsignal(number) for number in _SIGNALS}
  for number in _SIGNALS:  # a signal may come at once, and `caught` needs all of `before`
    signal.signal(number, caught)
  _outer = found
  try:
    yield found
  finally:
    _outer = None
    for number, handler in before.items():
      signal.signal(number, handler)


def _raise(number, frame):
  signal.signal(number, signal.SIG_DFL)
  raise Stopped(number)


@contextlib.contextmanager
def terminable():
  """Turns a first SIGTERM into an exception, like Ctrl-C; the next one ends the process.

  This is for code outside `watch`.  With several workers, SIGTERM ends the process as usual,
  because a worker that unwinds would wait for the others.

  Raises:
    Stopped: when the signal has come.
  """
  if threading.current_thread() is not threading.main_thread() or "TF_CONFIG" in os.environ:
    yield
    return
  before = signal.signal(signal.SIGTERM, _raise)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
