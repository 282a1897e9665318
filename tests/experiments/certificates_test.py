"""The page of certificates: a small whole run."""

import json

import commands
import pytest

from experiments import certificates as script
from experiments import jobs, pages


def smoothed(system, accuracies, abstained=0.01):
  """A row of the page, of one seed, from {radius: accuracy}."""
  certified = [{"radius": r, "accuracy": share} for r, share in accuracies.items()]
  report = {"smoothing": {"certified": certified, "abstained": abstained}}
  return {"system": system, "dataset": "mnist", "smoothing": [report]}


def test_each_accuracy_is_in_the_column_of_its_radius():
  """Rows of other noise are certified at other radii."""
  found = {"mnist_simclr": smoothed("SimCLR", {0.0: 0.9, 0.25: 0.8})}
  found["mnist_at"] = smoothed("AT", {0.0: 0.7, 0.5: 0.6}, abstained=0.02)
  head, _, *lines = script.smoothing_table(found, "mnist").splitlines()
  assert head == "| system | l2 0 | l2 0.25 | l2 0.5 | abstains |"
  assert lines == ["| SimCLR | 90.0 | 80.0 |  | 1.0 |", "| AT | 70.0 |  | 60.0 | 2.0 |"]


def test_what_is_made_of_an_earlier_run_depends_on_its_weights(tmp_path, monkeypatch):
  monkeypatch.setattr(jobs, "run_python", lambda words: 0)
  teacher, ran = tmp_path / "teacher", []
  for fingerprint in ("a", "a", "b"):
    pages.write(teacher / "encoder" / "metadata.json", {"fingerprint": fingerprint})
    words = ["--dataset=digits", f"--work={tmp_path}", "--rows=mnist_simclr,mnist_distil"]
    words += ["--trained", f"mnist_simclr={teacher}"]
    rows = []
    keep = lambda found, publish, page: rows.extend(map(jobs.run_stages, found))  # noqa: E731, B023
    with monkeypatch.context() as patch:
      patch.setattr(jobs, "run_rows", keep)
      script.run(words)
    ran.append(rows)
  assert ran == [[True, True], [False, False], [True, True]]  # the head, and the student


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_small_whole_run(tmp_path, monkeypatch):
  words = ["--rows=kl_certified,mnist_simclr,mnist_distil", "--samples=200", "--copies=1"]
  arguments = commands.small(tmp_path, *words, "--examples=6", evaluate="--examples=6")
  kept = {"mnist_at": smoothed("AT", {0.25 * step: 0.9 for step in range(5)})}
  (tmp_path / "certificates.json").write_text(json.dumps(kept))
  page = commands.run_experiment(script.run, arguments, tmp_path / "certificates.md", monkeypatch)
  assert "| VAE+Urkle, certified at 0.03 | 0.1 |" in page
  assert page.count("| Distil+Urkle |") == 1
  assert "| AT | 90.0 | 90.0 | 90.0 | 90.0 | 90.0 | 1.0 |" in page  # measured elsewhere
