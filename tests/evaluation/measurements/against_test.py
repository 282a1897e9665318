"""Two classifiers on the same images."""

import numpy as np
import pytest
from scipy import stats
from small_models import RUN

import urkle_tf
from urkle_tf import errors
from urkle_tf.evaluation import paired

DATA = {"dataset": "digits", "split": "test", "examples": 60, "attacks": "fgsm"}


def test_a_comparison_by_hand():
  """12 and 2 of 100 images are right here and there alone: the difference is 0.1."""
  ours, theirs = np.zeros(100, bool), np.zeros(100, bool)
  ours[:52], theirs[12:54] = True, True
  found = paired.compare(ours, theirs)
  assert (found["only_here"], found["only_there"]) == (12, 2)
  assert found["difference"] == pytest.approx(0.1)
  # Both tails of 14 throws with at most 2 heads: 2 (1 + 14 + 91) / 2^14.
  assert found["p"] == pytest.approx(212 / 2**14)
  assert found["shown"]
  # The variance of the 100 differences +1, -1 and 0, whose mean is 0.1.
  values = ours.astype(float) - theirs
  half = stats.norm.ppf(0.975) * np.std(values) / 10
  np.testing.assert_allclose(found["interval"], [0.1 - half, 0.1 + half])
  assert not paired.compare(ours, ours)["shown"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two classifiers: heads of 1 and of 20 epochs on one encoder; and the report of the first."""
  folder = tmp_path_factory.mktemp("against")
  urkle_tf.pretrain(str(folder / "run"), dataset="digits", **RUN)
  head = {"dataset": "digits", "split": "train[:600]", "weight_decay": 1e-4}
  for name, epochs in (("short", 1), ("long", 20)):
    urkle_tf.adapt(str(folder / "run" / "encoder"), str(folder / name), epochs=epochs, **head)
  assessed(folder, "short", output_dir=str(folder / "report"), save_images=True)
  return folder


def assessed(folder, name, **more):
  options = {"checks": False, "representation_examples": 0, **DATA, **more}
  return urkle_tf.assess(str(folder / name / "classifier"), **options)


def test_rows_are_those_that_both_have(folder, tmp_path):
  earlier = assessed(folder, "short")
  report = assessed(
    folder, "long", against=str(folder / "report"), output_dir=str(tmp_path), attacks="fgsm,pgd"
  )
  rows = {(row["name"], row["mode"]): row for row in report["against"]["rows"]}
  assert {name for name, _ in rows} == {"clean", "fgsm"}
  mode = report["clean"]["mode"]
  now, before = report["attacks"][0], earlier["attacks"][0]
  assert rows["fgsm", mode]["difference"] == pytest.approx(now["accuracy"] - before["accuracy"])
  clean = report["clean"]["accuracy"] - earlier["clean"]["accuracy"]
  assert rows["clean", mode]["difference"] == pytest.approx(clean)
  assert "## Against report" in (tmp_path / "report.md").read_text()


def test_what_cannot_be_compared_ends_in_one_line(folder, tmp_path):
  with pytest.raises(errors.UserError, match=r"no report\.json in 'nowhere'"):
    assessed(folder, "long", against="nowhere")
  assessed(folder, "short", output_dir=str(tmp_path / "bare"))
  with pytest.raises(errors.UserError, match="--save_images"):
    assessed(folder, "long", against=str(tmp_path / "bare"))
  with pytest.raises(errors.UserError, match="of 60 labelled images, and this evaluation of 30"):
    assessed(folder, "long", against=str(folder / "report"), examples=30)
