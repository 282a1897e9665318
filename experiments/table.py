#!/usr/bin/env python3
"""Prints reports side by side, in Markdown: python experiments/table.py NAME=REPORT [NAME=...].

REPORT is a folder of `urkle_tf.evaluate`.  A row is a classifier: a stochastic one has two, the
mean over sampled z and z = mu.  Figures are percent of the images, with 95% intervals.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import pages
from urkle_tf.output import tables


def _percent(part):
  low, high = part["interval"]
  return f"{100 * part['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def table(reports):
  """The table in Markdown.

  Args:
    reports: {name: what report.json holds}.
  """
  rows = [
    (name, tables.READINGS[mode], {column: _percent(part) for column, part in parts.items()})
    for name, report in reports.items()
    for mode, parts in pages.columns(report).items()
  ]
  columns = list(dict.fromkeys(column for _, _, cells in rows for column in cells))
  lines = [[*names, *(cells.get(column, "") for column in columns)] for *names, cells in rows]
  return tables.markdown(["system", "classifier", *columns], lines)


def main():
  """The command line."""
  reports = {}
  for name, folder in pages.named_folders(sys.argv[1:], __doc__).items():
    file = folder / "report.json"
    if not file.exists():
      sys.exit(f"error: {file} does not exist: run python -m urkle_tf.evaluate first")
    try:
      reports[name] = pages.read(file)
      table({name: reports[name]})
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
      sys.exit(f"error: {file} is no report, or is damaged: run python -m urkle_tf.evaluate again")
  print(table(reports))


if __name__ == "__main__":
  main()
