"""The pages of docs/results are what their scripts make of the JSON beside them."""

import pytest
from cases import refused

from experiments import (
  autoattack_mnist,
  compare_page,
  jobs,
  mnist_page,
  pages,
  reproduce_mnist,
  transfer,
)
from tools import soak, speed_page

RESULTS = jobs.ROOT / "docs" / "results"


def _mnist(found, page):
  blocks = {"table": mnist_page.table(found), "bound": mnist_page.bound_table(found)}
  commands = reproduce_mnist.commands(found, " --data_dir=DATA_DIR")
  return pages.page(page, {**blocks, "commands": commands})


def _small(found, page):
  return pages.page(
    page, {"table": compare_page.table(found), "paired": compare_page.paired(found)}
  )


MADE = {
  "cifar10_small": _small,
  "mnist": _mnist,
  "mnist_autoattack": lambda found, page: autoattack_mnist.page(
    found["rows"], autoattack_mnist.shown(autoattack_mnist.ROWS)
  ),
  "mnist_transfer": lambda found, page: transfer.page(found, page.splitlines()[-1].strip()),
  "speed": lambda found, page: speed_page.page(found),
}


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_what_its_json_gives(name):
  page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
  assert MADE[name](pages.read(RESULTS / f"{name}.json"), page) == page


def test_the_page_of_the_soak_is_what_its_json_gives():
  found, page = pages.read(soak.RESULTS), soak.PAGE.read_text(encoding="utf-8")
  assert soak.complaints(found) == []
  assert pages.page(page, soak.blocks(found)) == page


def test_what_people_wrote_on_a_page_stays():
  text = "Above.\n<!-- table -->\nold\n<!-- /table -->\nBelow: \\1.\n"
  assert pages.page(text, {"table": "\\2"}) == text.replace("old", "\\2")
  with refused("must hold the lines <!-- table --> and <!-- /table -->"):
    pages.page(text.replace("/", ""), {"table": ""})
