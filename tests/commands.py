"""Runs commands of urkle_tf in one process, because TensorFlow takes seconds to start.

    python tests/commands.py < CASES

runs [[command, arguments], ...] one after the other and prints [[exit code, standard output and
error], ...], both as JSON.  A case may name, third, how many bytes of a split are held in memory.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback

from absl import app, flags


def prepare():
  """Has absl know its own flags, so that those of one command can be told from another's."""
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
  flags.FLAGS.unparse_flags()
  if kept:  # absl defines flags once a process
    flags.FLAGS.remove_flag_values({name: flags.FLAGS[name] for name in set(flags.FLAGS) - kept})
  return code, text


def here(words, cwd=".", **options):
  """Runs [python, "-m", module, argument, ...] in this process, instead of `subprocess.run`."""
  del options
  assert words[1] == "-m"
  with contextlib.chdir(cwd):
    code, text = run(words[2].removeprefix("urkle_tf."), words[3:])
  print(text, end="")
  return subprocess.CompletedProcess(words, code)


def main():
  """See above."""
  prepare()
  print(json.dumps([run(*case) for case in json.load(sys.stdin)]))


if __name__ == "__main__":
  main()
