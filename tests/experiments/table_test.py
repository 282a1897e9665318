"""The script that prints tables."""

import json
import subprocess
import sys

import pytest

from experiments import table


def _part(mode, accuracy, **more):
  return {
    "mode": mode,
    "accuracy": accuracy,
    "interval": [accuracy - 0.01, accuracy + 0.01],
    **more,
  }


def _attack(mode, accuracy, epsilon, steps=20, restarts=1):
  more = {"name": "pgd", "norm": "linf", "epsilon": epsilon, "steps": steps, "restarts": restarts}
  return _part(mode, accuracy, **more)


@pytest.fixture
def reports():
  return {
    "A": {
      "clean": _part("sampled", 0.5, deterministic=_part("deterministic", 0.6)),
      "attacks": [_attack("sampled", 0.25, 8 / 255), _attack("deterministic", 0.2, 8 / 255)],
    },
    "B": {
      "clean": _part("deterministic", 0.9),
      "attacks": [
        _attack("deterministic", 0.05, 8 / 255),
        _attack("deterministic", 0.03, 0.1, 50, 2),
      ],
    },
  }


def test_a_row_for_each_classifier(reports):
  single = {name: [report] for name, report in reports.items()}
  assert table.table(single).splitlines() == [
    "| system | classifier | clean | pgd-20, linf 8/255 | pgd-50 x 2, linf 0.1 |",
    "| --- | --- | --- | --- | --- |",
    "| A | sampled z | 50.00 (49.0 to 51.0) | 25.00 (24.0 to 26.0) |  |",
    "| A | z = mu | 60.00 (59.0 to 61.0) | 20.00 (19.0 to 21.0) |  |",
    "| B | z = mu | 90.00 (89.0 to 91.0) | 5.00 (4.0 to 6.0) | 3.00 (2.0 to 4.0) |",
  ]


def test_a_row_of_several_seeds(reports):
  """50, 52 and 57%: the mean is 53, the deviation sqrt(13), t of two degrees 4.3027."""
  several = []
  for accuracy in (0.5, 0.52, 0.57):
    report = json.loads(json.dumps(reports["B"]))
    report["clean"]["accuracy"] = accuracy
    several.append(report)
  assert "| 53.00 ± 3.61 (44.04 to 61.96) |" in table.table({"B": several})


def test_the_table_script(reports, tmp_path):
  (tmp_path / "report.json").write_text(json.dumps(reports["B"]))
  run = lambda *args: subprocess.run(  # noqa: E731
    [sys.executable, table.__file__, *args], capture_output=True, text=True, check=False
  )
  assert "| B | z = mu | 90.00" in run(f"B={tmp_path}").stdout
  missing = run(f"B={tmp_path / 'nowhere'}")
  assert missing.returncode == 1
  assert "evaluate first" in missing.stderr
