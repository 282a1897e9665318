"""Stopping in good order: a first SIGTERM or Ctrl-C ends the step, a second one the process."""

import contextlib
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
  """A training was asked to stop, and did, with a checkpoint.

  Attributes:
    number: the signal.
    step: the step that the checkpoint holds.
  """

  def __init__(self, number, step):
    super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
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
      step: the step that has just ended.
      save: writes a checkpoint of it.

    Raises:
      Stopped: once the checkpoint is written.
    """
    if number := int(self._agree(self.number)):
      save(step)
      raise Stopped(number, step)


@contextlib.contextmanager
def watch(agree=None):
  """Catches the first SIGTERM or SIGINT; the next does what it always did.

  Signals reach the main thread only: in another nothing is caught.

  Args:
    agree: see `Watch`.

  Yields:
    A `Watch`.
  """
  found = Watch(agree)
  if threading.current_thread() is not threading.main_thread():
    yield found
    return

  def caught(number, frame):
    del frame
    found.number = number
    for each, handler in before.items():
      signal.signal(each, handler)

  before = {number: signal.signal(number, caught) for number in _SIGNALS}
  try:
    yield found
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
