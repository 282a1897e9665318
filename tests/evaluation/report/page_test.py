"""The report as a page: whole in one file, with the report's figures."""

import base64
import html.parser
import re

import numpy as np
import pytest

from urkle_tf.evaluation import report
from urkle_tf.evaluation.report import pictures

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}
NOTE = 'reads "a <b> & c" <script>alert(1)</script>'


def scores(rng):
  accuracy, low, high = np.sort(rng.uniform(size=3))[[1, 0, 2]]
  count = rng.integers(1, 9, size=15)
  return {
    "accuracy": accuracy,
    "interval": [low, high],
    **{name: rng.uniform() for name in ("nll", "ece", "brier")},
    "reliability": {
      "count": count.tolist(),
      "confidence": rng.uniform(size=15).tolist(),
      "accuracy": rng.uniform(size=15).tolist(),
    },
  }


def served(rng):
  return {
    "served_accuracy": rng.uniform(),
    "served_interval": [0.1, 0.9],
    "served_samples": 20,
    "accuracy_all_draws": rng.uniform(),
    "interval_all_draws": [0.1, 0.9],
    "draws": 10,
  }


@pytest.fixture(scope="module")
def measured():
  """A report with every part there is, of figures that are all different."""
  rng = np.random.default_rng(0)
  rows = [
    {
      "name": name,
      "norm": "linf",
      "epsilon": epsilon,
      "mode": mode,
      "steps": steps,
      "restarts": 2,
      "eot": 20,
      "loss": "cross_entropy",
      **scores(rng),
      **({"own_accuracy": 0.5, "own_interval": [0.4, 0.6]} if name == "pgd" else {}),
      **(served(rng) if mode == "sampled" else {}),
    }
    for name, steps in (("pgd", 20), ("fgsm", 1))
    for epsilon in (4 / 255, 0.1)
    for mode in ("sampled", "deterministic")
  ]
  types = ["fog", "glass_blur"]
  by_type = {
    name: {**scores(rng), "severities": {s: scores(rng) for s in ("1", "5")}} for name in types
  }
  representation = "kl_mean kl_max kl_mean_part sigma sigma_min sigma_max loc_std snr drift"
  bound = "clean_loss regulariser regulariser_tight value value_tight measured_adversarial_loss M"
  return {
    "clean": {
      **{"mode": "sampled", "examples": 1000, **scores(rng), **served(rng)},
      "deterministic": scores(rng),
    },
    "attacks": rows,
    "checks": [
      {"name": "gradients", "passed": True, "detail": "0.0% < 10% of the images"},
      {"name": "effort", "passed": False, "detail": NOTE},
    ],
    "corruptions": {
      **scores(rng),
      "mean": rng.uniform(),
      "mean_corruption_error": 0.3,
      "mode": "sampled",
      "examples": 500,
      "types": types,
      "severities": ["1", "5"],
      "by_type": by_type,
      "origin": "computed",
      "by_severity": {s: scores(rng) for s in ("1", "5")},
      "constants": "CIFAR-10-C",
    },
    "representation": {
      **{name: rng.uniform() for name in representation.split()},
      "neighbour_flips": 0.25,
      "norm": "linf",
      "epsilon": 0.1,
      "examples": 100,
      "steps": 50,
      "restarts": 2,
    },
    "bound": {
      **{name: rng.uniform(1, 9) for name in bound.split()},
      "vacuous": True,
      "vacuous_tight": False,
      "cap_share": 0.02,
      "kl_mean": 3.5,
      "norm": "linf",
      "epsilon": 0.1,
      "examples": 100,
      "samples": 200,
      "steps": 50,
      "restarts": 2,
      "loss_steps": 20,
    },
    "config": {
      "dataset": "digits",
      "split": "test",
      "norm": "linf",
      "epsilon": 0.1,
      "samples": 200,
      "stochastic": True,
      "model": {"notes": [NOTE]},
    },
    "versions": {"urkle_tf": "0.1", "keras": "3"},
  }


@pytest.fixture(scope="module")
def folder(measured, tmp_path_factory):
  """What is written of it."""
  rng = np.random.default_rng(1)
  image = rng.uniform(size=(8, 8, 1))
  broken = [{"image": image, "adversary": 1 - image, "label": 1, "before": 1, "after": 7}] * 3
  path = tmp_path_factory.mktemp("report")
  names = [str(i) for i in range(10)]
  (path / "figures").mkdir()
  pictures.examples_figure(broken, names, path / "figures" / "examples.png")
  report.write(path, measured, html=True)
  return path


class Tree(html.parser.HTMLParser):
  """Reads a page; fails where a tag is not closed in its turn."""

  def __init__(self):
    super().__init__()
    self.open, self.elements, self.texts, self.tables = [], [], [], []

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    assert len(attributes) == len(attrs), f"an attribute of {tag} is given twice"
    self.elements.append((tag, attributes))
    if tag not in VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("th", "td"):
      self.tables[-1][-1].append("")

  def handle_endtag(self, tag):
    assert self.open[-1:] == [tag], f"</{tag}> within {self.open}"
    self.open.pop()

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.texts.append(data)
    if {"th", "td"} & set(self.open[-2:]):
      self.tables[-1][-1][-1] += data

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def tree(folder):
  tree = Tree()
  tree.feed((folder / report.PAGE).read_text(encoding="utf-8"))
  tree.close()
  assert tree.open == []
  return tree


def test_the_page_needs_no_other_file(tree, folder):
  text = (folder / report.PAGE).read_text(encoding="utf-8")
  assert text.startswith("<!DOCTYPE html>")
  assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tree.elements}
  links = [
    (tag, name)
    for tag, attributes in tree.elements
    for name, value in attributes.items()
    if name in ("href", "src", "srcset", "action", "background", "poster")
    and not value.startswith("data:image/png;base64,")
  ]
  assert links == []
  assert not re.search(r"https?:|url\(|@import", text)
  (policy,) = [meta["content"] for meta in tree.all("meta") if "http-equiv" in meta]
  assert policy.startswith("default-src 'none';")


def test_the_page_shows_the_pictures(tree, folder):
  names = ["reliability", "accuracy_vs_epsilon", "examples", "corruptions"]
  found = tree.all("img")
  assert len(found) == len(names) == len(list((folder / "figures").iterdir()))
  for name, image in zip(names, found, strict=True):
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert data == (folder / "figures" / f"{name}.png").read_bytes()
    assert image["alt"]


def test_the_tables_hold_the_figures_of_the_report(tree, measured):
  clean, attacked, served, checks, corrupted, representation, bound = tree.tables
  share = lambda row: [100 * x for x in (row["accuracy"], *row["interval"])]  # noqa: E731
  numbers = lambda cell: [float(x) for x in re.findall(r"[\d.]+", cell)]  # noqa: E731
  rows = [measured["clean"], measured["clean"]["deterministic"]]
  for cells, row in zip(clean[1:], rows, strict=True):
    assert numbers(cells[1]) == pytest.approx(share(row), abs=0.005)
    assert [float(x) for x in cells[2:]] == pytest.approx(
      [row["nll"], row["ece"], row["brier"]], abs=5e-5
    )
  for cells, row in zip(attacked[1:], measured["attacks"], strict=True):
    cells = dict(zip(attacked[0], cells, strict=True))
    assert (cells["attack"], cells["norm"], cells["z"]) == (row["name"], row["norm"], row["mode"])
    assert eval(cells["epsilon"]) == pytest.approx(row["epsilon"])
    assert numbers(cells["accuracy"]) == pytest.approx(share(row), abs=0.005)
    assert cells["own adversaries alone"][:5] == ("50.00" if row["name"] == "pgd" else "-")
    assert int(cells["steps"]) == row["steps"]
  sampled = [measured["clean"], *(r for r in measured["attacks"] if r["mode"] == "sampled")]
  for cells, row in zip(served[1:], sampled, strict=True):
    assert numbers(cells[3])[0] == pytest.approx(100 * row["served_accuracy"], abs=0.005)
  assert [cells[:3] for cells in checks[1:]] == [
    ["gradients", "passed", "0.0% < 10% of the images"],
    ["effort", "failed", NOTE],
  ]
  part = measured["corruptions"]
  for cells, name in zip(corrupted[1:], part["types"], strict=False):
    wanted = [100 * part["by_type"][name]["severities"][s]["accuracy"] for s in ("1", "5")]
    assert [float(x) for x in cells[1:3]] == pytest.approx(wanted, abs=0.005)
  assert corrupted[-1][0] == "mean"
  assert numbers(corrupted[-1][3])[0] == pytest.approx(100 * part["mean"], abs=0.005)
  values = [float(cells[1]) for cells in representation[1:]]
  assert values[0] == pytest.approx(measured["representation"]["kl_mean"], rel=1e-3)
  assert float(bound[3][1]) == pytest.approx(measured["bound"]["value"], rel=1e-3)


def test_both_forms_say_the_same(folder, measured, tree):
  text = (folder / "report.md").read_text(encoding="utf-8")
  rows = [
    line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| -")
  ]
  cells = [cell for line in rows for cell in line.strip("| ").split(" | ")]
  assert len(rows) == sum(len(table) for table in tree.tables)
  shown = [cell for table in tree.tables for row in table for cell in row if cell]
  # A bar, and not more, tells a Markdown table from what a note may hold.
  assert [c.replace("*", "") for c in cells if c] == shown
  assert "**failed**" in text
  figures = re.findall(r"!\[.+\]\((.+)\)", text)
  assert sorted(figures) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())


def test_what_notes_say_is_no_html(folder, tree):
  assert sum(NOTE in text for text in tree.texts) == 2
  assert "<script>" not in (folder / report.PAGE).read_text(encoding="utf-8")
