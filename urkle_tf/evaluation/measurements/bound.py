"""The bound on the adversarial loss by the KL (Urkle paper, Proposition 1)."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Heading, Table, Text
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Bound(Measurement):
  """See `urkle_tf.evaluation.bound`.

  Args:
    loss_cap: M in nats, above ln of the number of classes.
    steps: of PGD on the KL.
    restarts: of PGD on the KL.
    loss_steps: of PGD on the sampled classifier's loss.
    eot: samples of z in each of those steps.
    samples: samples of z that the losses are measured with, unknown to the attacks; None for
      `--samples`, but at least 200.
    examples: how many images are measured, the first ones.
  """

  loss_cap: float | None = alias("loss_cap")
  steps: int = 100
  restarts: int = 2
  loss_steps: int = 50
  eot: int = 10
  samples: int | None = None
  examples: int = 1000

  kinds = ("classifier",)
  place = 60

  def wanted(self, kind, named):
    if self.loss_cap is not None and kind in ("foreign", "foreign_encoder"):
      raise errors.UserError(
        "--loss_cap: Proposition 1 is about this package's models: leave out --loss_cap"
      )
    return named or self.loss_cap is not None

  def prepare(self, context):
    from urkle_tf.evaluation import bound

    if self.loss_cap is None:
      raise errors.UserError(
        "bound needs the option 'loss_cap': give --loss_cap=NUMBER or bound(loss_cap=NUMBER)"
      )
    bound.check(self.loss_cap, context.metadata)
    counts = {n: getattr(self, n) for n in ("steps", "restarts", "loss_steps", "eot", "examples")}
    errors.at_least(1, self.name, **counts)
    if "sampled" not in context.modes:
      raise errors.UserError(
        "--loss_cap: Proposition 1 is about sampled z: leave out --loss_cap or --modes"
      )

  def glance(self, part, report):
    how = "vacuous" if part["vacuous"] else f"M {part['M']:.4g}"
    how += f", measured {part['measured_adversarial_loss']:.4g}"
    return [("bound on the loss", f"{part['value']:.4g} nats", how)]

  def render(self, part, report):
    rows = [
      ["clean loss (eq. 2)", *[f"{part['clean_loss']:.4g}"] * 2],
      ["regulariser", f"{part['regulariser']:.4g}", f"{part['regulariser_tight']:.4g}"],
      ["bound: their sum", f"{part['value']:.4g}", f"{part['value_tight']:.4g}"],
      ["M", *[f"{part['M']:.4g}"] * 2],
      ["measured adversarial loss (eq. 3)", *[f"{part['measured_adversarial_loss']:.4g}"] * 2],
    ]
    head = ["", "root of the mean KL (eq. 4)", "mean of roots (eq. 31)"]
    return [
      Heading("The bound of Proposition 1"),
      Text(
        f"The first {part['examples']} images, sampled z ({part['samples']} samples), "
        f"{tables.threat(part, ', epsilon ')}; nats. Each softmax is mixed with "
        f"{100 * part['cap_share']:.3g}% of the uniform distribution, so that no loss exceeds M."
      ),
      Table("The bound of Proposition 1", head, rows),
      Text(
        f"{_verdict(part)} The KL is the largest found (mean {part['kl_mean']:.4g}; PGD on the KL "
        f"with {part['steps']} steps and {part['restarts']} restarts, PGD on the loss with "
        f"{part['loss_steps']}), and so is the measured loss: the true maxima may be larger, and "
        "the bound with them."
      ),
    ]


def _verdict(part):
  if part["vacuous"] and part["vacuous_tight"]:
    return "Vacuous: the bound is at least M, which the capped loss never exceeds."
  if part["vacuous"]:
    return "Vacuous with the root of the mean KL; with the mean of roots the bound is below M."
  return "Not vacuous: the bound is below M."
