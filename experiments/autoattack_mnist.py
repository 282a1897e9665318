#!/usr/bin/env python3
"""AutoAttack on MNIST's AT and VAE+Urkle, on two CPU cores within a quarter of an hour.

  python experiments/reproduce_mnist.py --data_dir=DATA_DIR --rows=at,vae_urkle --seeds=1
  python experiments/autoattack_mnist.py --data_dir=DATA_DIR

The first command trains the classifiers and keeps them in runs/mnist.  The second attacks their
first 1,000 test images at epsilon 0.1 and writes docs/results/mnist_autoattack.md and .json.  It
resumes after an interruption.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages, reproduce_mnist
from urkle_tf import errors
from urkle_tf.output import files, tables

ROWS = ("at", "vae_urkle")
# What fits a quarter of an hour.
ATTACKS = "autoattack(targets=5, queries=1000)"
STOCHASTIC = f"autoattack(version=rand, queries=1000),{ATTACKS}"
EOT = 10


def stage(row, work, shared, extra=()):
  """The command that attacks one row's classifier of seed 0."""
  run = f"{work}/{row.name}-0"
  arguments = [f"--classifier={run if row.labels else run + '-head'}/classifier"]
  arguments.append(f"--attacks={STOCHASTIC if row.stochastic else ATTACKS}")
  arguments += [f"--eot={EOT}"] * row.stochastic
  config = "configs/mnist_autoattack_evaluate.cfg"
  return jobs.Stage("evaluate", config, f"{run}-autoattack", [*arguments, *shared, *extra])


# --- The page ---


def measured(report, system):
  """The table's rows of one report: one for each reading of z, the served one first.

  Args:
    report: what report.json holds.
    system: what the table calls the model.

  Returns:
    Dicts: "system", "mode", "clean" and "final" in percent; "stages": {stage: the accuracy after
    it, in percent}, with " (rand)" after the stages of the first of two ensembles; "seconds" of all
    attacks on the model.
  """
  found = []
  for mode, (clean, parts) in tables.readings(report).items():
    own = [part for part in parts if "stages" not in part]  # else the sum of those before it
    ensembles, stages = len(parts) - len(own), {}
    for part in parts:
      ensembles -= "stages" in part
      if "stages" not in part:
        name = part["name"] + " (rand)" * (ensembles > 1)
        stages[name] = pages.percent(part["accuracy"])
    row = {"system": system, "mode": mode, "clean": pages.percent(clean["accuracy"])}
    row |= {"stages": stages, "final": pages.percent(parts[-1]["accuracy"])}
    row["interval"] = [*map(pages.percent, parts[-1]["interval"])]
    row["examples"] = parts[-1]["examples"]
    row["seconds"] = round(sum(part["seconds"] for part in own), 1)
    row["checks"] = {check["name"]: check["passed"] for check in report.get("checks", ())}
    found.append(row)
  return found


def table(rows):
  """The Markdown table of `measured` rows."""
  names = max((list(row["stages"]) for row in rows), key=len)
  lines, systems = [], set()
  for row in rows:
    minutes = "" if row["system"] in systems else f"{row['seconds'] / 60:.1f}"
    systems.add(row["system"])
    cells = [f"{row['system']}, {tables.READINGS[row['mode']]}", f"{row['clean']:.1f}"]
    cells += [f"{row['stages'][name]:.1f}" if name in row["stages"] else "" for name in names]
    low, high = row["interval"]
    lines.append([*cells, f"{row['final']:.1f} ({low:.1f} to {high:.1f})", minutes])
  return tables.markdown(["classifier", "clean", *names, "final", "minutes"], lines)


def page(rows, found):
  """The page.

  Args:
    rows: of `measured`.
    found: the commands, `Stage`s.
  """
  checks = "The checks for masked gradients were left out."
  if all(row["checks"] for row in rows):
    failed = {
      f"{row['system']}: {name}" for row in rows for name, good in row["checks"].items() if not good
    }
    checks = "All checks for masked gradients passed."
    checks = f"Failed checks: {'; '.join(sorted(failed))}." if failed else checks
  blocks = {
    "table": table(rows),
    "images": f"The first {rows[0]['examples']:,} test images. {checks}",
    "runs": "\n".join("    " + one.text for one in found),
  }
  return pages.page((pages.RESULTS / "mnist_autoattack.md").read_text(encoding="utf-8"), blocks)


def shown(names, extra=()):
  """The commands of rows for a page, without paths of this machine."""
  rows = map(reproduce_mnist.find_row, names)
  return [stage(row, "runs/mnist", ["--data_dir=DATA_DIR"], extra) for row in rows]


def run(argv=None):
  """The command line, without the handling of errors."""
  table_of = (__doc__, "mnist_autoattack", reproduce_mnist.ROWS, "mnist")
  parser = jobs.parser(*table_of, modules=["evaluate"])
  parser.set_defaults(work=str(jobs.ROOT / "runs" / "mnist"), rows=",".join(ROWS))
  asked = jobs.read(parser.parse_args(argv), *table_of[1:])
  extra, measurements = asked.extra["evaluate"], []
  stages = {row: stage(row, asked.work, asked.shared, extra) for row in asked.rows}
  for row, one in stages.items():
    folder = one.arguments[0].partition("=")[2]
    made = pages.kept(jobs.ROOT / folder / "metadata.json")
    if not made:
      raise errors.UserError(
        f"there is no {folder}: train it first, python experiments/reproduce_mnist.py "
        f"--rows={row.name} --seeds=1"
      )
    stages[row] = dataclasses.replace(one, of=made["fingerprint"])
  for row, one in stages.items():
    jobs.run_stages([one])
    measurements += measured(pages.read(jobs.ROOT / one.folder / "report.json"), row.system)
  pages.write(asked.json_file, {"eot": EOT, "rows": measurements})
  commands = shown([row.name for row in asked.rows], extra)
  files.write(asked.page_file, page(measurements, commands))
  print(f"{table(measurements)}\npage: {asked.page_file}")


if __name__ == "__main__":
  jobs.main(run)
