"""Checks whether the figures can be trusted: signs of masked gradients."""

import dataclasses

from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Alarm, Heading, Table, Text
from urkle_tf.output import tables

_ADVICE = "attack with --attacks=autoattack"


@dataclasses.dataclass(frozen=True)
class Checks(Measurement):
  """See `urkle_tf.evaluation.checks`.

  Args:
    run: whether they run without being named by `--measure`.
    examples: how many images are checked, the first ones; 0 for none.
  """

  run: bool = alias("checks")
  examples: int = 200

  place = 30
  glance_place = 70

  def wanted(self, kind, named):
    return (self.run or named) and self.examples > 0

  def measure(self, context):
    from urkle_tf.evaluation import checks

    return context.store.json("checks", lambda: checks.measure(context, self.examples))

  def glance(self, part, report):
    failed = ", ".join(_failed(part))
    passed = f"{sum(check['passed'] for check in part)} of {len(part)}"
    return [("checks passed", Alarm(passed) if failed else passed, failed and f"not: {failed}")]

  def render(self, part, report):
    config, failed = report["config"], _failed(part)
    verdict = (
      f"Failed: {', '.join(failed)}. The figures above may be too high, because of masked "
      f"gradients or too little effort: {_ADVICE}, and see docs/evaluation.md."
      if failed
      else "All passed: no sign of masked gradients was found."
    )
    rows = [
      [check["name"], "passed" if check["passed"] else Alarm("failed"), check["detail"]]
      for check in part
    ]
    return [
      Heading(f"Checks (epsilon {tables.radius(config['epsilon'], config['norm'])})"),
      Table("Checks for masked gradients", ["check", "", "numbers"], rows),
      Text(verdict),
    ]

  def lines(self, part):
    failed = ", ".join(_failed(part))
    verdict = f"FAILED: {failed}; the figures may be too high: {_ADVICE}"
    return [f"checks: {verdict if failed else 'all passed'}"]


def _failed(part):
  return [check["name"] for check in part if not check["passed"]]
