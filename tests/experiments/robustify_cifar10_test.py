"""The launcher of networks made robust: a small whole run, and what it keeps."""

import sys

import cases
import pytest

from experiments import pages
from experiments import robustify_cifar10 as script


def _run(monkeypatch, work, *words):
  monkeypatch.setattr(sys, "argv", ["script.py", f"--work={work}", "--networks", "ViT", *words])
  script.main()


def test_networks_of_other_epochs_are_not_taken_for_those_asked_for(tmp_path, monkeypatch):
  pages.write(tmp_path / "ViT-asitwas.json", {"minutes": 0.0})  # finished: nothing is run
  for _ in range(2):
    _run(monkeypatch, tmp_path, "--epochs=2", "--settings")
  words = "has networks of --epochs=2"
  cases.refuses(words, _run, monkeypatch, tmp_path, "--epochs=3", "--settings")
  cases.refuses("at least 1", _run, monkeypatch, tmp_path / "new", "--epochs=0", "--settings")


@cases.needs_data
@pytest.mark.full
def test_a_resumed_run_claims_no_minutes(tmp_path, monkeypatch):
  small = {"LEARN": "train[:256]", "CHECK": "test[:20]", "TEST": "test[20:40]"}
  small["ROBUSTIFY"] = {**script.ROBUSTIFY, "split": "train[:256]"}
  small["NETWORKS"] = {"ViT": lambda: script.vit(width=8, depth=1, heads=2)}
  for name, value in small.items():
    monkeypatch.setattr(script, name, value)
  name = "4/255, rho=0.2"
  words = ["--epochs=1", f"--data_dir={cases.DATA_DIR}", f"--page={tmp_path / 'page.md'}"]
  words += ["--settings", name]
  _run(monkeypatch, tmp_path, *words)
  kept = tmp_path / f"{script.run_of('ViT', name)}.json"
  found = pages.read(kept)
  assert found["minutes"] > 0
  kept.unlink()  # as if it was interrupted when it measured
  _run(monkeypatch, tmp_path, *words)
  assert pages.read(kept) == {**found, "minutes": None}
  assert f"| {found['test']['drift']:.2f} |  |\n" in (tmp_path / "page.md").read_text()
