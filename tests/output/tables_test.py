"""How figures are written: radii, attacks, the rows of a report, tables."""

import numpy as np
import pytest

from urkle_tf.output import tables


@pytest.mark.parametrize(
  "epsilon, norm, text",
  [
    (8 / 255, "linf", "8/255"),
    (float(np.float32(8 / 255)), "linf", "8/255"),
    (1 / 255, "linf", "1/255"),
    (0.5 / 255, "linf", "0.5/255"),
    (0.1, "linf", "0.1"),  # 25.5/255
    (0.2, "linf", "0.2"),  # 51/255
    (0.0314, "linf", "0.0314"),
    (1.0, "linf", "1"),
    (0.0, "linf", "0"),
    (0.25, "l2", "0.25"),
    (128 / 255, "l2", "0.502"),
    (8 / 255, "l1", "0.03137"),
  ],
)
def test_a_radius(epsilon, norm, text):
  assert tables.radius(epsilon, norm) == text


def test_attacks():
  row = {"name": "pgd", "steps": 20, "restarts": 5, "norm": "l2", "epsilon": 1.0}
  assert tables.attack(row) == "pgd-20 x 5"
  assert tables.attack({"name": "fgsm", "steps": 1, "restarts": 1}) == "fgsm"
  assert tables.attack({"name": "pgd"}) == "pgd"
  assert tables.attack({**row, "options": "start=0.5"}) == "pgd(start=0.5)-20 x 5"
  assert tables.threat(row) == "l2 1"
  assert tables.threat(row, ", epsilon ") == "l2, epsilon 1"


def test_readings_of_z():
  mu, clean = {"accuracy": 0.8}, {"mode": "sampled", "accuracy": 0.9}
  rows = [{"mode": "deterministic", "k": 0}, {"mode": "sampled", "k": 1}]
  both = {"clean": {**clean, "deterministic": mu}, "attacks": rows}
  found = tables.readings(both)
  assert list(found) == ["sampled", "deterministic"]
  assert found["sampled"] == (both["clean"], [rows[1]])
  assert found["deterministic"] == (mu, [rows[0]])
  assert tables.readings({"clean": clean}) == {"sampled": (clean, [])}


def test_a_table():
  found = tables.markdown(["a", "b"], [[1, "x | y"], ["", "two\nlines"]])
  assert found == "| a | b |\n| --- | --- |\n| 1 | x \\| y |\n|  | two lines |"
