"""Measures a regressor: its error, clean and attacked."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Table
from urkle_tf.output import tables


@dataclasses.dataclass(frozen=True)
class Regression(Measurement):
  """See `urkle_tf.evaluation.regression`.

  Args:
    steps: of PGD.
    step_size: their size, in pixel units; None for 2.5 epsilon / steps.
    restarts: of the attacks.
  """

  steps: int = alias("attack_steps")
  step_size: float | None = alias("attack_step_size")
  restarts: int = alias("restarts")

  kinds = ("regressor",)
  by_default = True
  place = 10

  def prepare(self, context):
    """The attack, an `attacks.PGD`."""
    from urkle_tf import attacks

    if context.source.target is None:
      raise errors.UserError(
        f"the labels of {context.source.name!r} are classes, but a regressor needs numbers. Give "
        "the data that it was trained for, such as mnist:number"
      )
    return attacks.PGD(
      context.threat, self.steps, self.step_size, restarts=self.restarts, keep="best"
    )

  def measure(self, context):
    from urkle_tf.evaluation import regression

    return regression.measure(context, context.prepared[self.name])

  def intro(self, part):
    return (
      f"Target: {part['target']}; {part['examples']:,} images. A constant guess has an error of "
      f"{part['spread']:.4g} (root mean square)."
    )

  def glance(self, part, report):
    clean, worst = part["clean"], part["attacks"][0]
    served, how = tables.READINGS[clean["mode"]], f"{worst['name']}-{worst['steps']}"
    return [
      ("clean error", f"{clean['rmse']:.4g}", f"root mean square, {served}"),
      (f"attacked, {tables.threat(worst)}", f"{worst['rmse']:.4g}", how),
      ("a constant guess", f"{part['spread']:.4g}", "root mean square"),
    ]

  def render(self, part, report):
    clean, name = part["clean"], tables.READINGS.get
    scores = lambda row: [f"{row[key]:.4g}" for key in ("rmse", "mae", "r2") if key in row]  # noqa: E731
    rows = [[name(clean["mode"]), "clean", *scores(clean)]]
    if "deterministic" in clean:
      rows.append([name("deterministic"), "clean", *scores(clean["deterministic"])])
    for row in part["attacks"]:
      how = f"{tables.attack(row)}, {tables.threat(row)}"
      rows.append([name(row["mode"]), how, *scores(row)])
    head = ["regressor", "images", "root mean square error", "mean absolute error"]
    return [Table("Errors", [*head, *(["R2"] if "r2" in clean else [])], rows)]
