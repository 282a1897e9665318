"""AutoAttack on MNIST: its commands, its page from reports, and what is not trained yet."""

import json

import pytest

from experiments import autoattack_mnist as script
from urkle_tf import errors

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
  assert at["stages"] == {"apgd_ce": 96, "apgd_t": 95, "fab_t": 94, "square": 93}
  assert (at["clean"], at["final"], at["interval"]) == (99, 93, [91, 95])
  assert at["seconds"] == 120  # four stages of half a minute
  served, mu = script.measured(reports["vae_urkle"], "VAE+Urkle")
  assert (served["mode"], mu["mode"]) == ("sampled", "deterministic")
  assert list(served["stages"])[2:4] == ["square (rand)", "apgd_ce"]
  assert (served["final"], mu["clean"], mu["final"]) == (89, 98, 88.5)
  text = script.page([at, served, mu], [])
  assert "Failed checks: VAE+Urkle: noise." in text
  assert "All checks for masked gradients passed." in script.page([at], [])
  assert "checks for masked gradients were left out" in script.page([{**at, "checks": {}}], [])


def test_finished_reports_become_a_page(reports, tmp_path, monkeypatch, capsys):
  """Nothing is run again: the folders say that the same command ran to its end."""
  page, figures = tmp_path / "page.md", tmp_path / "page.json"
  data = f"--data_dir={tmp_path}"
  arguments = [f"--work={tmp_path}", data, f"--out_md={page}", f"--out_json={figures}"]
  with pytest.raises(errors.UserError, match=r"at-0/classifier: train it first.* --rows=at"):
    script.run(arguments)
  for name, folder in [("at", "at-0"), ("vae_urkle", "vae_urkle-0-head")]:
    (tmp_path / folder / "classifier").mkdir(parents=True)
    (tmp_path / f"{name}-0-autoattack").mkdir()
    (tmp_path / f"{name}-0-autoattack" / "report.json").write_text(json.dumps(reports[name]))
  ran = []
  monkeypatch.setattr(script.jobs, "run_stages", ran.extend)
  script.run(arguments)
  at, urkle = (stage.words for stage in ran)
  assert at[-1] == f"--output_dir={tmp_path}/at-0-autoattack"
  assert {data, "--attacks=autoattack(targets=5, queries=1000)"} <= set(at)
  assert {f"--classifier={tmp_path}/vae_urkle-0-head/classifier", "--eot=10"} <= set(urkle)
  assert "version=rand" in ran[1].text
  text = page.read_text()
  assert str(tmp_path) not in text  # no path of this machine
  assert "--classifier=runs/mnist/at-0/classifier" in text
  found = json.loads(figures.read_text())
  assert [row["final"] for row in found["rows"]] == [93.0, 89.0, 88.5]
  assert "| AT, z = mu |" in capsys.readouterr().out
