"""Two classifiers on the same images."""

import json
import pathlib
import types

import numpy as np
import pytest
from cases import refuses
from scipy import stats
from small_models import array_source

import urkle_tf
from urkle_tf.evaluation import paired
from urkle_tf.evaluation.measurements.against import Against
from urkle_tf.evaluation.measurements.attacks import Attacks

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


def assessed(folder, **more):
  options = {"checks": False, "representation_examples": 0, **DATA, **more}
  return urkle_tf.assess(str(folder), **options)


@pytest.fixture(scope="module")
def earlier(exported, tmp_path_factory):
  """The folder of a report on "sampled"."""
  folder = str(tmp_path_factory.mktemp("against") / "report")
  assessed(exported / "sampled", output_dir=folder, save_images=True)
  return folder


@pytest.mark.full
def test_rows_are_those_that_both_have(exported, earlier, tmp_path):
  options = {"measure": f"against(report='{earlier}')", "attacks": "fgsm,pgd"}
  report = assessed(exported / "other", output_dir=str(tmp_path), **options)
  config = report["config"]  # without folders of this machine
  assert (config["measure"], config["against"]) == ("against(report=report)", "report")
  earlier = json.loads(pathlib.Path(earlier, "report.json").read_text())
  rows = {(row["name"], row["mode"]): row for row in report["against"]["rows"]}
  assert {name for name, _ in rows} == {"clean", "fgsm"}
  mode = report["clean"]["mode"]
  now, before = report["attacks"][0], earlier["attacks"][0]
  assert rows["fgsm", mode]["difference"] == pytest.approx(now["accuracy"] - before["accuracy"])
  clean = report["clean"]["accuracy"] - earlier["clean"]["accuracy"]
  assert rows["clean", mode]["difference"] == pytest.approx(clean)
  assert "## Against report" in (tmp_path / "report.md").read_text()


def compared(ours, theirs):
  """The rows of a comparison of two reports, by their rows of attacks, on four images."""
  labels = np.arange(4)
  right = lambda rows: {f"right_{i}": labels > i for i in range(len(rows))}  # noqa: E731
  prepared = {"against": ({"attacks": theirs}, {"labels": labels, **right(theirs)})}
  fields = {"prepared": prepared, "arrays": right(ours), "report": {"attacks": ours}}
  context = types.SimpleNamespace(labels=labels, modes=(), **fields)
  return Against(report="other").measure(context)["rows"]


ROW = {"name": "apgd_t", "norm": "linf", "epsilon": 0.1, "mode": "sampled", "own_accuracy": 0.5}
ROW |= {"steps": 20, "restarts": 1, "step_size": 0.01, "targets": 9, "eot": 20, "noise": "fresh"}


@pytest.mark.parametrize(
  "other",
  [
    *({"step_size": 0.02}, {"targets": 3}, {"ensemble": "autoattack"}, {"eot": 1}),
    *({"noise": "fixed"}, {"options": "start=0.5"}),
  ],
  ids=str,
)
def test_two_rows_of_one_attack_are_not_mixed_up(other):
  """A report against itself: every row is compared with itself."""
  rows = compared([ROW, {**ROW, **other}], [ROW, {**ROW, **other}])
  assert [found["difference"] for found in rows] == [0, 0]
  assert compared([ROW], [{**ROW, **other}]) == []


def test_printed_lines_tell_rows_apart():
  """They named neither the radius nor the attack's options."""
  more = {"epsilon": 0.2}, {"options": "start=0.5"}
  rows = [ROW, *({**ROW, **other} for other in more)]
  part = {"report": "other", "rows": compared(rows, rows)}
  lines = [line.split(",")[0] for line in Against(report="other").lines(part)]
  assert lines == ["apgd_t 0.1", "apgd_t 0.2", "apgd_t(start=0.5) 0.1"]
  lines = Attacks().lines([{**row, "accuracy": 0.5} for row in rows])
  assert len(set(lines)) == 3


def test_what_earlier_attacks_found_counts_in_both_or_in_none():
  """Without own_accuracy a row counts the rows before it; a stage those of its ensemble."""
  first, standing = {**ROW, "name": "fgsm"}, {k: v for k, v in ROW.items() if k != "own_accuracy"}
  names = lambda ours, theirs: [row["name"] for row in compared(ours, theirs)]  # noqa: E731
  assert names([first, standing], [first, ROW]) == ["fgsm"]
  assert names([first, standing], [first, standing]) == ["fgsm", "apgd_t"]
  other = {**first, "steps": 5}
  assert names([first, standing], [other, standing]) == []
  assert names([{**first, "epsilon": 0.2}, standing], [standing]) == ["apgd_t"]
  stages = [{**ROW, "name": "apgd_ce", "ensemble": "autoattack"}]
  stages += [{**standing, "ensemble": "autoattack"}, {**standing, "name": "autoattack"}]
  assert names([first, *stages], stages) == ["apgd_ce", "apgd_t", "autoattack"]
  stages[0] = {**standing, "name": "apgd_ce", "ensemble": "autoattack"}  # after others that count
  assert names([first, *stages], [first, *stages]) == ["fgsm", "apgd_ce", "apgd_t", "autoattack"]
  assert names([first, *stages], [other, *stages]) == []


@pytest.mark.full
def test_rows_that_count_other_attacks_are_compared_with_their_like(exported, tmp_path):
  """After PGD, a standing row of FGSM or of an ensemble counts what PGD found too."""
  plain, first = str(tmp_path / "plain"), str(tmp_path / "first")
  options = {"attacks": "pgd(steps=2),fgsm,autoattack(steps=2)", "modes": "deterministic"}
  assessed(exported / "other", output_dir=plain, save_images=True, **options)
  standing = {**options, "standing": True, "against": plain}
  found = assessed(exported / "other", output_dir=first, save_images=True, **standing)
  assert [row["name"] for row in found["against"]["rows"]] == ["clean", "pgd"]
  standing["against"] = first
  again = assessed(exported / "other", output_dir=str(tmp_path / "2"), **standing)
  names = [row["name"] for row in again["attacks"]]
  assert [row["name"] for row in again["against"]["rows"]] == ["clean", *names]


TWO = array_source(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))


@pytest.mark.parametrize(
  ("labels", "config", "message"),
  [
    ([1, 0], {}, "has other labels"),
    ([0, 1], {"dataset": "folder:grey"}, "a report on folder:grey, but this evaluation is on grey"),
  ],
)
def test_a_report_on_other_images_is_refused_before_any_attack(tmp_path, labels, config, message):
  np.savez(tmp_path / "images.npz", labels=labels, clean_deterministic=labels)
  (tmp_path / "report.json").write_text(json.dumps({"config": config}))
  context = types.SimpleNamespace(source=TWO, modes=("deterministic",))
  refuses(message, Against(report=str(tmp_path)).prepare, context)


def test_no_report_in_the_home_of_an_unknown_user():
  refuses("no report.json in '~no-such-user", Against(report="~no-such-user/x").prepare, None)


@pytest.mark.parametrize(
  "damaged, content",
  [
    ("report.json", b"PK and nothing more"),
    ("images.npz", b"PK and nothing more"),
    ("report.json", b"[]"),
    ("report.json", b'{"attacks": [{}]}'),  # of which images.npz knows nothing
  ],
)
def test_a_damaged_report_ends_in_one_line(tmp_path, damaged, content):
  np.savez(tmp_path / "images.npz", labels=[0, 1])
  (tmp_path / "report.json").write_text("{}")
  (tmp_path / damaged).write_bytes(content)
  words = "cannot read the report in & ; evaluate that model again"
  refuses(words, Against(report=str(tmp_path)).prepare, None)


@pytest.mark.parametrize(
  ("theirs", "ours", "said"),
  [
    (["sampled", "deterministic"], ["deterministic"], "on sampled and deterministic z & on deter"),
    (["deterministic"], ["sampled", "deterministic"], "on deterministic z & on sampled and deter"),
    (["deterministic"], ["sampled"], "a report on deterministic z & this evaluation on sampled z"),
  ],
)
def test_reports_on_other_readings_of_z_are_refused(tmp_path, theirs, ours, said):
  """A row of one reading counts the other's adversaries too: a classifier differed from itself."""
  np.savez(tmp_path / "images.npz", labels=[0, 1], **{f"clean_{mode}": [0, 1] for mode in theirs})
  (tmp_path / "report.json").write_text("{}")
  context = types.SimpleNamespace(source=TWO, modes=tuple(ours))
  refuses(f"{said} & give both the same --modes", Against(report=str(tmp_path)).prepare, context)
  context.modes = tuple(theirs)
  assert set(Against(report=str(tmp_path)).prepare(context)[1]) >= {"labels", f"clean_{theirs[0]}"}


@pytest.mark.full
def test_what_cannot_be_compared_ends_in_one_line(exported, earlier, tmp_path):
  assessed(exported / "sampled", output_dir=str(tmp_path / "bare"))
  for options, words in (
    ({"against": "nowhere"}, "no report.json in 'nowhere'"),
    ({"against": str(tmp_path / "bare")}, "--save_images"),
    ({"against": earlier, "examples": 30}, "on 60 labelled images, but this evaluation has 30"),
  ):
    refuses(words, assessed, exported / "other", **options)
