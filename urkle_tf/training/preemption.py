"""Stopping in good order: a first SIGTERM or Ctrl-C ends the step, a second one the process."""

import contextlib
import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_outer: "Watch | None" = None  # that of the outermost `watch`


class Stopped(KeyboardInterrupt):
  """What ran was asked to stop, and did: a training with a checkpoint.

  Attributes:
    number: the signal.
    step: the step that the checkpoint holds; None where there are no steps.
  """

  def __init__(self, number, step=None):
    where = "" if step is None else f" after step {step}"
    super().__init__(f"stopped by {signal.Signals(number).name}{where}")
    self.number, self.step = number, step


class Watch:
  """Whether a signal has come: `number` is it, or 0.

  Args:
    agree: a function of a worker's number to that of all workers (`distribution.agreement`):
      where one is asked to stop, all do, after the same step.  None for one process.
  """

  def __init__(self, agree=None):
    self.number, self._agree = 0, agree or (lambda number: number)

  def check(self, step, save):
    """Ends the training if a signal has come, on this worker or another.

    Args:
      step: the step that has just ended; None for none.
      save: writes a checkpoint of it; None where there is nothing to keep.

    Raises:
      Stopped: once the checkpoint is written.
    """
    if number := int(self._agree(self.number)):
      if save is not None:
        save(step)
      raise Stopped(number, step)


@contextlib.contextmanager
def watch(agree=None):
  """Catches the first SIGTERM or SIGINT; the next ends the process, as it always did.

  Signals reach the main thread only: in another nothing is caught.  Within another `watch` it is
  that one: what has stages, or runs several trainings, is stopped whichever of them is on.

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

  before = {number: signal.signal(number, caught) for number in _SIGNALS}
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
  """Lets a first SIGTERM end what runs by an exception, as Ctrl-C does; the next ends the process.

  For what is not within `watch`.  Of several workers one that unwinds would wait for the others,
  so that there it ends the process, as it always did.

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
