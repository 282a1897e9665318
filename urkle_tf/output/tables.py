"""Formats figures: radii, attacks, the rows of a report, and tables.

Model cards, reports, commands and the pages of experiments use this module.
"""

import math
import statistics

READINGS = {"sampled": "sampled z", "deterministic": "z = mu"}


def radius(epsilon, norm):
  """A radius in the usual notation.

  Args:
    epsilon: in pixel units of [0, 1].
    norm: `"linf"`, `"l2"` or `"l1"`.

  Returns:
    For linf `"8/255"`, in quarters of a grey level, unless two digits are exact (`"0.1"`).  For l2
    and l1, which are not in grey levels, a decimal.
  """
  levels = epsilon * 255
  quarters = round(4 * levels)
  short = abs(float(f"{epsilon:.2g}") - epsilon) < 1e-9
  if norm == "linf" and quarters and not short and abs(4 * levels - quarters) < 4e-6:
    return f"{quarters / 4:g}/255"
  return f"{epsilon:.4g}"


def name(row):
  """An attack of a report, with its options: `"pgd(start=0.5)"`."""
  return row["name"] + (f"({row['options']})" if "options" in row else "")


def attack(row):
  """An attack of a report with its steps and its restarts, if several: `"pgd-20 x 5"`."""
  steps = f"-{row['steps']}" if row.get("steps", 1) > 1 else ""
  restarts = f" x {row['restarts']}" if row.get("restarts", 1) > 1 else ""
  return name(row) + steps + restarts


def threat(row, between=" "):
  """A norm and its radius, such as `"linf 8/255"`, from anything with "norm" and "epsilon"."""
  return row["norm"] + between + radius(row["epsilon"], row["norm"])


def seeds(values):
  """The mean and the spread of the figures of several seeds.

  Args:
    values: numbers, one for each seed.

  Returns:
    (mean, standard deviation of the sample, [low, high]: the 95% interval of the mean by Student's
    t); the last two are None for one seed.
  """
  mean, count = statistics.fmean(values), len(values)
  if count < 2:
    return mean, None, None
  from scipy import stats  # here, because the import takes seconds

  deviation = statistics.stdev(values)
  half = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
  return mean, deviation, [mean - half, mean + half]


def readings(report):
  """The results of a report, by the reading of z.

  Args:
    report: the content of report.json, or its part "regression".

  Returns:
    {mode: (the part "clean" of that mode, [its rows of "attacks"])}, the served mode first.
  """
  clean, rows = report["clean"], report.get("attacks", ())
  served = clean["mode"]
  modes = [served, *(["deterministic"] if "deterministic" in clean else ())]
  return {
    mode: (clean if mode == served else clean[mode], [row for row in rows if row["mode"] == mode])
    for mode in dict.fromkeys([*modes, *(row["mode"] for row in rows)])
  }


def markdown(head, rows):
  """A table in Markdown.

  Args:
    head: the columns' names.
    rows: lists of cells; line breaks and bars in a cell are replaced.
  """
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value):
  return " ".join(str(value).split()).replace("|", "\\|")
