"""Errors of regressors: linear ones have a known worst case."""

import json

import numpy as np
import pytest
from cases import refuses, slow
from small_models import linear_head, linear_network

import urkle_tf
from urkle_tf import attacks, export
from urkle_tf.data import sources
from urkle_tf.evaluation import adversaries, regression
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.store import Store
from urkle_tf.networks.regressor import Regressor

EPSILON = 0.1


def linear(scale, stochastic):
  """f(z) = w z + b on z ~ Normal(A x, scale), for images [2, 2, 1]."""
  rng = np.random.default_rng(0)
  matrix, weights, bias = rng.normal(size=(4, 3)), rng.normal(size=(3, 1)), rng.normal(size=1)
  network = linear_network((2, 2, 1), scale, matrix)
  model = Regressor(network, linear_head(weights, bias), stochastic, samples=5)
  return model, (matrix @ weights)[:, 0], bias[0]


@pytest.fixture
def source(rng):
  """Images away from the bounds of the pixels, and numbers."""
  images = rng.integers(60, 190, (50, 2, 2, 1)).astype(np.uint8)
  numbers = rng.normal(1, 2, 50).astype(np.float32)
  return sources.ArraySource(images, name="x", split="test", target="a number", labels=numbers)


@pytest.mark.parametrize("norm", ["linf", *slow("l2")])
def test_the_worst_case_of_a_linear_regressor(source, norm, tmp_path, monkeypatch):
  model, weights, bias = linear(0.3, stochastic=False)
  attack = attacks.PGD(attacks.from_norm(norm, EPSILON), steps=20, restarts=2, keep="best")
  context = Context(source, norm, [EPSILON], model, batch_size=20, store=Store(tmp_path, {}))
  part = regression.measure(context, attack)
  error = source.images.reshape(50, 4) / 255 @ weights + bias - source.labels
  dual = np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights)
  worst = np.abs(error) + EPSILON * dual
  clean, (attacked,) = part["clean"], part["attacks"]
  assert clean["mode"] == attacked["mode"] == "deterministic"
  assert clean["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
  assert clean["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-4)
  assert attacked["rmse"] == pytest.approx(np.sqrt(np.mean(worst**2)), rel=2e-3)
  assert attacked["mae"] == pytest.approx(np.mean(worst), rel=2e-3)
  assert part["spread"] == pytest.approx(source.labels.std(), rel=1e-5)
  assert clean["r2"] == pytest.approx(1 - np.mean(error**2) / source.labels.var(), rel=1e-3)
  assert (attacked["norm"], attacked["epsilon"], attacked["steps"]) == (norm, EPSILON, 20)
  monkeypatch.setattr(attacks.PGD, "run", lambda *_, **__: 1 / 0)  # it is not measured again
  assert regression.measure(context, attack) == part


@pytest.mark.full
def test_sampled_z_and_its_mean_are_two_regressors(source):
  model, weights, bias = linear(0.5, stochastic=True)
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=5, keep="best")
  context = Context(source, "linf", [EPSILON], model, eot=3, samples=400)
  part = regression.measure(context, attack)
  assert part["clean"]["mode"] == "sampled"
  assert [row["mode"] for row in part["attacks"]] == ["sampled", "deterministic"]
  assert [row["eot"] for row in part["attacks"]] == [3, 1]
  error = np.abs(source.images.reshape(50, 4) / 255 @ weights + bias - source.labels)
  reach = EPSILON * np.abs(weights).sum()
  # The mean of a linear head over z is the head at z = mu, but for the noise of 400 samples.
  for row, tolerance in zip(part["attacks"], (0.02, 1e-3), strict=True):
    assert row["mae"] == pytest.approx(np.mean(error + reach), rel=tolerance)
  assert part["clean"]["mae"] == pytest.approx(np.mean(error), rel=0.02)
  assert part["clean"]["mae"] != part["clean"]["deterministic"]["mae"]
  assert regression.measure(context, attack) == part


def test_each_mode_counts_what_was_found_against_the_other(source, monkeypatch):
  """Against the sampled one nothing is found; each batch and mode has its own seed."""
  model, weights, bias = linear(0.0, stochastic=True)
  original, seeds = adversaries.adversary, []

  def adversary(regressor, plan, mode, eot):
    find = original(regressor, plan, mode, eot)

    def search(images, labels, seed, *radius):
      seeds.append(tuple(seed.numpy()))
      return (images[None], 0.0) if mode == "sampled" else find(images, labels, seed, *radius)

    return search

  monkeypatch.setattr(adversaries, "adversary", adversary)
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=5, keep="best")
  context = Context(source, "linf", [EPSILON], model, eot=1, samples=1, batch_size=20)
  error = np.abs(source.images.reshape(50, 4) / 255 @ weights + bias - source.labels)
  wanted = np.mean(error + EPSILON * np.abs(weights).sum())
  rows = regression.measure(context, attack)["attacks"]
  assert [row["mae"] for row in rows] == pytest.approx([wanted, wanted], rel=2e-3)
  assert len(seeds) == len(set(seeds)) == 6


def test_labels_that_are_all_the_same_have_no_r2():
  assert regression._scores(np.float32([1, 1]), 0.0) == {"rmse": 1, "mae": 1}


def test_the_last_iterate_against_sampled_z_counts_too(source):
  """Of the best one, draws of z decide: they change the error far more than the attack does.

  The error stays so large that every step goes the same way, and three reach the corner.
  """
  model, weights, _ = linear(3.0, stochastic=True)
  source.labels -= 100
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=3, keep="best")
  context = Context(source, "linf", [EPSILON], model, modes=("sampled",), eot=1, samples=50)
  part = regression.measure(context, attack)
  reach = EPSILON * np.abs(weights).sum()
  assert part["attacks"][0]["mae"] - part["clean"]["mae"] == pytest.approx(reach, rel=1e-3)


def test_a_report_in_a_folder(tmp_path, monkeypatch, source, capsys):
  model, _, _ = linear(0.5, stochastic=True)
  model.target = "a number"
  export.export_regressor(model, tmp_path / "regressor", {"norm": "linf", "epsilon": EPSILON})
  monkeypatch.setattr(sources, "load", lambda *args, **kwargs: source)
  options = {"regressor": str(tmp_path / "regressor"), "attack_steps": 2, "samples": 10}
  options["restarts"] = 2
  report = urkle_tf.assess(output_dir=str(tmp_path / "report"), **options)
  written = (tmp_path / "report" / "report.json").read_text()
  assert json.loads(written) == json.loads(json.dumps(report))
  assert str(tmp_path) not in written
  row = report["regression"]["attacks"][0]
  assert row["epsilon"] == EPSILON  # that of the training
  assert (row["steps"], row["restarts"]) == (2, 2)
  page = (tmp_path / "report" / "report.md").read_text().splitlines()
  rows = [
    line.strip("| ").split(" | ")[1:]
    for line in page
    if line.startswith(("| sampled z |", "| z = mu |"))
  ]
  clean, how = report["regression"]["clean"], ["clean"] * 2 + ["pgd-2 x 2, linf 0.1"] * 2
  scores = [clean, clean["deterministic"], *report["regression"]["attacks"]]
  for cells, name, of in zip(rows, how, scores, strict=True):
    assert cells == [name, *(f"{of[key]:.4g}" for key in ("rmse", "mae", "r2"))]
  card = urkle_tf.model_card(tmp_path / "regressor", tmp_path / "report").read_text()
  clean, attacked = (part["rmse"] for part in (report["regression"]["clean"], row))
  wanted = f"{clean:.4g} on 50 clean images; {attacked:.4g} under pgd-2 x 2, linf 0.1"
  assert f"Root mean square error of a number: {wanted}." in card
  assert "accuracy" not in card
  capsys.readouterr()
  again = {"output_dir": str(tmp_path / "report"), "html": True, **options}
  assert urkle_tf.assess(**again) == report
  assert "writing its page from the stored report" in capsys.readouterr().out
  html = (tmp_path / "report" / "report.html").read_text()
  for value in (clean, row["rmse"], report["regression"]["spread"]):
    assert f">{value:.4g}</dd>" in html

  # The same through the function behind `evaluate`, which takes more.
  whole = urkle_tf.assess(standing=True, corruptions="all", **options)
  assert whole["regression"] == report["regression"]
  assert "does not use --standing, --corruptions" in capsys.readouterr().out
  refuses("one of them", urkle_tf.assess, classifier="c", **options)

  source.target, source.class_names = None, ["a", "b"]
  refuses("labels of 'x' are classes, but a regressor needs numbers", urkle_tf.assess, **options)
  refuses("no folder", urkle_tf.assess, regressor=str(tmp_path / "nowhere"))


def test_what_is_not_finite_is_no_result(source):
  model, _, _ = linear(0.5, stochastic=False)
  model.head.get_layer("dense1").bias.assign([np.nan])
  context = Context(source, "linf", [EPSILON], model)
  refuses("NaN", regression.measure, context, attacks.FGSM(attacks.Linf(EPSILON)))
