"""The pages of docs/results are what their scripts make of the JSON beside them."""

import json

import pytest
from cases import refuses

from experiments import (
  autoattack_mnist,
  certificates,
  compare_page,
  jobs,
  mnist_page,
  pages,
  reproduce_mnist,
  teacher_pieces,
  transfer,
)
from tools import soak, speed_page


def _mnist(found, page):
  blocks = {"table": mnist_page.table(found), "bound": mnist_page.bound_table(found)}
  commands = reproduce_mnist.commands(found, " --data_dir=DATA_DIR")
  return pages.page(page, {**blocks, "commands": commands})


def _small(found, page):
  blocks = {"table": compare_page.table(found), "paired": compare_page.paired(found)}
  return pages.page(page, blocks)


def _autoattack(found, page):
  return autoattack_mnist.page(found["rows"], autoattack_mnist.shown(autoattack_mnist.ROWS))


MADE = {
  "cifar10_small": _small,
  "mnist": _mnist,
  "mnist_autoattack": _autoattack,
  "mnist_transfer": lambda found, page: transfer.page(found, page.splitlines()[-1].strip()),
  "speed": lambda found, page: speed_page.page(found),
}


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_what_its_json_gives(name):
  page = (pages.RESULTS / f"{name}.md").read_text(encoding="utf-8")
  assert MADE[name](pages.read(pages.RESULTS / f"{name}.json"), page) == page


def test_the_page_of_the_soak_is_what_its_json_gives():
  found, page = pages.read(soak.RESULTS), soak.PAGE.read_text(encoding="utf-8")
  assert soak.complaints(found) == []
  assert pages.page(page, soak.blocks(found)) == page


def test_what_people_wrote_on_a_page_stays():
  text = "Above.\n<!-- table -->\nold\n<!-- /table -->\nBelow: \\1.\n"
  assert pages.page(text, {"table": "\\2"}) == text.replace("old", "\\2")
  words = "must hold the lines <!-- table --> and <!-- /table -->"
  refuses(words, pages.page, text.replace("/", ""), {"table": ""})


SMOOTHED = {"certified": [{"radius": 0.25, "accuracy": 0.9}], "abstained": 0.01}
AT = {"system": "AT", "dataset": "mnist", "smoothing": [{"smoothing": SMOOTHED}]}
PIECES = {"10 epochs": {"recipe": {"0": 80.0}}, "2 epochs": {"crop": {"1": 60.0}}}


@pytest.mark.parametrize(
  "script, added, line",
  [
    (certificates, {"mnist_at": AT}, "| AT | 90.0 | 1.0 |"),
    (teacher_pieces, PIECES, "| crops from 0.08 instead of 0.2 | 60.00 |"),
  ],
)
def test_what_another_process_adds_meanwhile_stays(script, added, line, tmp_path, monkeypatch):
  def meanwhile(rows, publish, page):
    page.with_suffix(".json").write_text(json.dumps(added))
    publish()
    assert pages.read(page.with_suffix(".json")) == added
    assert line in page.read_text()

  monkeypatch.setattr(jobs, "run_rows", meanwhile)
  script.run(["--dataset=digits", f"--work={tmp_path}"])


def test_merged_results_keep_those_of_other_seeds_and_rows(tmp_path):
  file = tmp_path / "kept.json"
  pages.write(file, {"a": {"at": {"0": 1.0, "1": 2.0}, "ae": {}}})
  found = pages.merge(file, {"a": {"at": {"1": 3.0}}})
  assert found == pages.read(file) == {"a": {"at": {"0": 1.0, "1": 3.0}, "ae": {}}}
