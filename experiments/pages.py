"""What the pages of experiments share: reading results, and writing pages."""

import json
import pathlib
import re
import statistics
import sys

from experiments import jobs
from urkle_tf import errors
from urkle_tf.output import files, tables

RESULTS = jobs.ROOT / "docs" / "results"


def read(file):
  """The content of a JSON file."""
  return json.loads(file.read_text(encoding="utf-8"))


def kept(file):
  """The content of a JSON file; {} if there is none yet."""
  return read(file) if file.is_file() else {}


def write(file, content):
  """Writes a JSON file."""
  files.write(file, json.dumps(content, indent=1) + "\n")


def merge(file, found):
  """Adds results to those of a JSON file, which other processes may have changed; returns both."""
  everything = _merged(kept(file), found)
  write(file, everything)
  return everything


def _merged(old, new):
  """A dict and a further one, key by key; the further one counts if either is no dict."""
  if not isinstance(old, dict) or not isinstance(new, dict):
    return new
  return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def reports(work, name, ending):
  """{seed: content of report.json} of the folders NAME-SEED-ENDING that hold one, by seed."""
  found = {}
  for path in work.glob(f"{name}-*-{ending}/report.json"):
    if matched := re.fullmatch(rf"{name}-(\d+)-{ending}", path.parent.name):
      found[int(matched[1])] = read(path)
  return dict(sorted(found.items()))


def fingerprint(run):
  """That of a run's encoder; "" if there is none yet."""
  return kept(jobs.ROOT / run / "encoder" / "metadata.json").get("fingerprint", "")


def percent(share):
  """A share of images in percent, rounded for JSON."""
  return round(100 * share, 4)


def served(report):
  """(the part "clean", [rows of "attacks"]) of the served model."""
  return next(iter(tables.readings(report).values()))


def columns(report):
  """The parts of a report, by the reading of z, the served mode first.

  Args:
    report: the content of report.json, of a classifier or of a regressor.

  Returns:
    {mode: {"clean": its part, "pgd-20, linf 8/255": the attack's row, ...}}; the worst row of
    several attacks of one name.
  """
  found = {}
  least = lambda row: row.get("accuracy", -row.get("rmse", 0.0))  # noqa: E731
  for mode, (clean, rows) in tables.readings(report.get("regression", report)).items():
    named = found[mode] = {"clean": clean}
    for row in rows:
      name = f"{tables.attack(row)}, {tables.threat(row)}"
      named[name] = min(named.get(name, row), row, key=least)
  return found


def named_folders(pairs, usage):
  """[(name, folder)] of words NAME=FOLDER; exits with the usage if a word has another form."""
  if not pairs or not all("=" in pair for pair in pairs):
    sys.exit(usage)
  return [(name, pathlib.Path(folder)) for name, folder in (pair.split("=", 1) for pair in pairs)]


def flags(run):
  """{name: text} of the flags that a run was trained with."""
  return jobs.flags((run / "flags.cfg").read_text(encoding="utf-8").splitlines())


def metrics(run):
  """The rows of a run's metrics.jsonl; [] if there is no such file."""
  file = run / "metrics.jsonl"
  lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
  return [json.loads(line) for line in lines]


def selected(run):
  """The row of metrics of the weights that a head's training kept, which may not be the last one.

  Args:
    run: the folder of a run of `urkle_tf.finetune`.

  Returns:
    A dict; {} for a run that has exported nothing.
  """
  rows = metrics(run)[::-1]  # those of the last stage first
  parts = [kept(run / kind / "metadata.json") for kind in ("classifier", "regressor")]
  steps = [part["selected"]["step"] for part in parts if "selected" in part]
  return next((row for row in rows if row["step"] in steps), {})


def training_minutes(*runs):
  """The minutes of training in metrics.jsonl, summed over runs."""
  return round(sum(rows[-1]["seconds"] for run in runs if (rows := metrics(run))) / 60, 2)


SEVERAL = "Several seeds: mean ± standard deviation (95% interval of the mean, Student's t)."


def mean(values, form=".2f", deviation=None):
  """The mean of the figures of seeds as text; if several, "mean ± deviation (low to high)"."""
  if not values:  # not measured
    return ""
  form = "+z" + form[1:] if form.startswith("+") else "z" + form  # z: 0.0 rather than -0.0
  middle, spread, interval = tables.seeds(values)
  if interval is None:
    return f"{middle:{form}}"
  low, high = interval
  return f"{middle:{form}} ± {spread:{deviation or form}} ({low:{form}} to {high:{form}})"


def differences(ours, theirs):
  """The differences of the figures of two systems, [a - b], over the seeds that both have.

  Args:
    ours: {seed: figure}.
    theirs: {seed: figure}.
  """
  return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def table(columns, rows):
  """A table in Markdown, a line for each dict.

  Args:
    columns: {title: the format of a cell, such as "{seconds:.1f} s", from the dict}.
    rows: the dicts.
  """
  return tables.markdown(
    columns, [[form.format(**row) for form in columns.values()] for row in rows]
  )


def page(text, blocks):
  """Replaces the text between markers in a page; the rest stays unchanged.

  Args:
    text: the page.
    blocks: {name: Markdown} for the lines between `<!-- name -->` and `<!-- /name -->`.

  Raises:
    UserError: if a marker is missing.
  """
  for name, block in blocks.items():
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if len(re.findall(pattern, text, re.DOTALL)) != 1:
      raise errors.UserError(
        f"the page must hold the lines <!-- {name} --> and <!-- /{name} --> once: the results go "
        "between them"
      )
    inside = f"{block}\n" if block else ""
    text = re.sub(pattern, lambda m, new=inside: m[1] + new + m[2], text, flags=re.DOTALL)
  return text


def update(file, blocks):
  """Writes the blocks into a page, as `page` does; a new page has nothing else."""
  if file.exists():
    text = file.read_text(encoding="utf-8")
  else:
    empty = [f"<!-- {name} -->\n<!-- /{name} -->" for name in blocks]
    text = "\n\n".join([f"# {file.stem}", *empty]) + "\n"
  files.write(file, page(text, blocks))


def draw(file, rows, panels, looks):
  """Draws accuracies: a line for each row, with a marker for each score and a tick for each seed.

  Args:
    file: the PNG to write.
    rows: dicts with "system", and perhaps "paper", {score: percent}, whose markers are hollow.
    panels: a list of (title, (lowest, highest) or None, [{score: percent of each seed} by row]).
    looks: {score: (label, colour, marker)}.
  """
  import matplotlib  # here, because importing takes seconds

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  size = (2.4 + 3.6 * len(panels), 1.6 + 0.45 * len(rows))
  figure, (found,) = plt.subplots(
    1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
  )
  keys = {}
  for axes, (title, limits, scores) in zip(found, panels, strict=True):
    for line, (row, values) in enumerate(zip(rows, scores, strict=True)):
      axes.axhline(line, color="#b8b8c8", linewidth=0.6, zorder=0)
      for name, seeds in values.items():
        label, colour, marker = looks[name]
        axes.plot(seeds, [line] * len(seeds), "|", color=colour, markersize=11, zorder=2)
        (keys[label],) = axes.plot(
          statistics.fmean(seeds), line, marker, color=colour, markeredgecolor="white", zorder=3
        )
        if name in row.get("paper", {}):
          axes.plot(row["paper"][name], line - 0.27, marker, color=colour, fillstyle="none")
    axes.set(title=title, xlabel="accuracy, %", xlim=limits)
    axes.grid(axis="x", alpha=0.35, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
  found[0].set_yticks(range(len(rows)), [row["system"] for row in rows])
  found[0].set_ylim(len(rows) - 0.5, -0.6)
  place = {"loc": "outside upper center", "ncols": len(keys), "frameon": False}
  figure.legend(keys.values(), keys.keys(), **place)
  files.write(file, lambda stream: figure.savefig(stream, dpi=120, format="png"))
  plt.close(figure)
