#!/usr/bin/env python3
"""Prints reports side by side, in Markdown: python experiments/table.py NAME=REPORT [NAME=...].

REPORT is a folder of `urkle_tf.evaluate`.  A row is a classifier: a stochastic one has two, the
mean over sampled z and z = mu.  Figures are percent of the images, with 95% intervals.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from urkle_tf.output import tables


def _percent(part):
  low, high = part["interval"]
  return f"{100 * part['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def table(reports):
  """The table in Markdown.

  Args:
    reports: {name: what report.json holds}.
  """
  columns, rows = {}, []
  for name, report in reports.items():
    for mode, (clean, attacks) in tables.readings(report).items():
      cells = {"clean": _percent(clean)}
      cells |= {f"{tables.attack(row)}, {tables.threat(row)}": _percent(row) for row in attacks}
      columns |= dict.fromkeys(cells)
      rows.append((name, tables.READINGS[mode], cells))
  return tables.markdown(
    ["system", "classifier", *columns],
    [
      [name, reading, *(cells.get(column, "") for column in columns)]
      for name, reading, cells in rows
    ],
  )


def main():
  """The command line."""
  if len(sys.argv) < 2 or not all("=" in pair for pair in sys.argv[1:]):
    sys.exit(__doc__)
  reports = {}
  for pair in sys.argv[1:]:
    name, folder = pair.split("=", 1)
    file = pathlib.Path(folder) / "report.json"
    if not file.exists():
      sys.exit(f"error: {file} does not exist: run python -m urkle_tf.evaluate first")
    try:
      reports[name] = json.loads(file.read_text(encoding="utf-8"))
      table({name: reports[name]})
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
      sys.exit(f"error: {file} is no report, or is damaged: run python -m urkle_tf.evaluate again")
  print(table(reports))


if __name__ == "__main__":
  main()
