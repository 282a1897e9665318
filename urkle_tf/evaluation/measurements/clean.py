"""Measures a classifier on clean images."""

import dataclasses

from urkle_tf.evaluation.calibration import scores, served
from urkle_tf.evaluation.measurements.base import Measurement
from urkle_tf.evaluation.report import pictures
from urkle_tf.evaluation.report.document import Heading, Share, Table, calibration
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Clean(Measurement):
  """Accuracy and calibration in each mode."""

  by_default = True
  place = 10

  def measure(self, context):
    on_clean, labels = context.on_clean, context.labels
    return of_modes(on_clean.values, labels, on_clean.votes, context.scorer.served)

  def glance(self, part, report):
    images = f"{part['examples']:,} images, {tables.READINGS[part['mode']]}"
    return [("clean accuracy", f"{part['accuracy']:.2%}", images)]

  def render(self, part, report):
    rows = [[part["mode"], Share.of(part), *calibration(part)]]
    if "deterministic" in part:
      other = part["deterministic"]
      rows.append(["deterministic", Share.of(other), *calibration(other)])
    return [
      Heading(f"Clean ({part['examples']} images)"),
      Table("Clean images", ["z", "accuracy", "NLL", "ECE", "Brier"], rows),
      pictures.reliability(report),
    ]


def of_modes(log_probabilities, labels, votes=None, samples=None):
  """The report's part "clean".

  Args:
    log_probabilities: {mode: float [n, classes]}, the served mode first.
    labels: int [n].
    votes: of `calibration.served`, where the sampled mode is served.
    samples: the same.

  Returns:
    The served mode's scores, with "mode", "examples", and the other mode's under its name.
  """
  (mode, values), *others = log_probabilities.items()
  found = {"mode": mode, "examples": len(labels), **scores(values, labels)}
  if votes is not None:
    found |= served(votes, labels, samples)
  return found | {name: scores(values, labels) for name, values in others}
