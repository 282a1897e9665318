#!/usr/bin/env python3
r"""Runs trainings that differ in some flags, and makes one table of their results.

  python experiments/sweep.py --train="--flagfile=configs/digits.cfg" --output_dir=runs/sweep \
    --values="robustness=none, urkle(beta=0.02), urkle(beta=0.1)" --values=learning_rate=0.001,0.003
  python experiments/sweep.py --train="--flagfile=configs/digits.cfg" --output_dir=runs/search \
    --values=learning_rate=1e-4..1e-2:log --values=attack_steps=2..8 --random=10 \
    --finetune="--split=train[:90%] --validation_split=train[90%:]" \
    --evaluate="--split=train[90%:] --attacks=pgd --examples=100"

Lists make a grid: each value is combined with each.  --random=N draws N points from lists and
ranges instead.  Every point is trained; --finetune and --evaluate add a classifier and its report.
Finished runs are not run again, so the same command resumes after an interruption, and further
values add runs.  OUT/sweep.md has a row for each, and tensorboard --logdir=OUT/hparams compares
them.
"""

import hashlib
import itertools
import math
import pathlib
import random
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import command_line, errors, spec
from urkle_tf.output import files, tables

_RANGE = re.compile(r"(.+?)\.\.([^/].*?)(:log)?")  # not the path folder:../photos
_LONGEST = 80  # characters of a folder's name


class Range:
  """A range of numbers, drawn uniformly, or log-uniformly; whole if both ends are."""

  def __init__(self, text):
    low, high, log = _RANGE.fullmatch(text).groups()
    try:
      self.low, self.high = spec.number(low), spec.number(high)
    except ValueError as error:
      raise errors.UserError(f"cannot read the range {text!r}: {error}") from error
    self.log = bool(log)
    if not self.low < self.high or (self.log and self.low <= 0):
      raise errors.UserError(f"the range {text!r} is empty, or has no logarithm")

  def draw(self, generator):
    """A number of the range, as a flag's text."""
    whole = isinstance(self.low, int) and isinstance(self.high, int)
    if self.log:
      value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
    elif whole:
      value = generator.randint(self.low, self.high)
    else:
      value = generator.uniform(self.low, self.high)
    return str(round(value)) if whole else f"{value:.3g}"


def read_values(texts):
  """{flag: its values, a list of text or a `Range`} of "name=value, value" or "name=low..high"."""
  found = {}
  for text in texts or ():
    name, equals, rest = map(str.strip, text.strip().removeprefix("--").partition("="))
    if not equals or not rest:
      raise errors.UserError(f"--values={text}: write --values=name=value,value or name=low..high")
    if name in found or name in ("output_dir", "flagfile"):
      raise errors.UserError(f"--values={text}: {name!r} cannot be swept, or is given twice")
    found[name] = Range(rest) if _RANGE.fullmatch(rest) else list(dict.fromkeys(spec.split(rest)))
  if not found:
    raise errors.UserError("give --values=name=value,value: the flags that differ between runs")
  return found


def points(values, draws=None, seed=0):
  """The flags of each run, [{flag: value}] without repetitions: a grid, or `draws` points."""
  if draws is None:
    if ranges := [name for name, choice in values.items() if isinstance(choice, Range)]:
      raise errors.UserError(f"--values={ranges[0]} is a range: give --random=N points of it")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
  generator, found = random.Random(seed), []
  for _ in range(100 * draws):  # few values may make fewer points
    point = {
      name: choice.draw(generator) if isinstance(choice, Range) else generator.choice(choice)
      for name, choice in values.items()
    }
    if point not in found:
      found.append(point)
    if len(found) == draws:
      break
  return found


def folder_name(point):
  """The name of a run's folder, which depends only on its own values."""
  text = ",".join(f"{name}={value}" for name, value in point.items())
  name = re.sub(r"[^A-Za-z0-9.=,-]+", "_", text).strip("_")
  if name == text and len(name) <= _LONGEST:
    return name
  return f"{name[:_LONGEST]}-{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:6]}"


def stages(point, place, given):
  """The commands of a point."""
  own = [f"--{name}={value}" for name, value in point.items()]
  run = f"{place}/{folder_name(point)}"
  found = [jobs.Stage("train", None, run, [*jobs.words("train", given.train), *own])]
  if given.finetune is not None:
    words = [f"--encoder={run}/encoder", *jobs.words("finetune", given.finetune)]
    found.append(jobs.Stage("finetune", None, f"{run}/head", words))
  if given.evaluate is not None:
    of = f"--classifier={run}/head/classifier" if given.finetune is not None else None
    words = [of or f"--encoder={run}/encoder", *jobs.words("evaluate", given.evaluate)]
    found.append(jobs.Stage("evaluate", None, f"{run}/report", words))
  return found


# --- Results ---


def results(run):
  """{column: number} of the results in a run's folder."""
  found = {}
  if rows := pages.metrics(run):
    found |= {name: rows[-1][name] for name in ("loss", "kl", "effective_rank") if name in rows[-1]}
    probed = [row["knn_accuracy"] for row in rows if "knn_accuracy" in row]
    found |= {"knn_accuracy": probed[-1]} if probed else {}
  head = pages.selected(run / "head")
  found |= {name: value for name, value in head.items() if name.startswith("validation_")}
  report = pages.kept(run / "report" / "report.json")
  if "clean" in report:
    (parts, *_) = pages.columns(report).values()
    found |= {name: part["accuracy"] for name, part in parts.items()}
  if part := report.get("representation"):
    found |= {"worst kl": part["kl_mean"], "drift": part["drift"]}
  # A figure is null if all steps of its row were skipped.
  return {name: float(value) for name, value in found.items() if value is not None}


def table(rows, by=None):
  """The Markdown table of [(point, its results, or None if the run failed)].

  Args:
    rows: as above.
    by: the column to sort by, largest first, or smallest first with a "-" before the name.
  """
  named = list(dict.fromkeys(name for point, _ in rows for name in point))
  columns = list(dict.fromkeys(name for _, found in rows for name in found or ()))
  if by is not None:
    name, sign = by.removeprefix("-"), 1 if by.startswith("-") else -1
    errors.one_of("column", name, columns)
    worst = float("inf")
    rows = sorted(rows, key=lambda row: sign * (row[1] or {}).get(name, sign * worst))
  lines = []
  for point, found in rows:
    shown = ["failed"] * len(columns) if found is None else []
    shown = shown or [f"{found[name]:.4g}" if name in found else "" for name in columns]
    lines.append([*(point.get(name, "") for name in named), *shown])
  return tables.markdown([*named, *columns], lines) + "\n"


def write_hparams(folder, point, found):
  """Writes a point and its results as a run of TensorBoard's HParams."""
  command_line.import_tensorflow()
  import tensorflow as tf
  from tensorboard.plugins.hparams import api as hparams

  for old in folder.glob("events.out.*"):
    old.unlink()
  writer = tf.summary.create_file_writer(str(folder))
  with writer.as_default(0):
    hparams.hparams(point, trial_id=folder.name)
    for name, value in found.items():
      tf.summary.scalar(f"sweep/{name}", value)
  writer.close()


def main():
  """Runs what has not finished, and writes the table after each point."""
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--values", action="append", metavar="NAME=VALUES", help="values of a flag; may be repeated")
  add("--random", type=int, metavar="N", help="draw N points instead of the grid")
  add("--seed", type=int, default=0, help="seed of the draws, not of the runs")
  add("--train", default="", metavar="FLAGS", help="flags of every urkle_tf.train")
  add(
    "--finetune", metavar="FLAGS", help="flags of every urkle_tf.finetune; default: do not run it"
  )
  add(
    "--evaluate", metavar="FLAGS", help="flags of every urkle_tf.evaluate; default: do not run it"
  )
  add("--output_dir", required=True, metavar="OUT", help="the folder of all runs and the table")
  add("--by", metavar="COLUMN", help="sort the table, largest first; -COLUMN: smallest first")
  add("--list", action="store_true", help="print the commands, one a line, and run nothing")
  given = parser.parse_args()
  errors.flags_at_least(1, vars(given), "random")
  wanted = points(read_values(given.values), given.random, given.seed)
  place = jobs.within(given.output_dir)
  if given.list:
    for point in wanted:
      print(" && ".join(stage.text for stage in stages(point, place, given)))
    return
  rows, out = [], jobs.ROOT / place
  for number, point in enumerate(wanted):
    print(f"== {number + 1} of {len(wanted)}: {point}", flush=True)
    try:
      jobs.run_stages(stages(point, place, given))
      found = results(out / folder_name(point))
      write_hparams(out / "hparams" / folder_name(point), point, found)
    except SystemExit as ended:
      if ended.code in (130, 143):  # a signal to a run ends the sweep
        raise KeyboardInterrupt from ended
      found = None
    rows.append((point, found))
    shown = table(rows, given.by if any(found for _, found in rows) else None)
    files.write(out / "sweep.md", shown)
    kept = [{"values": point, "results": found} for point, found in rows]
    pages.write(out / "sweep.json", kept)
  print(f"\n{shown}\n{place}/sweep.md; to compare: tensorboard --logdir={place}/hparams")
  if not all(found for _, found in rows):
    sys.exit(1)


if __name__ == "__main__":
  jobs.main(main)
