"""The launcher of AutoAttack on MNIST: what it takes for finished."""

from experiments import autoattack_mnist as script
from experiments import jobs, pages


def test_a_classifier_that_was_trained_again_is_attacked_again(tmp_path, monkeypatch):
  report, started = tmp_path / "at-0-autoattack" / "report.json", []
  clean = {"mode": "deterministic", "accuracy": 0.99}
  attack = {"mode": "deterministic", "name": "apgd_ce", "accuracy": 0.9, "interval": [0.8, 0.95]}
  attack |= {"examples": 100, "seconds": 60.0}

  def run_python(words):
    started.append(words)
    pages.write(report, {"clean": clean, "attacks": [attack]})
    return 0

  monkeypatch.setattr(jobs, "run_python", run_python)
  for fingerprint, times in (("a", 1), ("a", 1), ("b", 2)):
    pages.write(tmp_path / "at-0/classifier/metadata.json", {"fingerprint": fingerprint})
    script.run(["--rows=at", f"--work={tmp_path}", "--dataset=digits"])
    assert len(started) == times
  row = "| AT, z = mu | 99.0 | 90.0 | 90.0 (80.0 to 95.0) | 1.0 |"
  assert row in (tmp_path / "mnist_autoattack.md").read_text()
