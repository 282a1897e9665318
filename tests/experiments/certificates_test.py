"""The page of certificates: a small whole run."""

import json

import commands
import pytest

from experiments import certificates as script


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_small_whole_run(tmp_path, monkeypatch):
  arguments = [
    *("--dataset=digits", f"--work={tmp_path}", "--rows=kl_certified,mnist_simclr,mnist_distil"),
    *("--samples=200", "--examples=6", "--copies=1"),
    "--extra_train=--epochs=1 --warmup_epochs=0.1 --examples=300 --attack_steps=1 "
    "--encoder=convnet(width=4,layers=2)",
    "--extra_finetune=--epochs=3 --examples=300",
    "--extra_evaluate=--attack_steps=1",
  ]
  smoothing = {"certified": [{"radius": r, "accuracy": 0.9} for r in range(5)], "abstained": 0.01}
  kept = {"mnist_at": {"system": "AT", "dataset": "mnist", "smoothing": [{"smoothing": smoothing}]}}
  (tmp_path / "certificates.json").write_text(json.dumps(kept))
  page = commands.run_experiment(script.run, arguments, tmp_path / "certificates.md", monkeypatch)
  assert "| VAE+Urkle, certified at 0.03 | 0.1 |" in page
  assert page.count("| Distil+Urkle |") == 1
  assert "| AT | 90.0 | 90.0 | 90.0 | 90.0 | 90.0 | 1.0 |" in page  # measured elsewhere
