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
  """Whether a signal has come: `number` is it, or None."""

  number = None

  def check(self, step, save):
    """Ends the training if a signal has come.

    Args:
      step: the step that has just ended.
      save: writes a checkpoint of it.

    Raises:
      Stopped: once the checkpoint is written.
    """
    if self.number is not None:
      save(step)
      raise Stopped(self.number, step)


@contextlib.contextmanager
def watch():
  """Catches the first SIGTERM or SIGINT; the next does what it always did.

  Signals reach the main thread only: in another nothing is caught.

  Yields:
    A `Watch`.
  """
  found = Watch()
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
