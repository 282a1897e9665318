"""The command line of launchers that fill a table, row by row and seed by seed."""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
from typing import Any

from experiments import jobs
from urkle_tf import errors

MODULES = ("train", "finetune", "evaluate")


def find_row(rows, name):
  """The row of a name ("vae_urkle") or a system ("VAE+Urkle")."""
  for row in rows:
    if name.strip().lower() in (row.name, row.system.lower()):
      return row
  raise errors.unknown("row", name.strip(), [row.name for row in rows])


def parse_seeds(rows, text):
  """{row name: how many seeds} of "2", "ae_trades=3,vae_urkle=3" or "1,VAE+Urkle=3"."""
  counts = {row.name: row.seeds for row in rows}
  for position, part in enumerate(filter(None, map(str.strip, (text or "").split(",")))):
    name, equals, count = part.rpartition("=")
    if not re.fullmatch("[1-9][0-9]*", count) or (not equals and position):
      raise errors.UserError(
        f"--seeds={text}: give how many, --seeds=2, and what differs, --seeds=1,{rows[-1].name}=3; "
        "the seeds are 0, 1, ..."
      )
    for row in [find_row(rows, name)] if equals else rows:
      counts[row.name] = int(count)
  return counts


def parser(description, name, rows, dataset):
  """The flags that every table takes.

  Args:
    description: what --help says first.
    name: of the table: its runs are kept in runs/NAME, its page is docs/results/NAME.md.
    rows: the table's rows: each has `name`, `system` and `seeds`.
    dataset: the data set it is about.
  """
  found = jobs.Parser(description)
  add = found.add_argument
  add(
    "--data_dir",
    help=f"where {dataset} lies, prepared by TensorFlow Datasets (or TFDS's own folder)",
  )
  add("--download", action="store_true", help="let TFDS download and prepare it")
  add("--work", help=f"the folder of all runs; default runs/{name}")
  names = ", ".join(row.name for row in rows)
  add("--rows", help=f"which, with commas in between; default all: {names}")
  usual = ", ".join(f"{row.name}={row.seeds}" for row in rows if row.seeds > 1)
  add("--seeds", help=f"how many: 2, or 1,{rows[-1].name}=5; default 1, {usual}")
  add("--out_md", help=f"the page; default docs/results/{name}.md; its pictures lie beside it")
  add("--out_json", help=f"the figures; default docs/results/{name}.json")
  small = found.add_argument_group(
    "another scale (the page then goes into the folder of all runs)",
    '--dataset=digits --extra_train="--epochs=1 --examples=100"; both apply to all rows',
  )
  small.add_argument("--dataset", help="another data set: digits is bundled")
  for module in MODULES:
    small.add_argument(
      f"--extra_{module}", default="", help=f"more flags for every urkle_tf.{module}"
    )
  return found


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the flags of `parser` ask for.

  Attributes:
    rows: the rows that were chosen.
    counts: {row name: how many seeds}.
    work: the folder of all runs, as commands name it.
    dataset: another data set than the table's, or None.
    data_dir: where it lies, or None.
    shared: arguments of every command.
    extra: {module: arguments of that command}.
    options: the launcher's own arguments as others can give them: no path of this machine.
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
    """(seed, row) in order: a whole table of one seed first."""
    for seed in range(max(self.counts[row.name] for row in self.rows)):
      for row in self.rows:
        if seed < self.counts[row.name]:
          yield seed, row


def read(given: argparse.Namespace, name, rows, dataset):
  """What was asked for.

  Args:
    given: what `parser` parsed.
    name: as for `parser`, and so the next two.
    rows: all of the table's rows.
    dataset: the data set it is about.

  Raises:
    UserError: for an unknown row, unreadable seeds, or a folder that is not there.
  """
  wanted = [find_row(rows, part) for part in given.rows.split(",")] if given.rows else list(rows)
  extra = {module: shlex.split(getattr(given, f"extra_{module}")) for module in MODULES}
  shared = [f"--dataset={given.dataset}"] if given.dataset else []
  data_dir = given.data_dir and os.path.abspath(given.data_dir)
  if data_dir:
    if not os.path.isdir(data_dir) and not given.download:
      raise errors.UserError(
        f"--data_dir={given.data_dir} is no folder: prepare {dataset} there, or add --download"
      )
    shared.append(f"--data_dir={jobs.within(data_dir)}")
  if given.download:
    shared.append("--download")
  options = f" --dataset={given.dataset}" if given.dataset else " --data_dir=DATA_DIR"
  for module, flags in extra.items():
    if flags:
      text = shlex.join(flags)  # which has single quotes inside
      quoted = shlex.quote(text) if re.search(r'[$`"\\!]', text) else f'"{text}"'
      options += f" --extra_{module}={quoted}"
  work = jobs.within(given.work or jobs.ROOT / "runs" / name)
  smaller = bool(given.dataset or any(extra.values()))
  usual = jobs.ROOT / work if smaller else jobs.ROOT / "docs" / "results"
  return Asked(
    rows=wanted,
    counts=parse_seeds(rows, given.seeds),
    work=work,
    dataset=given.dataset,
    data_dir=data_dir,
    shared=shared,
    extra=extra,
    options=options,
    page_file=pathlib.Path(given.out_md or usual / f"{name}.md").absolute(),
    json_file=pathlib.Path(given.out_json or usual / f"{name}.json").absolute(),
  )
