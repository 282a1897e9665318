"""Measures a classifier on corrupted images."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report import pictures
from urkle_tf.evaluation.report.document import Heading, Share, Strong, Table, Text, calibration


@dataclasses.dataclass(frozen=True)
class Corruptions(Measurement):
  """See `corrupted.measure`.

  Args:
    types: `"all"` for the 15 standard types, some of their names, separated by commas, or `"tfds"`;
      None for `"all"` if `--measure` names corruptions.
    severities: numbers from 1 to 5; None for all.
  """

  types: str | None = alias("corruptions")
  severities: list[float] | None = alias("severities")

  place = 40

  def wanted(self, kind, named):
    if self.types is None and self.severities and not named:
      raise errors.UserError(
        "--severities has no effect without --corruptions: give both, or neither"
      )
    if self.types is not None and kind in ("encoder", "foreign_encoder"):
      raise errors.UserError(
        "--corruptions needs a prediction, and an encoder alone makes none: give --classifier"
      )
    return named or self.types is not None

  def prepare(self, context):
    """The `corrupted.Plan`."""
    from urkle_tf.evaluation import corrupted

    types = "all" if self.types is None else self.types
    return corrupted.plan(types, self.severities, context.source, **context.where)

  def measure(self, context):
    from urkle_tf.evaluation import corrupted

    return corrupted.measure(
      context.scorer,
      context.source,
      context.prepared[self.name],
      batch_size=context.batch_size,
      seed=context.seed,
      store=context.store,
    )

  def glance(self, part, report):
    return [("corrupted", f"{part['mean']:.2%}", f"mean of {len(part['types'])} types")]

  def render(self, part, report):
    severities = part["severities"]

    def row(title, scores, each):
      shares = [Share(each[name]["accuracy"]) if name in each else "-" for name in severities]
      return [title, *shares, Share.of(scores), *calibration(scores)]

    rows = [row(name, scores, scores["severities"]) for name, scores in part["by_type"].items()]
    mean = {**part, "accuracy": part["mean"]}
    rows.append(row(Strong("mean"), mean, part["by_severity"]))
    head = ["corruption", *(f"severity {name}" for name in severities), "mean"]
    return [
      Heading(f"Corrupted ({part['examples']} images)"),
      Table("Corrupted images", [*head, "NLL", "ECE", "Brier"], rows),
      Text(" ".join(_notes(part))),
      pictures.corruptions(part),
    ]


def _notes(part):
  notes = [
    f"z = {part['mode']}. The mean is over each type's severities and then over the types; mean "
    f"corruption error: {part['mean_corruption_error']:.2%} (1 - mean accuracy, not divided "
    "by another network's errors)."
  ]
  if part["origin"] == "computed":
    notes.append(
      f"Corrupted here, with the constants of {part['constants']}: close to the published images, "
      "but not the same."
    )
    if "frost" in part["types"]:
      notes.append(
        "Frost is procedural ice, not photographs: do not compare it with other results."
      )
  else:
    notes.append(f"The published images, TFDS {part['origin']}.")
  if missing := part.get("missing"):
    notes.append(f"Not prepared, and left out: {', '.join(missing)}.")
  return notes
