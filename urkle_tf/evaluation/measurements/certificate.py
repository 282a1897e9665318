"""The bound of Proposition 1 as a theorem: with a KL that no perturbation exceeds."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Heading, Table, Text
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Certificate(Measurement):
  """See `urkle_tf.evaluation.certificate`.

  Args:
    epsilons: l_inf radii in pixel units; None for the evaluation's radius, and a tenth, a hundredth
      and a thousandth of it.
    loss_cap: M in nats; None for the KL alone.
    steps: of PGD on the KL, for comparison.
    alpha: the chance that the bound of the clean loss is too small.
    examples: how many images are measured, the first ones.
    bounds: "interval", or "linear", which is tighter and for small networks: see
      `networks.bounds`.
  """

  epsilons: list[float] | None = None
  loss_cap: float | None = alias("loss_cap")
  steps: int = 20
  alpha: float = 0.001
  examples: int = 500
  bounds: str = "interval"

  kinds = ("classifier", "encoder")
  place = 65

  def prepare(self, context):
    from urkle_tf import attacks
    from urkle_tf.evaluation import bound
    from urkle_tf.networks.bounds import kl

    if context.norm != "linf":
      raise errors.UserError(
        f"certificate bounds the KL in l_inf, not in {context.norm}: give --norm=linf"
      )
    if not context.metadata["stochastic"]:
      raise errors.UserError(
        "certificate bounds a KL, but this model's training used no sigma: leave it out"
      )
    errors.one_of("kind of bounds", self.bounds, kl.BOUNDS)
    errors.above(0, self.name, examples=self.examples, steps=self.steps)
    errors.within("(0, 1)", self.name, alpha=self.alpha)
    for epsilon in self.epsilons or ():
      attacks.Linf(epsilon)  # which checks it
    if self.loss_cap is not None:
      bound.check(self.loss_cap, context.metadata)

  def render(self, part, report):
    head = ["epsilon", "certified KL, nats", "KL found by PGD"]
    rows = [
      [tables.radius(row["epsilon"], "linf"), f"{row['kl']:.4g}", f"{row['found']:.4g}"]
      for row in part["rows"]
    ]
    how = "lines around the activations" if part.get("bounds") == "linear" else "intervals"
    content = [
      Heading("Certified KL"),
      Text(
        f"The first {part['examples']} images. The certified KL is an upper bound of the worst KL "
        f"in the l_inf ball, by {how} through the network; PGD takes {part['steps']} steps."
      ),
    ]
    if "M" in part:
      head += ["bound on the adversarial loss", "vacuous"]
      for cells, row in zip(rows, part["rows"], strict=True):
        cells += [f"{row['value']:.4g}", "yes" if row["vacuous"] else "no"]
      content.append(
        Text(
          f"M = {part['M']:g}; the clean loss is at most {part['clean_loss']:.4g} "
          f"({100 * (1 - part['alpha']):g}% confidence over the samples of z). "
          f"The bound stays below M up to epsilon {part['largest_epsilon']:.2g}."
        )
      )
    return [*content, Table("Certified KL", head, rows)]

  def lines(self, part):
    row = part["rows"][0]
    return [f"certified KL at {tables.radius(row['epsilon'], 'linf')}: {row['kl']:.4g} nats"]
