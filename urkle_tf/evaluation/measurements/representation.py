"""Measures an encoder under its worst perturbation, without labels."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report import pictures
from urkle_tf.evaluation.report.document import Heading, Table, Text
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Representation(Measurement):
  """See `urkle_tf.evaluation.representation`.

  Args:
    examples: how many images are measured, the first ones; 0 for none.
    steps: of PGD on the KL.
    restarts: of the attacks.
    loss_cap: M in nats, of an encoder alone: adds what Proposition 1 adds to the clean loss.
  """

  examples: int = alias("representation_examples")
  steps: int = 50
  restarts: int = 2
  loss_cap: float | None = alias("loss_cap")

  kinds = ("classifier", "encoder")
  place = 50

  def wanted(self, kind, named):
    if kind == "encoder" and self.loss_cap is not None and self.examples == 0:
      raise errors.UserError(
        "--loss_cap of an encoder alone needs --representation_examples above 0, or leave it out"
      )
    return self.examples > 0

  def prepare(self, context):
    from urkle_tf.evaluation import bound

    errors.at_least(1, self.name, steps=self.steps, restarts=self.restarts)
    if context.kind == "encoder" and self.loss_cap is not None:
      bound.check(self.loss_cap, context.metadata)

  def measure(self, context):
    from urkle_tf.evaluation import representation

    found = representation.measure(context, self)
    if context.folder and context.metadata["stochastic"]:
      representation.draw_map(context)
    return found

  def glance(self, part, report):
    if "clean" in report:
      return []
    flips = f"{part['neighbour_flips']:.1%}"
    return [
      ("worst KL, mean", f"{part['kl_mean']:.4g} nats", tables.threat(part, ", epsilon ")),
      ("nearest image changes", flips, f"of {part['examples']:,} images"),
    ]

  def render(self, part, report):
    meanings = {name: text.format(**part) for name, text in _MEANINGS.items() if name in part}
    content = [
      Heading("Representation"),
      Text(
        f"The first {part['examples']} images, PGD on the KL with {part['steps']} steps and "
        f"{part['restarts']} restarts, {tables.threat(part, ', epsilon ')}; "
        "no label is read."
      ),
      Table(
        "Representation",
        ["", "value"],
        [[text, f"{part[name]:.4g}"] for name, text in meanings.items()],
      ),
    ]
    if not report["config"].get("stochastic", True):
      text = "This encoder's training used no sigma: KL, sigma and abs(mu) / sigma mean little."
      content.append(Text(text))
    return [*content, pictures.latent_map(part)]


_MEANINGS = {
  "kl_mean": "KL of the worst perturbation found, mean over images, nats",
  "kl_max": "the largest of them, nats",
  "kl_mean_part": "of the mean KL, what the means of z contribute, nats",
  "sigma": "sigma, mean",
  "sigma_min": "sigma, smallest",
  "sigma_max": "sigma, largest",
  "loc_std": "spread of the mean of z over images (the unit of sigma)",
  "effective_rank": "effective rank of mu over the first {rank_examples} images",
  "snr": "mean of abs(mu) / sigma",
  "drift": "how far mu moves, in mean distances between different images",
  "neighbour_flips": "share of images whose nearest other image changes",
  "regulariser_per_nat": "root of half the mean KL: the bound's regulariser per nat of M (eq. 4)",
  "regulariser_tight_per_nat": "mean root of half the KL: also per nat of M (eq. 31)",
  "M": "M, nats",
  "regulariser": "regulariser of Proposition 1 (eq. 4), nats",
  "regulariser_tight": "the same with the mean of roots (eq. 31), nats",
}
