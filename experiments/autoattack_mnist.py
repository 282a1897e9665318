#!/usr/bin/env python3
"""AutoAttack on MNIST's AT and VAE+Urkle, on two CPU cores within a quarter of an hour.

  python experiments/reproduce_mnist.py --data_dir=DATA_DIR --rows=at,vae_urkle --seeds=1
  python experiments/autoattack_mnist.py --data_dir=DATA_DIR

The first command trains the classifiers and keeps them in runs/mnist.  The second attacks their
first 1,000 test images at epsilon 0.1 and writes docs/results/mnist_autoattack.md and .json.  It
goes on after an interruption where it was.
"""

import json
import os
import pathlib
import re
import shlex
import sys
import textwrap

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages, reproduce_mnist
from urkle_tf import errors
from urkle_tf.output import files, tables

ROWS = ("at", "vae_urkle")
CONFIG = "configs/mnist_autoattack_evaluate.cfg"
# What fits a quarter of an hour; PUBLISHED is what Croce and Hein (2020) give the ensemble.
PUBLISHED = {"steps": 100, "targets": 9, "queries": 5000}
BUDGET = {"steps": 100, "targets": 5, "queries": 1000}
EOT = 10


def attacks(row, budget):
  """The ensembles for a row, as `--attacks` takes them."""
  given = {name: value for name, value in budget.items() if value != PUBLISHED[name]}

  def ensemble(**options):
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"autoattack({text})" if text else "autoattack"

  found = [ensemble(**given)]
  if row.stochastic:
    untargeted = {name: value for name, value in given.items() if name != "targets"}
    found.insert(0, ensemble(version="rand", **untargeted))
  return ",".join(found)


def stage(row, work, data_dir, extra=()):
  """The command that attacks one row's classifier of seed 0."""
  run = f"{work}/{row.name}-0"
  folder = run if row.labels else f"{run}-head"
  arguments = [f"--classifier={folder}/classifier", f"--attacks={attacks(row, BUDGET)}"]
  if row.stochastic:
    arguments.append(f"--eot={EOT}")
  if data_dir:
    arguments.append(f"--data_dir={data_dir}")
  return jobs.Stage("evaluate", CONFIG, f"{run}-autoattack", [*arguments, *extra])


# --- The page ---


def measured(report, system):
  """The table's rows of one report: one for each classifier that it holds, the served one first.

  Args:
    report: what report.json holds.
    system: what the table calls the model.

  Returns:
    Dicts: "system", "mode", "clean" and "final" in percent, "stages": {(ensemble's number, stage):
    what still stands after it, in percent}, "seconds" of all attacks on the model.
  """
  found = []
  for mode, (clean, parts) in tables.readings(report).items():
    stages, ensemble = {}, 0
    for part in parts:
      if "stages" in part:  # the sum of those before it
        ensemble += 1
      else:
        stages[f"{part['name']} {ensemble}"] = pages.percent(part["accuracy"])
    own = [part for part in parts if "stages" not in part]
    found.append(
      {
        "system": system,
        "mode": mode,
        "clean": pages.percent(clean["accuracy"]),
        "stages": stages,
        "final": pages.percent(parts[-1]["accuracy"]),
        "interval": [*map(pages.percent, parts[-1]["interval"])],
        "examples": parts[-1]["examples"],
        "seconds": round(sum(part["seconds"] for part in own), 1),
        "checks": {check["name"]: check["passed"] for check in report.get("checks", ())},
      }
    )
  return found


def table(rows):
  """The Markdown table of `measured` rows."""
  # An ensemble's stages in order; the one that most classifiers meet comes last.
  names = max((list(row["stages"]) for row in rows), key=len)
  last = max(int(name.split()[1]) for name in names)
  lines, titles = [], []
  for name in names:
    attack, ensemble = name.split()
    titles.append(attack if int(ensemble) == last else f"{attack} (rand)")
  head = ["classifier", "clean", *titles, "final", "minutes"]
  for number, row in enumerate(rows):
    # The one ensemble of a deterministic model is the last one of a stochastic model.
    shift = last - max(int(name.split()[1]) for name in row["stages"])
    stages = {
      f"{name.split()[0]} {int(name.split()[1]) + shift}": value
      for name, value in row["stages"].items()
    }
    first = not number or rows[number - 1]["system"] != row["system"]
    cells = [f"{row['system']}, {tables.READINGS[row['mode']]}", f"{row['clean']:.1f}"]
    cells += [f"{stages[name]:.1f}" if name in stages else "" for name in names]
    low, high = row["interval"]
    cells += [f"{row['final']:.1f} ({low:.1f} to {high:.1f})"]
    cells += [f"{row['seconds'] / 60:.1f}" if first else ""]
    lines.append(cells)
  return tables.markdown(head, lines)


def reductions(budget):
  """A sentence that says what differs from the published budgets."""
  names = {
    "steps": "gradient steps of each attack",
    "targets": "wrong classes aimed at",
    "queries": "queries of Square",
  }
  less = [
    f"{value:,} {names[name]} in place of {PUBLISHED[name]:,}"
    for name, value in budget.items()
    if value != PUBLISHED[name]
  ]
  if not less:
    return "Budgets are those published by Croce and Hein (2020)."
  return "To keep it short, budgets are below those published: " + "; ".join(less) + "."


def page(rows, found):
  """The page.

  Args:
    rows: of `measured`.
    found: the commands, `Stage`s.
  """
  checks = "The checks for masked gradients were left out."
  if all(row["checks"] for row in rows):
    failed = {
      row["system"]: ", ".join(name for name, passed in row["checks"].items() if not passed)
      for row in rows
    }
    failed = "; ".join(f"{system}: {names}" for system, names in failed.items() if names)
    checks = f"Failed checks: {failed}." if failed else "All checks for masked gradients passed."
  commands = "\n".join("    " + one.text for one in found)
  what = (
    f"Percent of the first {rows[0]['examples']:,} test images that are still right, l_inf, "
    "epsilon 0.1; the last with its 95% interval. "
    "Columns are in the order of the attacks, and each counts the finds of all before it. AT "
    "meets `autoattack` (`apgd_ce`, `apgd_t`, `fab_t`, `square`); VAE+Urkle first "
    "`autoattack(version=rand)` (`apgd_ce`, `apgd_dlr`, `square`), then the same. It is two "
    "classifiers, "
    f"that of sampled z, attacked with {EOT} samples a step, and that of z = mu: each is "
    "attacked through its own gradients, and counts what was found against the other. "
    "Minutes are those of the attacks on both."
  )
  parts = [
    "# AutoAttack on MNIST's classifiers",
    table(rows),
    textwrap.fill(what, 100),
    textwrap.fill(f"{reductions(BUDGET)} {checks}", 100),
    "    python experiments/autoattack_mnist.py --data_dir=DATA_DIR",
    "runs",
    commands,
  ]
  return "\n\n".join(parts) + "\n"


# --- The command line ---


def _arguments(argv):
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--data_dir", help="where mnist lies, prepared by TensorFlow Datasets (or TFDS's own folder)")
  add("--work", help="where experiments/reproduce_mnist.py keeps its runs; default runs/mnist")
  add("--rows", default=",".join(ROWS), help="which of its rows; default %(default)s")
  add("--out_md", help="the page; default docs/results/mnist_autoattack.md")
  add("--out_json", help="the figures; default docs/results/mnist_autoattack.json")
  add(
    "--extra",
    default="",
    help="more flags for every urkle_tf.evaluate, to try it out on less (the page then goes into "
    'the folder of all runs): "--examples=20 --attacks=autoattack(steps=2)"',
  )
  return parser.parse_args(argv)


def run(argv=None):
  """The command line, without the handling of errors."""
  given = _arguments(argv)
  work = jobs.within(given.work or jobs.ROOT / "runs" / "mnist")
  rows = [reproduce_mnist.find_row(name) for name in given.rows.split(",")]
  extra = shlex.split(given.extra)
  data_dir = given.data_dir and jobs.within(given.data_dir)
  stages = [stage(row, work, data_dir, extra) for row in rows]
  for row, one in zip(rows, stages, strict=True):
    folder = one.arguments[0].partition("=")[2]
    if not (jobs.ROOT / folder).is_dir():
      raise errors.UserError(
        f"there is no {folder}: train it first, python experiments/reproduce_mnist.py "
        f"--rows={row.name} --seeds=1"
      )
  measurements = []
  for row, one in zip(rows, stages, strict=True):
    jobs.run_stages([one])
    report = pages.read(jobs.ROOT / one.folder / "report.json")
    measurements += measured(report, row.system)
  usual = jobs.ROOT / work if extra else jobs.ROOT / "docs" / "results"
  page_file = pathlib.Path(given.out_md or usual / "mnist_autoattack.md").absolute()
  json_file = pathlib.Path(given.out_json or usual / "mnist_autoattack.json").absolute()
  # The commands as others can give them: no path of this machine.
  shown = [
    stage(row, "runs/mnist", data_dir and "DATA_DIR", [re.sub(r"/\S*/", "", w) for w in extra])
    for row in rows
  ]
  document = {"budget": BUDGET, "eot": EOT, "rows": measurements}
  files.write(json_file, json.dumps(document, indent=1) + "\n")
  files.write(page_file, page(measurements, shown))
  print(table(measurements))
  print(f"page: {page_file}")


if __name__ == "__main__":
  jobs.main(run)
