"""The measurement attacks: which plans run, what others get of them, how the page begins."""

import types

import numpy as np
import pytest

from urkle_tf import attacks as attacks_of
from urkle_tf.evaluation import attacked, measurements
from urkle_tf.evaluation.measurements.attacks import Attacks
from urkle_tf.settings import Assess


def of(**options):
  """The measurement by its flags."""
  (one,) = (m for m in measurements.chosen(Assess(**options), "classifier") if m.name == "attacks")
  return one


@pytest.mark.parametrize(
  "options, names, fixed",
  [
    ({"attacks": "fgsm,pgd"}, ["fgsm", "pgd"], [False, False]),
    (
      {"attacks": "fgsm,square,pgd", "minutes": 5.0},
      ["square", "pgd", "fgsm"],
      [True, False, False],
    ),
    ({"attacks": "pgd", "noise": "fixed"}, ["pgd"], [True]),
  ],
)
def test_weak_attacks_come_last_if_time_is_short(options, names, fixed):
  metadata = {"classes": 10, "stochastic": True}
  context = types.SimpleNamespace(metadata=metadata, threat=attacks_of.Linf(0.1), kind="classifier")
  found = of(**options, attack_steps=7, attack_step_size=0.03, restarts=2).prepare(context)
  assert [plan.name for plan in found] == names
  assert [plan.fixed_noise for plan in found] == fixed
  (pgd,) = (plan.attack for plan in found if plan.name == "pgd")
  assert (pgd.steps, pgd.step_size, pgd.restarts) == (7, 0.03, 2)


def test_an_image_is_robust_if_no_attack_of_the_first_radius_breaks_it(monkeypatch):
  """In the served mode: of images 0 to 3, the first is wrong as it is."""
  rows = [("sampled", 0.1), ("deterministic", 0.1), ("sampled", 0.05), ("sampled", 0.2)]
  rights = [[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
  details = [(np.array(right, bool), np.full(4, -1.0)) for right in rights]
  rows = [{"mode": mode, "epsilon": epsilon} for mode, epsilon in rows]
  monkeypatch.setattr(attacked, "measure", lambda *_: (rows, details))
  clean = np.log([[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
  context = types.SimpleNamespace(
    on_clean=types.SimpleNamespace(values={"sampled": clean, "deterministic": -clean}),
    source=types.SimpleNamespace(image_shape=(2, 2, 1)),
    labels=np.zeros(4, int),
    modes=("sampled", "deterministic"),
    prepared={"attacks": None},
    arrays={},
    epsilon=0.1,
    folder=None,
    save_images=True,
  )
  assert of().measure(context) is rows
  assert context.robust.tolist() == [False, False, True, True]
  assert context.arrays["clean_sampled"].tolist() == [1, 0, 0, 0]
  assert context.arrays["clean_deterministic"].tolist() == [0, 1, 1, 1]
  for number, right in enumerate(rights):
    assert context.arrays[f"right_{number}"].tolist() == right


def row(name, epsilon, accuracy, mode="sampled"):
  fields = {"norm": "linf", "steps": 5, "restarts": 1, "targets": 0, "mode": mode}
  return {"name": name, "epsilon": epsilon, "accuracy": accuracy, **fields}


def test_the_page_begins_with_the_lowest_accuracy_of_each_radius():
  rows = [row("pgd", 0.2, 0.3), row("fgsm", 0.1, 0.75), row("pgd", 0.1, 0.5)]
  rows.append(row("pgd", 0.1, 0.1, mode="deterministic"))
  found = Attacks.glance(None, rows, {"clean": {"mode": "sampled"}})
  assert [(title, figure) for title, figure, _ in found] == [
    ("attacked, linf 0.1", "50.00%"),
    ("attacked, linf 0.2", "30.00%"),
  ]
  assert all("pgd" in how for *_, how in found)
