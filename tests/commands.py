"""Runs commands of urkle_tf in one process, because TensorFlow takes seconds to start.

    python tests/commands.py < CASES

runs [[command, arguments], ...] one after the other and prints [[exit code, standard output and
error], ...], both as JSON.  A case may name, third, how many bytes of a split are held in memory.
"""

import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A program that begins so finds neither this package nor TensorFlow Probability.
ALONE = """
import sys
for name in ("urkle_tf", "tensorflow_probability", "tf_keras"):
  sys.modules[name] = None
"""


def prepare():
  """Defines absl's own flags first, so that they are not taken for those of a command."""
  app.define_help_flags()
  flags.FLAGS(["driver"])


def run(command, arguments, in_memory=None):
  """Runs `urkle_tf.<command>`: (exit code, 99 for a traceback, and what it wrote)."""
  module = importlib.import_module(f"urkle_tf.{command}")
  kept = set(flags.FLAGS)
  if in_memory is not None:
    from urkle_tf.data import sources

    usual, sources.IN_MEMORY_BYTES = sources.IN_MEMORY_BYTES, in_memory
  sys.argv = [command, *arguments]
  sys.stdout.flush()
  stdout, stderr = os.dup(1), os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    os.dup2(file.fileno(), 1)
    try:
      module.main()
      code = 0
    except SystemExit as error:
      code = error.code or 0
    except BaseException:
      traceback.print_exc()
      code = 99
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os.dup2(stdout, 1)
      os.dup2(stderr, 2)
      os.close(stdout)
      os.close(stderr)
    file.seek(0)
    text = file.read().decode()
  if in_memory is not None:
    sources.IN_MEMORY_BYTES = usual
  if kept:
    _forget(kept)
  return code, text


@contextlib.contextmanager
def defined(command):
  """The names of a command's flags, which absl knows within the block."""
  from urkle_tf import command_line, settings

  kept = set(flags.FLAGS)
  try:
    yield command_line.define(settings.COMMANDS[command])
  finally:
    _forget(kept)


def _forget(kept):
  """Undoes the flags that were defined since; absl defines flags once a process."""
  flags.FLAGS.unparse_flags()
  flags.FLAGS.remove_flag_values(dict.fromkeys(set(flags.FLAGS) - kept, 0))


def here(words):
  """Runs ["-m", module, argument, ...] in this process, instead of `jobs.run_python`."""
  assert words[0] == "-m"
  with contextlib.chdir(ROOT):
    code, text = run(words[1].removeprefix("urkle_tf."), words[2:])
  print(text, end="")
  return code


def process(*words, code=0, environment=None, **options):
  """Runs a separate program, from the root; asserts its exit code, and returns what it said.

  A variable of the environment that is None is not set.
  """
  variables = {**os.environ, **(environment or {})}.items()
  given = {"cwd": ROOT, "env": {k: v for k, v in variables if v is not None}, **options}
  done = subprocess.run([*map(str, words)], capture_output=True, text=True, **given)
  assert done.returncode == code, done.stdout + done.stderr
  return done


def start(words, log, **variables):
  """Starts a separate program.

  Args:
    words: its command line.
    log: a file, to which it writes all that it says.
    **variables: of its environment, besides this process's and this clone.

  Returns:
    A `subprocess.Popen`.
  """
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  environment = {**os.environ, "PYTHONPATH": path, **variables}
  with open(log, "w") as file:
    return subprocess.Popen([*map(str, words)], stdout=file, stderr=file, env=environment)


def wait(condition, process, log):
  """Returns when a condition holds; fails if the process ends before."""
  while not condition():  # the suite's timeout ends it
    assert process.poll() is None, log.read_text()
    time.sleep(0.005)


# Flags that make what an experiment does small, {command: flags}.
SMALL = {
  "train": "--encoder='convnet(width=4, layers=2)' --loc=dense --examples=256 --batch_size=64 "
  "--epochs=1 --attack_steps=1 --precision=float32",
  "finetune": "--examples=256 --batch_size=64 --epochs=1",
  "evaluate": "--examples=20 --attack_steps=1 --nochecks --representation_examples=0",
}


def small(work, *words, **more):
  """Arguments that run an experiment on digits, small.

  Args:
    work: the folder of its runs.
    *words: its own arguments.
    **more: {command: further flags, which win}.
  """
  extra = [f"--extra_{name}={flags} {more.get(name, '')}" for name, flags in SMALL.items()]
  return [*words, "--dataset=digits", f"--work={work}", *extra]


def run_experiment(run, arguments, page, monkeypatch):
  """Runs an experiment in this process, and asserts that a second time it has nothing to do.

  Returns:
    The text of the page that it writes.
  """
  from experiments import jobs

  with monkeypatch.context() as patch:
    patch.setattr(jobs, "run_python", here)
    run(arguments)
    text = page.read_text(encoding="utf-8")
    patch.setattr(jobs, "run_python", None)
    run(arguments)
  assert page.read_text(encoding="utf-8") == text
  return text


def main():
  """See above."""
  prepare()
  print(json.dumps([run(*case) for case in json.load(sys.stdin)]))


if __name__ == "__main__":
  main()
