"""Signals: the first ends a step, the second the process."""

import os
import signal
import sys
import threading

import commands
import pytest

from urkle_tf.training import preemption


@pytest.fixture
def as_in_a_shell():
  """Ctrl-C does what Python has it do: workers of pytest-xdist ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_shell")
def test_the_first_signal_is_caught_and_the_second_is_not():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  saved = []
  with preemption.watch() as watch:
    watch.check(1, saved.append)
    assert saved == []
    os.kill(os.getpid(), signal.SIGINT)
    assert watch.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt, match=r"^$"):  # Python's own
      os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(preemption.Stopped, match="SIGINT after step 2"):
      watch.check(2, saved.append)
    assert saved == [2]
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_comes_as_soon_as_it_is_caught(monkeypatch):
  """The handler failed for want of a name, in a traceback."""
  install, before = signal.signal, signal.getsignal(signal.SIGTERM)

  def install_and_kill(number, handler):
    install(number, handler)
    if handler is not before and number == signal.SIGTERM:
      os.kill(os.getpid(), number)

  with monkeypatch.context() as patch:
    patch.setattr(signal, "signal", install_and_kill)
    with preemption.watch() as watch:
      assert watch.number == signal.SIGTERM
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("as_in_a_shell")
def test_the_outer_of_two_watches_catches():
  with preemption.watch() as outer:
    with preemption.watch() as inner:
      assert inner is outer
      os.kill(os.getpid(), signal.SIGTERM)
    assert outer.number == signal.SIGTERM  # after the inner one's end
    with pytest.raises(preemption.Stopped, match=r"SIGTERM$"):
      outer.check()
  with preemption.watch() as another:
    assert another.number == 0


@pytest.mark.parametrize("watched", [False, True])
def test_the_second_sigterm_ends_a_command_at_once(watched):
  """A command may be anywhere: in a step, or where nobody looks for signals."""
  program = f"""
import contextlib, os, signal
from urkle_tf.training import preemption as p
with p.terminable(), p.watch() if {watched} else contextlib.nullcontext():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
    print("on", flush=True)
  except p.Stopped as stopped:
    print(stopped, flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print("never", flush=True)
"""
  done = commands.process(sys.executable, "-c", program, code=-signal.SIGTERM)
  assert done.stdout == ("on\n" if watched else "stopped by SIGTERM\n")


def test_a_command_ends_in_one_line_wherever_it_is():
  program = """
import os, signal
from urkle_tf import command_line, settings
names = command_line.define(settings.Embed)
command_line.run(lambda **given: os.kill(os.getpid(), signal.SIGTERM), names)
"""
  done = commands.process(sys.executable, "-c", program, code=143)
  assert done.stderr == "error: stopped by SIGTERM; run the same command again to resume\n"


def test_another_thread_catches_nothing():
  before, found = signal.getsignal(signal.SIGTERM), []

  def run():
    with preemption.watch() as watch:
      found.extend([signal.getsignal(signal.SIGTERM), watch.number])

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [before, 0]


@pytest.mark.full
def test_a_process_says_how_to_resume(tmp_path):
  command = [sys.executable, "-m", "urkle_tf.train", f"--output_dir={tmp_path / 'run'}"]
  command += ["--encoder=convnet(width=4, layers=2)", "--split=train[:64]", "--batch_size=16"]
  command += ["--epochs=2000", "--attack_steps=1", "--log_every=2"]
  process = commands.start(command, tmp_path / "log")
  metrics = tmp_path / "run" / "metrics.jsonl"
  commands.wait(lambda: metrics.exists() and metrics.stat().st_size, process, tmp_path / "log")
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 143
  last = (tmp_path / "log").read_text().splitlines()[-1]
  assert last.startswith("error: stopped by SIGTERM after step")
  assert last.endswith("run the same command again to resume from the last checkpoint")
  assert len(list((tmp_path / "run" / "checkpoints").glob("step_*.npz"))) == 1
