"""What the commands share: their flags, their errors, a quiet start.

A command is a module that lists its flags with `define` and hands them to its function
with `run`.  The same flag means the same thing in every command.
"""

import contextlib
import dataclasses
import importlib
import logging as std_logging
import os
import re
import sys
import textwrap
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from absl import app, flags, logging

import urkle_tf
from urkle_tf import errors, settings, spec
from urkle_tf.training import preemption

flags.disclaim_key_flags()  # they are the command's: its --help lists them


class _Parser(flags.ArgumentParser):
  """Parses text with a function; an empty text is the default, and defaults are values already."""

  def __init__(self, read, default):
    self._read, self._default = read, default

  def parse(self, argument):
    if not isinstance(argument, str):
      return argument
    return self._read(argument) if argument.strip() else self._default


def _whole(text):
  try:
    return int(text)
  except ValueError:
    raise ValueError(f"{text!r} is not a whole number") from None


def _numbers(text):
  return [spec.number(part) for part in text.split(",") if part.strip()]


_DEFINE: dict[str, Any] = {"str": flags.DEFINE_string, "bool": flags.DEFINE_boolean}
_READ: dict[str, Any] = {"int": _whole, "number": spec.number, "numbers": _numbers}


_SHOWN: dict[str, str] = {}  # {flag: its text in --help}, of the running command
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort", "--helpfull", "-helpfull")
_COLUMNS = 80  # the width of a screen


def define(command, known=flags.FLAGS):
  """Defines the flags of a command.

  Args:
    command: a dataclass of settings, with `trust`.  `--help` lists those that its `MAIN` names, or
      all of them without `MAIN`.
    known: the `FlagValues` that the flags are added to.

  Returns:
    The names of all flags, in order.
  """
  _SHOWN.clear()
  fields = {field.name: field for field in dataclasses.fields(command)}
  for name in getattr(command, "MAIN", ()):
    _SHOWN[name] = fields[name].metadata["setting"].help
  for name, field in fields.items():
    default = None if field.default is settings.REQUIRED else field.default
    kind, text = settings.kind(field), _plain(settings.text(field), fields)
    if kind in _READ:
      flags.DEFINE(_Parser(_READ[kind], default), name, default, text, flag_values=known)
    else:
      _DEFINE[kind](name, default, text, flag_values=known)
  return list(fields)


def _plain(text, names):
  """The text of a setting without the backticks and quotes of its code; `epochs` is --epochs."""
  written = lambda found: "--" * (found[1] in names) + found[1]  # noqa: E731
  return re.sub(r'`"?(.+?)"?`', written, text)


def _help(names, full):
  """The text of --help, with the main flags, or of --helpfull, with all of them."""
  first, *rest = (sys.modules["__main__"].__doc__ or "").strip().split("\n\n")
  lines = [*textwrap.wrap(first, _COLUMNS), ""]
  if rest:
    lines += rest[0].splitlines() if full else rest[0].splitlines()[:1]
    lines.append("")
  shown = _SHOWN if _SHOWN and not full else {}
  listed = list(shown or [*_SHOWN, *(name for name in names if name not in _SHOWN)])
  indent = max(map(len, listed)) + 5 + 4 * any(flags.FLAGS[name].boolean for name in listed)
  for name in listed:
    flag = flags.FLAGS[name]
    text, default = shown.get(name) or flag.help, flag.default
    if default not in (None, False):
      text += f" [{f'{default:.4g}' if isinstance(default, float) else default}]"
    lines += _entry("[no]" * flag.boolean + name, text, indent)
  lines += ["", *_entry("flagfile", "read flags from a file, one a line", indent)]
  if shown:
    lines += _entry("helpfull", "all flags", indent)
  else:
    lines += _entry("verbosity", "0: TensorFlow's messages too [-1]", indent)
    lines += _entry("version", "print the version", indent)
  return "\n".join(lines)


def _entry(name, text, indent):
  """The lines that describe one flag."""
  head = f"  --{name}".ljust(indent)
  rest = " " * indent
  return textwrap.wrap(
    text, _COLUMNS, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False
  )


def load(name):
  """Imports `urkle_tf.<name>`; `--verbosity=0` shows the lines that TensorFlow prints."""
  if flags.FLAGS.verbosity < logging.INFO:
    import_tensorflow()
  return importlib.import_module(f"urkle_tf.{name}")


def import_tensorflow():
  """Imports TensorFlow, without the lines that it prints when it starts.

  These lines come before TensorFlow reads its log level, so only the file descriptor can silence
  them.
  """
  sys.stderr.flush()
  with contextlib.ExitStack() as stack:
    stderr = os.dup(2)
    stack.callback(os.close, stderr)
    stack.callback(os.dup2, stderr, 2)
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    importlib.import_module("tensorflow")


def _worth_showing(record):
  """Hides two warnings that do not point to a mistake of the user.

  TFDS warns about each folder in which it finds nothing; our own message says what is missing.
  TensorFlow warns about functions that are traced several times, which attacks of several kinds and
  sizes need.
  """
  if record.levelno > std_logging.WARNING:
    return True
  return "tensorflow_datasets" not in record.pathname and "retracing" not in str(record.msg)


def run(function, names):
  """Parses the command line, calls `function` with the flags, and exits.

  Exit codes: 0 done; 1 the machine failed (disk, files, data); 2 the command was wrong; 130
  interrupted by Ctrl-C, 143 by SIGTERM; 138 another worker has ended.  After a code above 128, the
  same command resumes the run.  Each failure is one line on standard error.

  Args:
    function: takes the flags as keyword arguments.
    names: the flags' names, from `define`.
  """

  def main(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # absl shows INFO
      logging.get_absl_handler().addFilter(_worth_showing)
    if len(argv) > 1:
      raise errors.UserError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    given = {name: flags.FLAGS[name].value for name in names}
    for name, value in given.items():
      if not isinstance(value, str) or any(value in word for word in sys.argv):
        continue  # only a flagfile has comments
      if re.search(r"\s#", value):
        raise errors.UserError(
          f"--{name}={value} holds a comment: in a flagfile, a comment needs a line to itself"
        )
    with contextlib.ExitStack() as stack:
      if given.pop("trust"):
        stack.enter_context(load("networks.saved.trust").granted())
      stack.enter_context(preemption.terminable())
      function(**given)

  def parse(argv):
    try:
      words = argv[:1] + flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
      words = [word for word in words if not word.startswith("\ufeff#")]
      return flags.FLAGS([word.removeprefix("\ufeff") for word in words])  # a byte order mark
    except flags.UnrecognizedFlagError as error:
      _fail(str(errors.unknown("flag", error.flagname, names)).split(" (known")[0], 2)
    except (flags.Error, ValueError) as error:  # --nodownload=x raises the latter
      _fail(str(error).removeprefix("ERROR:: "), 2)

  try:
    if asked := [word for word in sys.argv[1:] if word in _HELP]:
      with contextlib.suppress(BrokenPipeError):  # of `--help | head`
        os.write(1, (_help(names, asked[0].endswith("full")) + "\n").encode())
      return
    if "--version" in sys.argv[1:]:
      print(f"urkle_tf {urkle_tf.__version__}")
      return
    app.run(main, flags_parser=parse)
  except errors.UserError as error:
    _fail(str(error), 2)
  except OSError as error:
    _fail(_os_error(error), 1)
  except MemoryError:
    _fail(_NO_MEMORY, 1)
  except KeyboardInterrupt as error:
    # 130 for Ctrl-C, 143 for SIGTERM.  A training that has a `step` saved it in a checkpoint.
    said, code = str(error) or "interrupted", 128 + getattr(error, "number", 2)
    where = " from the last checkpoint" if getattr(error, "step", None) else ""
    _fail(f"{said}; run the same command again to resume{where}", code)
  except Exception as error:
    if line := _tensorflow_error(error):
      _fail(*line)
    distribution = sys.modules.get("urkle_tf.distribution")
    if distribution and isinstance(error, distribution.WorkerLost):
      # A normal exit would wait for the lost worker forever.
      _say(f"{error}: start all workers again to resume from the last checkpoint")
      os._exit(_LOST)
    raise


_LOST = 138


_NO_MEMORY = "out of memory: lower --batch_size (checkpoints are kept)"
_DISK = (
  *("No space left", "Read-only file system", "File too large", "Disk quota exceeded"),
  *("Input/output error", "Stale file handle"),
)
_RESUME = "; once that is fixed, the same command resumes from the last checkpoint"


def _tensorflow_error(error):
  """(line, exit code) if TensorFlow reports that the machine or the data failed, else None."""
  tensorflow = sys.modules.get("tensorflow")
  if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
    return None
  text = str(error)
  if ours := re.search(r"UserError: (.+)", text):  # raised inside the input pipeline
    return ours[1], 2
  if any(sign in text for sign in _DISK):
    return text.splitlines()[0] + _RESUME, 1
  if isinstance(error, tensorflow.errors.ResourceExhaustedError):
    return _NO_MEMORY, 1
  known = (tensorflow.errors.PermissionDeniedError, tensorflow.errors.DataLossError)
  if isinstance(error, known) or "No such file" in text:
    return text.splitlines()[0], 1
  return None


def _os_error(error):
  where = f": {error.filename}" if error.filename else ""
  return f"{error.strerror or error}{where}{_RESUME}"


def _say(message):
  import tqdm  # here: --help and a command that succeeds do without

  # On a line of its own, also if a progress bar is on the screen.
  tqdm.tqdm.write("error: " + " ".join(message.split()), file=sys.stderr)
  sys.stderr.flush()


def _fail(message, code):
  _say(message)
  sys.exit(code)
