"""The launcher of AutoAttack on MNIST: its commands, its page from reports, and its mistakes."""

import json

import pytest

from experiments import autoattack_mnist as script
from urkle_tf import errors
from urkle_tf.attacks import losses
from urkle_tf.evaluation import plans as planning

AT, URKLE = (("apgd_ce", "apgd_t", "fab_t", "square"), ("apgd_ce", "apgd_dlr", "square"))


def _report(modes, ensembles, accuracy, checks=()):
  """A report as `evaluate` writes it: each stage breaks one image of a hundred more."""
  clean = {"mode": modes[0], "accuracy": 0.99, "examples": 100}
  clean |= {mode: {"accuracy": 0.98} for mode in modes[1:]}
  rows, left = [], accuracy
  for stages in ensembles:
    for name in (*stages, "autoattack"):
      left -= 0.01 * (name != "autoattack")
      for mode in modes:
        part = {"name": name, "mode": mode, "accuracy": left - 0.005 * modes.index(mode)}
        part |= {"interval": [left - 0.02, left + 0.02], "examples": 100, "seconds": 30.0}
        rows.append({**part, "stages": list(stages)} if name == "autoattack" else part)
  return {"clean": clean, "attacks": rows, "checks": list(checks)}


@pytest.fixture
def reports():
  failed = [{"name": "noise", "passed": False}, {"name": "effort", "passed": True}]
  return {
    "at": _report(["deterministic"], [AT], 0.97, failed[1:]),
    "vae_urkle": _report(["sampled", "deterministic"], [URKLE, AT], 0.96, failed),
  }


def test_what_a_report_says(reports):
  (at,) = script.measured(reports["at"], "AT")
  assert at["stages"] == {"apgd_ce 0": 96, "apgd_t 0": 95, "fab_t 0": 94, "square 0": 93}
  assert (at["clean"], at["final"], at["interval"]) == (99, 93, [91, 95])
  assert at["seconds"] == 120  # four stages of half a minute
  served, mu = script.measured(reports["vae_urkle"], "VAE+Urkle")
  assert (served["mode"], mu["mode"]) == ("sampled", "deterministic")
  assert list(served["stages"])[2:4] == ["square 0", "apgd_ce 1"]
  assert (served["final"], mu["clean"], mu["final"]) == (89, 98, 88.5)
  text = script.page([at, served, mu], [])
  assert "Failed checks: VAE+Urkle: noise." in text
  assert "All checks for masked gradients passed." in script.page([at], [])
  assert "checks for masked gradients were left out" in script.page([{**at, "checks": {}}], [])


def test_what_was_reduced_is_said_and_given_to_the_attacks():
  at, urkle = (script.reproduce_mnist.find_row(name) for name in ("at", "vae_urkle"))
  assert script.attacks(at, script.PUBLISHED) == "autoattack"
  assert script.attacks(urkle, script.PUBLISHED) == "autoattack(version=rand),autoattack"
  assert "published" in script.reductions(script.PUBLISHED)
  less = {"steps": 50, "targets": 3, "queries": 1000}
  text = script.attacks(urkle, less)
  assert text == (
    "autoattack(version=rand, steps=50, queries=1000),autoattack(steps=50, targets=3, queries=1000)"
  )
  found = planning.read(text, "linf", [0.1], (28, 28, 1), classes=10)
  assert [(plan.name, plan.steps, plan.targets) for plan in found] == [
    ("apgd_ce", 50, 0),
    ("apgd_dlr", 50, 0),
    ("square", 1000, 0),
    ("apgd_ce", 50, 0),
    ("apgd_t", 50, 3),
    ("fab_t", 50, 3),
    ("square", 1000, 0),
  ]
  assert found[4].loss is losses.targeted_dlr
  said = script.reductions(less)
  for words in ("50 gradient", "3 wrong classes", "1,000 queries", "in place of 5,000"):
    assert words in said


def test_finished_reports_become_a_page(reports, tmp_path, monkeypatch, capsys):
  """Nothing is run again: the folders say that the same command ran to its end."""
  for name, folder in [("at", "at-0"), ("vae_urkle", "vae_urkle-0-head")]:
    (tmp_path / folder / "classifier").mkdir(parents=True)
    (tmp_path / f"{name}-0-autoattack").mkdir()
    (tmp_path / f"{name}-0-autoattack" / "report.json").write_text(json.dumps(reports[name]))
  ran = []
  monkeypatch.setattr(script.jobs, "run_stages", ran.extend)
  page, figures = tmp_path / "page.md", tmp_path / "page.json"
  data_dir = str(tmp_path / "data")
  script.run(
    [f"--work={tmp_path}", f"--data_dir={data_dir}", f"--out_md={page}", f"--out_json={figures}"]
  )
  assert [stage.folder for stage in ran] == [
    f"{tmp_path}/at-0-autoattack",
    f"{tmp_path}/vae_urkle-0-autoattack",
  ]
  assert f"--classifier={tmp_path}/vae_urkle-0-head/classifier" in ran[1].arguments
  assert f"--data_dir={data_dir}" in ran[0].arguments
  assert "version=rand" in ran[1].text
  assert "version=rand" not in ran[0].text
  text = page.read_text()
  assert str(tmp_path) not in text  # no path of this machine
  assert "--classifier=runs/mnist/at-0/classifier" in text
  found = json.loads(figures.read_text())
  assert [row["final"] for row in found["rows"]] == [93.0, 89.0, 88.5]
  assert set(found["budget"]) == {"steps", "targets", "queries"}
  assert "| AT, z = mu |" in capsys.readouterr().out


def test_what_is_not_trained_is_told(tmp_path):
  with pytest.raises(errors.UserError, match="at-0/classifier: train it first") as caught:
    script.run([f"--work={tmp_path}"])
  assert "--rows=at" in str(caught.value)
  with pytest.raises(errors.UserError, match="row"):
    script.run([f"--work={tmp_path}", "--rows=vaeurkle"])
