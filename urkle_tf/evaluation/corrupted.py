"""Measures a classifier on corrupted images, computed here or prepared by TFDS."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable
from concurrent import futures

import numpy as np

from urkle_tf import errors
from urkle_tf.data import compatibility, labellings, named, sources
from urkle_tf.evaluation import calibration, corruptions, scoring
from urkle_tf.evaluation.store import Store
from urkle_tf.output import progress

_PREPARED = {name: f"{name}_corrupted" for name in ("cifar10", "imagenet2012", "mnist")}
_STANDARD_NAMES = {"frosted_glass_blur": "glass_blur", "elastic": "elastic_transform"}
_MEASURES = ("accuracy", "nll", "ece", "brier")
_WORKERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which corruptions are measured.

  Attributes:
    cells: (type, severity) pairs; the severity is None if a data set has only one.
    origin: where the corrupted images come from, for the report.
    missing: names of data sets that are not prepared, and are left out.
    load: cell -> `Source` of corrupted images; None if they are computed.
  """

  cells: list[tuple[str, int | None]]
  origin: dict
  missing: list[str] = dataclasses.field(default_factory=list)
  load: Callable | None = None


def plan(text, severities, source, **where):
  """Reads and checks what to measure, before any work.

  Args:
    text: `"all"`, the 15 standard types; some of their names, separated by commas; or `"tfds"`,
      the corrupted images that TFDS has prepared for the data set.
    severities: numbers from 1 to 5; None for all.
    source: the `Source` of clean images.
    **where: `data_dir`, `download`, `image_size` and `examples` of `sources.load`.

  Returns:
    A `Plan`.

  Raises:
    UserError: for an unknown name or severity, images that cannot be corrupted, or data that is not
      prepared.
  """
  names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
  if not names:
    raise errors.UserError("give --corruptions: all, tfds, or names separated by commas")
  severities = sorted(set(severities or corruptions.SEVERITIES))
  for severity in severities:
    if severity not in corruptions.SEVERITIES:
      raise errors.UserError(f"--severities must be whole numbers from 1 to 5, got {severity}")
  severities = [int(severity) for severity in severities]
  if names == ["tfds"]:
    return _prepared(severities, source, where)
  if names == ["all"]:
    names = list(corruptions.NAMES)
  for name in names:
    if name in ("all", "tfds"):
      raise errors.UserError(f"--corruptions={text}: {name!r} must be given alone")
    if name not in corruptions.NAMES:
      raise errors.unknown("corruption", name, [*corruptions.NAMES, "all", "tfds"])
  corruptions.check(source.image_shape)
  cells = [(name, severity) for name in names for severity in severities]
  origin = {"origin": "computed", "constants": corruptions.constants(source.image_shape)}
  return Plan(cells, origin)


def _prepared(severities, source, where):
  """The `Plan` of what TFDS has prepared for a source's data set."""
  dataset, labelling = labellings.split(source.name)
  base = re.split("[/:]", dataset)[0]  # without configuration and version
  if base not in _PREPARED:
    raise errors.UserError(
      f"TFDS has no corrupted images of {source.name!r} (it has {', '.join(_PREPARED)}): give "
      "--corruptions=all, which computes them"
    )
  suffix = f":{labelling}" if labelling else ""
  found, missing, failure = {}, [], None
  for cell, config in _configs(_PREPARED[base], severities).items():
    name = f"{_PREPARED[base]}/{config}"
    try:
      named.find(name, source.split, **where)
    except errors.UserError as error:
      missing.append(name)
      failure = failure or error
    else:
      found[cell] = name + suffix
  if not found:
    raise failure or errors.UserError(
      f"{_PREPARED[base]!r} has none of these severities: leave --severities out"
    )
  if missing:
    print(f"not prepared, and left out: {', '.join(missing)}")

  def load(cell):
    return sources.load(found[cell], source.split, **where | {"download": False})

  return Plan(list(found), {"origin": _PREPARED[base]}, missing, load)


def _configs(dataset, severities):
  """{(type, severity): configuration} of the standard types of a TFDS data set."""
  import tensorflow_datasets as tfds

  found: dict[tuple[str, int | None], str] = {}
  for config in tfds.builder_cls(dataset).builder_configs:
    if dataset == "mnist_corrupted":  # with other types, of one severity
      if config != "identity":
        found[config, None] = config
      continue
    kind, _, severity = config.rpartition("_")
    kind = _STANDARD_NAMES.get(kind, kind)
    if kind in corruptions.NAMES and int(severity) in severities:
      found[kind, int(severity)] = config
  rank = {name: number for number, name in enumerate(corruptions.NAMES)}
  ordered = sorted(found, key=lambda cell: (rank.get(cell[0], len(rank)), cell[0], cell[1] or 0))
  return {cell: found[cell] for cell in ordered}


def _tally(log_probabilities, labels):
  """A batch's sums for its corruption: the log-probabilities of all 75 would not fit in memory."""
  return {
    "count": len(labels),
    "nll": calibration.nll(log_probabilities, labels) * len(labels),
    "brier": calibration.brier(log_probabilities, labels) * len(labels),
    "sums": calibration.binned(log_probabilities, labels),
  }


def _accuracy(tally):
  return float(tally["sums"][2].sum() / tally["count"])


def _scores(tally):
  count = int(tally["count"])
  return {
    "accuracy": _accuracy(tally),
    "interval": calibration.wilson(int(tally["sums"][2].sum()), count),
    "nll": float(tally["nll"]) / count,
    "ece": calibration.ece_of(tally["sums"]),
    "brier": float(tally["brier"]) / count,
  }


def measure(scorer, source, found, batch_size=250, seed=0, store=None):
  """The report's part "corruptions".

  Args:
    scorer: a `Scorer` for `batch_size`.
    source: the labelled `Source` of clean images.
    found: a `Plan`.
    batch_size: images that are corrupted and scored together.
    seed: of the corruptions.
    store: a `Store` that remembers the scores of each batch and corruption; None for none.

  Returns:
    A dict: "mean", the accuracy averaged over each type's severities and then over the types,
    "interval" its 95% interval, "mean_corruption_error" 1 - mean (not divided by another network's
    errors), "nll", "ece" and "brier", means in the same way; "by_severity" and "by_type", the same
    for their corruptions, and by type "severities", each corruption's own; "reliability" of all
    corrupted images together; "mode", "examples", "types", "severities", "origin" and, if computed,
    "constants".  The other mode's figures are under its name.

    The interval of a mean is that of a share of the same number of images.  An image's corruptions
    are dependent, but the mean's true interval is never wider.
  """
  batches, store = _computed if found.load is None else _loaded, store or Store()
  tallies: dict[str, dict] = {}
  bar = progress.Progress("corruptions", len(found.cells) * source.size)
  for cell, name, images, labels in batches(source, found, batch_size, seed, store):
    scores = store.find(name) if images is None else None
    if scores is None:
      scores = {
        f"{mode}.{key}": value
        for mode, values in scorer(images).items()
        for key, value in _tally(values, labels).items()
      }
      store.keep(name, scores)
    for mode in dict.fromkeys(key.partition(".")[0] for key in scores):
      of_mode = tallies.setdefault(mode, {})
      before = of_mode.get(cell, dict.fromkeys(("count", "nll", "brier", "sums"), 0))
      of_mode[cell] = {key: value + scores[f"{mode}.{key}"] for key, value in before.items()}
    so_far = "  ".join(
      f"{mode} {np.mean([_accuracy(tally) for tally in of_mode.values()]):.1%}"
      for mode, of_mode in tallies.items()
    )
    bar.add(len(labels), f"{cell[0]} {cell[1] or ''} {so_far}")
  (served, of_served), *others = tallies.items()
  part = {
    "mode": served,
    "examples": int(min(tally["count"] for tally in of_served.values())),
    "types": list(dict.fromkeys(kind for kind, _ in found.cells)),
    "severities": sorted({severity_name(severity) for _, severity in found.cells}),
    **found.origin,
    **({"missing": found.missing} if found.missing else {}),
    **_summary(of_served),
  }
  return part | {mode: _summary(of_mode) for mode, of_mode in others}


def severity_name(severity):
  """A severity as a key of report.json."""
  return "published" if severity is None else str(severity)


def _summary(tallies):
  """The figures of one mode, from {cell: tally}."""
  scores = {cell: _scores(tally) for cell, tally in tallies.items()}
  images = int(min(tally["count"] for tally in tallies.values()))

  def mean(rows):
    means = {name: float(np.mean([row[name] for row in rows])) for name in _MEASURES}
    return {**means, "interval": calibration.wilson(means["accuracy"] * images, images)}

  by_severity: dict[str, list] = collections.defaultdict(list)
  by_type: dict[str, dict] = collections.defaultdict(dict)
  for (kind, severity), row in scores.items():
    by_severity[severity_name(severity)].append(row)
    by_type[kind][severity_name(severity)] = row
  types = {
    kind: {**mean(rows.values()), "severities": dict(sorted(rows.items()))}
    for kind, rows in by_type.items()
  }
  whole = mean(types.values())
  accuracy = whole.pop("accuracy")
  return {
    "mean": accuracy,
    "mean_corruption_error": 1 - accuracy,
    **whole,
    "by_severity": {name: mean(rows) for name, rows in sorted(by_severity.items())},
    "by_type": types,
    "reliability": calibration.reliability(sum(tally["sums"] for tally in tallies.values())),
  }


def _name(cell, number):
  """The name of a batch's scores in a store."""
  return f"corruption-{cell[0]}-{severity_name(cell[1])}-{number}"


def _computed(source, found, batch_size, seed, store):
  """Yields (cell, name, images, labels); corrupts the next ones while one is scored.

  The images are None if the store has their scores.
  """

  def corrupt(cell, name, positions, images, labels):
    if store.find(name) is not None:
      return cell, name, None, labels
    kind, severity = cell
    return cell, name, corruptions.corrupt(images, kind, severity, positions, seed), labels

  waiting: collections.deque = collections.deque()
  with futures.ThreadPoolExecutor(_WORKERS) as pool:
    try:
      for number, batch in enumerate(scoring.stream(source, batch_size)):
        for cell in found.cells:
          waiting.append(pool.submit(corrupt, cell, _name(cell, number), *batch))
          if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for job in waiting:
        job.cancel()


def _loaded(source, found, batch_size, seed, store):
  """As `_computed`, from prepared data."""
  for cell in found.cells:
    corrupted = found.load(cell)
    compatibility.check_images(source.image_shape, corrupted)
    if source.class_names is not None:
      compatibility.check_classes(len(source.class_names), source.class_names, corrupted)
    for number, (_, images, labels) in enumerate(scoring.stream(corrupted, batch_size)):
      name = _name(cell, number)
      yield cell, name, None if store.find(name) is not None else images, labels
