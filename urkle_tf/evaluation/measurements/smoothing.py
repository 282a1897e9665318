"""Certificates by randomised smoothing: no attack within an l2 radius changes the answer."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement
from urkle_tf.evaluation.report import pictures
from urkle_tf.evaluation.report.document import Heading, Share, Table, Text


@dataclasses.dataclass(frozen=True)
class Smoothing(Measurement):
  """See `urkle_tf.evaluation.smoothing`.

  Args:
    noise: standard deviation of the noise, in pixel units.
    samples: noisy copies of an image, on which the certificate rests.
    alpha: the chance that a certificate is wrong, for each image.
    guess: further copies, which choose the class or the direction.
    radii: l2 radii of the table, in pixel units.
    examples: how many images are measured, the first ones.
  """

  noise: float = 0.25
  samples: int = 10_000
  alpha: float = 0.001
  guess: int = 100
  radii: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
  examples: int = 500

  kinds = ("classifier", "foreign", "encoder")
  place = 70

  def prepare(self, context):
    counts = {"samples": self.samples, "guess": self.guess, "examples": self.examples}
    errors.above(0, self.name, noise=self.noise, **counts)
    errors.within("(0, 1)", self.name, alpha=self.alpha)
    if not self.radii or min(self.radii) < 0:
      raise errors.UserError(f"smoothing: radii must be at least 0, got {self.radii}")

  def glance(self, part, report):
    beyond = [row for row in part.get("certified", ()) if row["radius"] > 0]
    if not beyond:
      return []
    row = min(beyond, key=lambda row: row["radius"])
    how = f"l2 {row['radius']:g}, noise {part['noise']:g}"
    return [("certified", f"{row['accuracy']:.1%}", how)]

  def render(self, part, report):
    what = (
      f"The first {part['examples']} images, Gaussian noise of {part['noise']:g}, "
      f"{part['samples']:,} copies of each; each certificate holds with "
      f"{100 * (1 - part['alpha']):g}% confidence against every attack within its l2 radius."
    )
    if "certified" in part:
      rows = [[f"{row['radius']:g}", Share.of(row)] for row in part["certified"]]
      text = Text(f"The smoothed classifier abstains on {part['abstained']:.1%} of them.")
      table = Table("Certified accuracy", ["l2 radius", "certified accuracy, %"], rows)
      return [Heading("Certified"), Text(what), table, text, pictures.certified(part)]
    rows = [[f"{row['radius']:g}", f"{row['mean']:.3f}"] for row in part["cosines"]]
    table = Table("Certified cosine", ["l2 radius", "least cosine, mean over images"], rows)
    return [Heading("Certified"), Text(what), table]

  def lines(self, part):
    if "certified" in part:
      found = (f"{r['accuracy']:.1%} at {r['radius']:g}" for r in part["certified"])
      return [f"certified accuracy, l2: {', '.join(found)}"]
    found = (f"{row['mean']:.3f} at {row['radius']:g}" for row in part["cosines"])
    return [f"certified cosine, l2: {', '.join(found)}"]
