"""What the launchers share: their command lines, and commands that are run once."""

import argparse
import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys

from urkle_tf import errors, files

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
  """An argument parser whose complaints are one line, as those of everything else.

  Args:
    description: what --help says first, as it is.
  """

  def __init__(self, description):
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message):
    raise errors.UserError(message)


def main(function):
  """Runs a launcher's function; mistakes and interruptions end in one line and an exit code."""
  try:
    function()
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    print(f"error: {error}; the same command goes on from here", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("error: interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(130)


def within(folder):
  """A folder as the commands are to name it: from the clone, wherever that lies."""
  path = pathlib.Path(folder).absolute()
  return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command, the folder that it fills, and the config that it reads, or None."""

  module: str
  config: str | None
  folder: str
  arguments: list[str]

  @property
  def words(self):
    """The command's words after `python`."""
    config = [f"--flagfile={self.config}"] if self.config else []
    given = [*config, *self.arguments, f"--output_dir={self.folder}"]
    return ["-m", f"urkle_tf.{self.module}", *given]

  @property
  def text(self):
    """The command as a shell takes it."""
    return " ".join(["python", *map(_quoted, self.words)])


def _quoted(word):
  """--name='value with spaces', which reads better than '--name=value with spaces'."""
  name, equals, value = word.partition("=")
  return name + equals + (shlex.quote(value) if value else "")


def run_stages(found):
  """Runs commands one after the other; those that once ran to their end are left out.

  A command finds out itself what is finished, and refuses a folder of other settings.  What it
  was asked is kept in the folder, so that a finished one need not even be started.

  Args:
    found: `Stage`s; each needs the one before.

  Returns:
    Whether anything was run.
  """
  ran = False
  for stage in found:
    config = (ROOT / stage.config).read_text(encoding="utf-8") if stage.config else ""
    asked = stage.text + "\n\n" + config
    stamp = ROOT / stage.folder / "finished.txt"
    if not ran and stamp.exists() and stamp.read_text(encoding="utf-8") == asked:
      print(f"finished: {stage.text}", flush=True)
      continue
    print(stage.text, flush=True)
    code = subprocess.run([sys.executable, *stage.words], cwd=ROOT, env=_environment()).returncode
    if code:
      print(f"error: this command failed (exit code {code}): {stage.text}", file=sys.stderr)
      sys.exit(code if code > 0 else 1)
    files.write(stamp, asked)
    ran = True
  return ran


def _environment():
  path = [str(ROOT), os.environ.get("PYTHONPATH")]
  return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
