"""The table of several reports, and the script that prints it."""

import json
import sys

import commands
from cases import refuses

from experiments import pages, table


def _part(mode, accuracy, **more):
  interval = [accuracy - 0.01, accuracy + 0.01]
  return {"mode": mode, "accuracy": accuracy, "interval": interval, **more}


def _attack(mode, accuracy, epsilon, steps=20, restarts=1):
  more = {"name": "pgd", "norm": "linf", "epsilon": epsilon, "steps": steps, "restarts": restarts}
  return _part(mode, accuracy, **more)


def test_a_row_for_each_classifier():
  clean = _part("sampled", 0.5, deterministic=_part("deterministic", 0.6))
  attacks = [_attack("sampled", 0.25, 8 / 255), _attack("deterministic", 0.2, 8 / 255)]
  first = {"clean": clean, "attacks": attacks}
  attacks = [_attack("deterministic", 0.05, 8 / 255), _attack("deterministic", 0.03, 0.1, 50, 2)]
  second = {"clean": _part("deterministic", 0.9), "attacks": attacks}
  assert table.table({"A": [first], "B": [second]}).splitlines() == [
    "| system | classifier | clean | pgd-20, linf 8/255 | pgd-50 x 2, linf 0.1 |",
    "| --- | --- | --- | --- | --- |",
    "| A | sampled z | 50.00 (49.0 to 51.0) | 25.00 (24.0 to 26.0) |  |",
    "| A | z = mu | 60.00 (59.0 to 61.0) | 20.00 (19.0 to 21.0) |  |",
    "| B | z = mu | 90.00 (89.0 to 91.0) | 5.00 (4.0 to 6.0) | 3.00 (2.0 to 4.0) |",
  ]
  # Of three seeds: the deviation is sqrt(13), and t of two degrees of freedom 4.3027.
  seeds = [{**second, "clean": _part("deterministic", share)} for share in (0.5, 0.52, 0.57)]
  assert "| 53.00 ± 3.61 (44.04 to 61.96) |" in table.table({"B": seeds})
  for other in (first, {**second, "attacks": attacks[:1]}):  # another reading; an attack less
    refuses("reports of B differ", table.table, {"B": [second, other]})


def test_no_figure_is_minus_zero():
  """The interval of 0, 0 and 0.02 is -0.02 to 0.04."""
  assert pages.mean([0, 0, 0.02], ".1f") == "0.0 ± 0.0 (0.0 to 0.0)"
  assert pages.mean([0, 0, 0.02], "+.1f") == "+0.0 ± +0.0 (+0.0 to +0.0)"


def test_the_table_script(tmp_path):
  report = {"clean": _part("deterministic", 0.9), "attacks": [_attack("deterministic", 0.05, 0.1)]}
  (tmp_path / "report.json").write_text(json.dumps(report))
  words = (sys.executable, table.__file__)
  assert "| B | z = mu | 90.00" in commands.process(*words, f"B={tmp_path}").stdout
  missing = commands.process(*words, f"B={tmp_path / 'nowhere'}", code=2)
  assert "evaluate first" in missing.stderr
