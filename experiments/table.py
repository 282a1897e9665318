#!/usr/bin/env python3
"""Prints reports side by side, in Markdown: python experiments/table.py NAME=REPORT [NAME=...].

REPORT is a folder of `urkle_tf.evaluate`.  A row is a classifier: a stochastic one has two, the
mean over sampled z and z = mu.  Figures are percent of the images, with 95% intervals.
"""

import fractions
import json
import pathlib
import sys


def _pixels(epsilon):
  fraction = fractions.Fraction(epsilon * 255).limit_denominator(100)
  near = abs(float(fraction) / 255 - epsilon) < 1e-9 and fraction.denominator == 1
  return f"{fraction}/255" if near else f"{epsilon:g}"


def _percent(part):
  low, high = part["interval"]
  return f"{100 * part['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def _attack(row):
  restarts = f", {row['restarts']} restarts" if row["restarts"] > 1 else ""
  steps = f"-{row['steps']}" if row["steps"] > 1 else ""
  return f"{row['name']}{steps}{restarts}, {row['norm']} {_pixels(row['epsilon'])}"


def table(reports):
  """The table, as lines of Markdown.

  Args:
    reports: {name: what report.json holds}.
  """
  columns, rows = [], []
  for name, report in reports.items():
    for mode in dict.fromkeys(attack["mode"] for attack in report["attacks"]):
      clean = report["clean"]
      if clean["mode"] != mode:
        clean = clean[mode]
      cells = {"clean": _percent(clean)}
      for attack in report["attacks"]:
        if attack["mode"] == mode:
          cells[_attack(attack)] = _percent(attack)
      columns += [column for column in cells if column not in columns]
      rows.append((name, "z = mu" if mode == "deterministic" else "sampled z", cells))
  lines = [
    "| system | classifier | " + " | ".join(columns) + " |",
    "|---" * (len(columns) + 2) + "|",
  ]
  for name, mode, cells in rows:
    lines.append(f"| {name} | {mode} | " + " | ".join(cells.get(c, "") for c in columns) + " |")
  return lines


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
  print("\n".join(table(reports)))


if __name__ == "__main__":
  main()
