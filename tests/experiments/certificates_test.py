"""The page of certificates: its commands, its tables from reports, and a small whole run."""

import json

import commands
import pytest

from experiments import certificates as script
from urkle_tf import errors


def kl_report(scale, largest):
  """A report whose certified KL is scale epsilon^2, and PGD's half of it."""
  rows = [
    {"epsilon": e, "kl": scale * e**2, "found": scale * e**2 / 2, "value": 1.0, "vacuous": False}
    for e in script.EPSILONS
  ]
  part = {"rows": rows, "examples": 500, "M": 5.0, "clean_loss": 0.1, "largest_epsilon": largest}
  return {"clean": {"accuracy": 0.97}, "attacks": [{"accuracy": 0.9}], "certificate": part}


def smoothing_report(*accuracies):
  rows = [{"radius": 0.25 * k, "accuracy": a} for k, a in enumerate(accuracies)]
  return {"smoothing": {"certified": rows, "abstained": 0.05}}


@pytest.fixture
def work(tmp_path):
  def write(folder, report):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "report.json").write_text(json.dumps(report))

  for seed, scale in enumerate((1000, 3000)):
    write(f"kl_certified-{seed}-interval-report", kl_report(2 * scale, 0.01))
    write(f"kl_certified-{seed}-linear-report", kl_report(scale, 0.02 + 0.02 * seed))
  write("kl_pgd-0-interval-report", kl_report(1e6, 1e-4))  # the other is not there yet
  write("mnist_at-0-smoothing-report", smoothing_report(0.9, 0.8, 0.7))
  return tmp_path


def test_reports_become_a_page(work):
  given = script._parsed([f"--work={work}"])
  found = script.collect(script.jobs.read(given, "certificates", script.ROWS, "mnist"))
  assert list(found) == ["kl_certified", "mnist_at"]
  page = script.page(found, given, " --data_dir=DATA_DIR")
  # Of two seeds: 10 and 30 nats at epsilon 0.1 by lines; Student's t of one degree is 12.706.
  assert "| 20 ± 14.1 (-107 to 147) |" in page
  assert "| 0.01 ± 0 (0.01 to 0.01) | 0.03 ± 0.014 (-0.097 to 0.16) |" in page
  assert "| AT | 90.0 | 80.0 | 70.0 | 5.0 |" in page
  assert "CIFAR-10 (JPEG):\n\nNot measured yet." in page
  assert json.loads(json.dumps(found))["mnist_at"]["smoothing"]


def test_the_commands_of_rows(work):
  (work / "teacher" / "encoder").mkdir(parents=True)
  given = script._parsed([f"--work={work}", "--trained", f"mnist_simclr={work}/teacher"])
  asked = script.jobs.read(given, "certificates", script.ROWS, "mnist")
  rows = {row.name: row for row in script.ROWS}
  texts = [stage.text for stage in script.stages(rows["mnist_distil"], 1, asked, given)]
  assert f"distil(teacher={work}/teacher/encoder, start=true)" in texts[0]
  assert "--noise=0.25" in texts[1]
  assert "--certify='smoothing(noise=0.25" in texts[2]
  first, *_ = script.stages(rows["mnist_simclr"], 0, asked, given)
  assert f"--encoder={work}/teacher/encoder" in first.text  # nothing is trained
  first, *_ = script.stages(rows["cifar10_distil"], 1, asked, given)
  assert f"teacher={work}/cifar10_simclr-1/encoder" in first.text
  with pytest.raises(errors.UserError, match="there is no encoder in it"):
    script._parsed(["--trained", f"mnist_simclr={work}/nowhere"])


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_small_whole_run(tmp_path, monkeypatch, capsys):
  arguments = [
    *("--dataset=digits", f"--work={tmp_path}", "--rows=kl_certified,mnist_simclr,mnist_distil"),
    *("--samples=200", "--examples=6", "--copies=1"),
    "--extra_train=--epochs=1 --warmup_epochs=0.1 --examples=300 --attack_steps=1 "
    "--encoder=convnet(width=4,layers=2)",
    "--extra_finetune=--epochs=3 --examples=300",
    "--extra_evaluate=--attack_steps=1",
  ]
  with monkeypatch.context() as patch:
    patch.setattr(script.jobs.subprocess, "run", commands.here)
    script.run(arguments)
  page = (tmp_path / "certificates.md").read_text()
  assert "| VAE+Urkle, certified at 0.03 | 0.1 |" in page
  assert page.count("| Distil+Urkle |") == 1
  monkeypatch.setattr(script.jobs.subprocess, "run", None)
  capsys.readouterr()
  script.run(arguments)
  assert capsys.readouterr().out.count("finished: ") == 10
