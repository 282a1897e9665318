"""Compares this classifier with another, on the same images under the same attacks."""

import dataclasses
import json
import os
import pathlib
import zipfile

import numpy as np

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Heading, Table, Text
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Against(Measurement):
  """See `urkle_tf.evaluation.paired`.

  Args:
    report: the folder of an evaluation of another classifier on the same images, made with
      `--save_images`.
  """

  report: str | None = alias("against")

  place = 80

  def wanted(self, kind, named):
    return named or self.report is not None

  def prepare(self, context):
    """(the other's report, its arrays)."""
    folder = pathlib.Path(os.path.expanduser(self.report or ""))
    if not self.report or not (folder / "report.json").is_file():
      raise errors.UserError(
        f"no report.json in {str(self.report)!r}: give --against the folder of another evaluation"
      )
    if not (folder / "images.npz").is_file():
      raise errors.UserError(
        f"{str(folder)!r} has no images.npz with the images that were right: evaluate that model "
        "again with --save_images"
      )
    try:
      theirs = json.loads((folder / "report.json").read_text(encoding="utf-8"))
      with np.load(folder / "images.npz", allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name.startswith(("labels", "clean_", "right_"))]
        found = {name: arrays[name] for name in names}
      rows = theirs.get("attacks", ())
      if missing := [n for n in range(len(rows)) if f"right_{n}" not in found]:
        raise ValueError(f"images.npz lacks row {missing[0] + 1} of report.json")
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
      raise errors.UserError(
        f"cannot read the report in {str(folder)!r}: {errors.reason(error)}; evaluate that model "
        "again"
      ) from error
    if "labels" not in found or len(found["labels"]) != context.source.size:
      raise errors.UserError(
        f"{str(folder)!r} is a report on {len(found.get('labels', []))} labelled images, but this "
        f"evaluation has {context.source.size}: give the same --dataset, --split and --examples"
      )
    _check_images(self.report, theirs, found["labels"], context.source)
    # The rows of a reading of z also count what was found against the other, if it is measured.
    modes = {name.removeprefix("clean_") for name in found if name.startswith("clean_")}
    if modes != {*context.modes}:
      raise errors.UserError(
        f"{str(folder)!r} is a report on {_said(modes)} z, but this evaluation on "
        f"{_said(context.modes)} z, and only the same can be compared: give both the same --modes"
      )
    return theirs, found

  def measure(self, context):
    from urkle_tf.evaluation import paired

    theirs, arrays = context.prepared[self.name]
    ours, labels = context.arrays, context.labels
    right = lambda found, mode: found[f"clean_{mode}"] == labels  # noqa: E731
    rows = [
      {"name": "clean", "mode": mode, **paired.compare(right(ours, mode), right(arrays, mode))}
      for mode in context.modes
    ]
    places = {key: number for number, key in enumerate(_keys(theirs["attacks"]))}
    found = context.report["attacks"]
    for number, (row, key) in enumerate(zip(found, _keys(found), strict=True)):
      other = places.get(key)
      if other is not None:
        standing = ours[f"right_{number}"], arrays[f"right_{other}"]
        shown = ("name", "options", "norm", "epsilon", "mode")
        same = {name: row[name] for name in shown if name in row}
        rows.append({**same, **paired.compare(*standing)})
    return {"report": pathlib.Path(str(self.report)).name, "examples": len(labels), "rows": rows}

  def render(self, part, report):
    head = ["images", "z", "difference, points", "95% interval", "only here", "only there", "p"]
    lines = []
    for row in part["rows"]:
      low, high = (100 * end for end in row["interval"])
      lines.append(
        [
          *(_title(row), row["mode"], f"{100 * row['difference']:+z.2f}"),
          *(f"{low:+z.2f} to {high:+z.2f}", row["only_here"], row["only_there"]),
          f"{row['p']:.2g}" if row["shown"] else f"{row['p']:.2g}: no difference shown",
        ]
      )
    text = (
      f"The same {part['examples']:,} images. The two columns before p count those that this "
      "classifier alone gets right, and the other one alone. p is from McNemar's exact test. Only "
      "rows with the same attack, norm, radius and reading of z are compared, and those that also "
      "count what other attacks found only if these are the same."
    )
    return [Heading(f"Against {part['report']}"), Text(text), Table("Against", head, lines)]

  def lines(self, part):
    return [
      f"{_title(row)}, {row['mode']} z, against {part['report']}: {100 * row['difference']:+z.2f} "
      f"points (p {row['p']:.2g}{'' if row['shown'] else ', no difference shown'})"
      for row in part["rows"]
    ]


def _title(row):
  """A row's attack and its radius."""
  return tables.name(row) + (
    f" {tables.radius(row['epsilon'], row['norm'])}" if "epsilon" in row else ""
  )


def _check_images(report, theirs, labels, source):
  """Raises `UserError` if another report is on other data than a source, or has other labels."""
  from urkle_tf import export
  from urkle_tf.data import pipeline

  ours = export.settings_without_paths({"dataset": source.name})["dataset"]
  other = theirs.get("config", {}).get("dataset", ours)
  if other != ours:
    raise errors.UserError(
      f"{report!r} is a report on {other}, but this evaluation is on {ours}: give both the same "
      "--dataset"
    )
  if not np.array_equal(labels, pipeline.labels(source)):
    raise errors.UserError(
      f"{report!r} has other labels, so its images are not the same: give the same --dataset and "
      "--split"
    )


def _said(modes):
  """The readings of z in words."""
  return " and ".join(sorted(modes, reverse=True))  # sampled first, as elsewhere


def _keys(rows):
  """What must be equal for a row to be compared with one of another report: a list, one each."""
  return [
    (_key(row), frozenset(map(_key, _counted(row, rows[:number]))))
    for number, row in enumerate(rows)
  ]


def _key(row):
  names = ("name", "norm", "epsilon", "steps", "restarts", "mode", "step_size", "targets")
  return tuple(row.get(name) for name in (*names, "ensemble", "eot", "noise", "options"))


def _counted(row, earlier):
  """The earlier rows of its mode whose finds a row counts too: see `attacked.measure`."""
  if "own_accuracy" in row:
    return []
  earlier = [other for other in earlier if other["mode"] == row["mode"]]
  name = row.get("ensemble", row["name"])
  stages = [other for other in earlier if other.get("ensemble") == name]
  whole = not stages or "own_accuracy" not in stages[0]  # not the stages' alone
  return [other for other in (earlier if whole else stages) if other["epsilon"] <= row["epsilon"]]
