"""What experiments share: their command lines, and commands that run once."""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

from urkle_tf import errors
from urkle_tf.output import files

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = ("train", "finetune", "evaluate")


class Parser(argparse.ArgumentParser):
  """An argument parser whose error messages are one line, as those of the package.

  Args:
    description: the text of --help, unchanged.
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
  """Runs a script's function; mistakes and interruptions end in one line and an exit code."""
  try:
    function()
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    print(f"error: {error}; the same command resumes from here", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("error: interrupted; the same command resumes from here", file=sys.stderr)
    sys.exit(130)


def flags(words):
  """{name: text} of the words of the form --name=value; the last of several counts."""
  given = [word.removeprefix("--") for word in words if word.startswith("--") and "=" in word]
  return dict(word.split("=", 1) for word in given)


def words(flag, text):
  """The words of a flag's text, as a shell splits them; each is a flag, --name or --name=value."""
  try:
    found = shlex.split(text)
  except ValueError as error:  # a quote without the other
    raise errors.UserError(f"--{flag}={text}: {error}") from error
  for word in found:
    if not word.startswith("--"):
      raise errors.UserError(f"--{flag}: write each flag as --name=value, and not {word!r}")
  return found


class More(argparse.Action):
  """Collects the words of a flag that is given several times."""

  def __call__(self, parser, namespace, values, option_string=None):
    setattr(namespace, self.dest, f"{getattr(namespace, self.dest)} {values}".strip())


def within(folder):
  """A folder as commands name it: relative to the clone if it lies inside."""
  path = pathlib.Path(folder).expanduser().absolute()
  return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command.

  Attributes:
    module: of `MODULES`.
    config: its flagfile, or None.
    folder: its output folder.
    arguments: its flags.
    of: what else its result depends on, such as an encoder's fingerprint.
  """

  module: str
  config: str | None
  folder: str
  arguments: list[str]
  of: str = ""

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
  """--name='value with spaces', which is easier to read than '--name=value with spaces'."""
  name, equals, value = word.partition("=")
  return name + equals + (shlex.quote(value) if value else "")


def stages(run, config, train, head, tested, ending="head"):
  """The commands that train an encoder, train a head on it, and evaluate the classifier.

  Args:
    run: the encoder's folder; the other folders' names begin with it.
    config: the flagfile of its training, or None.
    train: the arguments of its training.
    head: the arguments of the head's training.
    tested: the arguments of the evaluation.
    ending: the end of the name of the head's folder.

  Returns:
    Three `Stage`s.
  """
  return [
    Stage("train", config, run, train),
    Stage("finetune", None, f"{run}-{ending}", head),
    Stage("evaluate", None, f"{run}-report", tested),
  ]


def run_python(words):
  """Runs Python with these arguments in the root of the clone; returns its exit code."""
  with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment()) as command:
    try:
      return command.wait()
    except KeyboardInterrupt:
      command.wait()  # Ctrl-C reached it too, and it writes a checkpoint
      raise


def run_stages(found):
  """Runs commands one after the other, except those that have finished before.

  A command itself resumes, and refuses a folder with other settings.  A finished command leaves its
  words in the folder, so that it need not be started again until one before it is.

  Args:
    found: an iterable of `Stage`s.  Each needs the one before it, and is read when that has ended.

  Returns:
    Whether anything was run.
  """
  ran, latest = False, 0  # when the command before finished
  for stage in found:
    config = (ROOT / stage.config).read_text(encoding="utf-8") if stage.config else ""
    asked = stage.text + "\n\n" + config + stage.of
    stamp = ROOT / stage.folder / "finished.txt"
    same = stamp.exists() and stamp.read_text(encoding="utf-8") == asked
    if not ran and same and stamp.stat().st_mtime_ns >= latest:
      print(f"finished: {stage.text}", flush=True)
      latest = stamp.stat().st_mtime_ns
      continue
    print(stage.text, flush=True)
    if code := run_python(stage.words):
      print(f"error: this command failed (exit code {code}): {stage.text}", file=sys.stderr)
      sys.exit(code if code > 0 else 1)
    files.write(stamp, asked)
    ran = True
  return ran


def run_rows(rows, publish, page_file):
  """Runs the rows of a table, and publishes it after each row.

  Args:
    rows: an iterable of each row's `Stage`s.
    publish: writes the results so far; also called at the end.
    page_file: the page that it writes.

  Returns:
    Whether anything was run.
  """
  ran = False
  for stages in rows:
    if run_stages(stages):
      publish()
      ran = True
  publish()
  print(f"page: {page_file}")
  return ran


def environment():
  """The environment in which commands find the package of this clone."""
  path = [str(ROOT), os.environ.get("PYTHONPATH")]
  return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


# --- Tables, filled row by row and seed by seed ---


@dataclasses.dataclass(frozen=True)
class Row:
  """What a row of every table has.

  Attributes:
    name: of its folders.
    system: its name in the table.
    seeds: the default number of seeds.
  """

  name: str
  system: str
  seeds: int = dataclasses.field(default=1, kw_only=True)


def find_row(rows, name):
  """The row of a name ("vae_urkle") or a system ("VAE+Urkle")."""
  for row in rows:
    if name.strip().lower() in (row.name, row.system.lower()):
      return row
  raise errors.unknown("row", name.strip(), [row.name for row in rows])


def parse_seeds(rows, text):
  """{row name: number of seeds} of "2", "ae_trades=3,vae_urkle=3" or "1,VAE+Urkle=3"."""
  counts = {row.name: row.seeds for row in rows}
  for position, part in enumerate(filter(None, map(str.strip, (text or "").split(",")))):
    name, equals, count = part.rpartition("=")
    if not re.fullmatch("[1-9][0-9]*", count) or (not equals and position):
      raise errors.UserError(
        f"--seeds={text}: give the number of seeds, --seeds=2, and rows with another number, "
        f"--seeds=1,{rows[-1].name}=3"
      )
    for row in [find_row(rows, name)] if equals else rows:
      counts[row.name] = int(count)
  return counts


def parser(description, name, rows, dataset, modules=MODULES):
  """A parser of the flags that all tables have.

  Args:
    description: the text of --help.
    name: of the table: its runs are in runs/NAME, its page is docs/results/NAME.md.
    rows: the table's `Row`s.
    dataset: the table's data set.
    modules: of `MODULES`, those that it runs.
  """
  found = Parser(description)
  add = found.add_argument
  add("--data_dir", help=f"folder in which TFDS has prepared {dataset}; default: TFDS's own folder")
  add("--download", action="store_true", help="let TFDS download and prepare it")
  usual = str(ROOT / "runs" / name)
  add("--work", default=usual, help="the folder of all runs; default %(default)s")
  names = ",".join(row.name for row in rows)
  add("--rows", default=names, help="names of rows, separated by commas; default %(default)s")
  if "train" in modules:
    counts = "".join(f",{row.name}={row.seeds}" for row in rows if row.seeds > 1)
    add("--seeds", help=f"number of seeds: 2, or 1,{rows[-1].name}=5; default 1{counts}")
  small = found.add_argument_group(
    "another scale; the page then goes to the folder of all runs",
    f'--dataset=digits --extra_{modules[0]}="--examples=100"; both apply to all rows',
  )
  small.add_argument("--dataset", help="another data set: digits is bundled")
  for module in modules:
    small.add_argument(
      f"--extra_{module}", action=More, default="", help=f"more flags for every urkle_tf.{module}"
    )
  return found


@dataclasses.dataclass(frozen=True)
class Asked:
  """The values of the flags of `parser`.

  Attributes:
    rows: the chosen rows.
    counts: {row name: number of seeds}.
    work: the folder of all runs, as commands name it.
    dataset: another data set than the table's, or None.
    data_dir: the folder of prepared data, or None.
    shared: arguments of every command.
    extra: {module: arguments of that command}.
    options: the launcher's arguments for a page, without paths of this machine.
    page_file: the page to write.
    json_file: the figures to write.
  """

  rows: list[Any]
  counts: dict[str, int]
  work: str
  dataset: str | None
  data_dir: str | None
  shared: list[str]
  extra: dict[str, list[str]]
  options: str
  page_file: pathlib.Path
  json_file: pathlib.Path

  def turns(self):
    """(seed, row) in order: the whole table with one seed first."""
    for seed in range(max(self.counts[row.name] for row in self.rows)):
      for row in self.rows:
        if seed < self.counts[row.name]:
          yield seed, row


def read(given: argparse.Namespace, name, rows, dataset, scaled=False):
  """The `Asked` of a command line.

  Args:
    given: the result of `parser`'s `parse_args`.
    name: as in `parser`.
    rows: the same.
    dataset: the same.
    scaled: whether flags of the script itself ask for another scale.

  Raises:
    UserError: for an unknown row, seeds that cannot be read, or a folder that does not exist.
  """
  wanted = [find_row(rows, part) for part in given.rows.split(",")]
  extra = {m: words(f"extra_{m}", getattr(given, f"extra_{m}", "")) for m in MODULES}
  shared = [f"--dataset={given.dataset}"] if given.dataset else []
  data_dir = given.data_dir and os.path.abspath(os.path.expanduser(given.data_dir))
  if data_dir:
    if not os.path.isdir(data_dir) and not given.download:
      raise errors.UserError(
        f"--data_dir={given.data_dir} is no folder: prepare {dataset} there, or add --download"
      )
    shared.append(f"--data_dir={within(data_dir)}")
  if given.download:
    shared.append("--download")
  options = f" --dataset={given.dataset}" if given.dataset else " --data_dir=DATA_DIR"
  for module, flags in extra.items():
    if flags:
      text = shlex.join(flags)  # with single quotes
      quoted = shlex.quote(text) if re.search(r'[$`"\\!]', text) else f'"{text}"'
      options += f" --extra_{module}={quoted}"
  work = within(given.work)
  scaled = scaled or given.dataset or any(extra.values())
  usual = ROOT / work if scaled else ROOT / "docs" / "results"
  return Asked(
    rows=wanted,
    counts=parse_seeds(rows, getattr(given, "seeds", None)),
    work=work,
    dataset=given.dataset,
    data_dir=data_dir,
    shared=shared,
    extra=extra,
    options=options,
    page_file=usual / f"{name}.md",
    json_file=usual / f"{name}.json",
  )
