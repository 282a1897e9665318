#!/usr/bin/env python3
"""Prints reports side by side, in Markdown: python experiments/table.py NAME=REPORT [NAME=...].

REPORT is the output folder of `urkle_tf.evaluate`.  Each classifier has a row; a stochastic one has
two, for the mean over sampled z and for z = mu.  Figures are percent of the images, with 95%
intervals.  If a NAME is given several times, these are seeds of one system, and the figures are
mean ± standard deviation, with the interval of the mean.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import errors
from urkle_tf.output import tables

# What reading a file that is no report raises.
_DAMAGED = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)


def _percent(parts):
  if len(parts) > 1:
    return pages.mean([100 * part["accuracy"] for part in parts])
  (part,) = parts
  low, high = part["interval"]
  return f"{100 * part['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def table(reports):
  """The table in Markdown.

  Args:
    reports: {name: [content of report.json, for each seed]}.
  """
  rows = []
  for name, several in reports.items():
    found = [pages.columns(report) for report in several]
    first, *others = ({mode: parts.keys() for mode, parts in one.items()} for one in found)
    if any(other != first for other in others):
      raise errors.UserError(f"reports of {name} differ in attacks or readings: give other names")
    for mode in found[0]:
      seeds = [one[mode] for one in found]
      cells = {column: _percent([parts[column] for parts in seeds]) for column in seeds[0]}
      rows.append((name, tables.READINGS[mode], cells))
  columns = list(dict.fromkeys(column for _, _, cells in rows for column in cells))
  lines = [[*names, *(cells.get(column, "") for column in columns)] for *names, cells in rows]
  return tables.markdown(["system", "classifier", *columns], lines)


def main():
  """The command line."""
  reports: dict[str, list] = {}
  for name, folder in pages.named_folders(sys.argv[1:], __doc__):
    file = folder / "report.json"
    if not file.exists():
      raise errors.UserError(f"{file} does not exist: run python -m urkle_tf.evaluate first")
    try:
      report = pages.read(file)
      table({name: [report]})
    except _DAMAGED as error:
      raise errors.UserError(
        f"{file} is no report, or is damaged: run python -m urkle_tf.evaluate again"
      ) from error
    reports.setdefault(name, []).append(report)
  print(table(reports))


if __name__ == "__main__":
  jobs.main(main)
