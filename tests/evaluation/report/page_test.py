"""The report as a page: whole in one file, with the report's figures."""

import base64
import html
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from urkle_tf.evaluation import report
from urkle_tf.evaluation.report import pictures

NOTE = 'reads "a <b> & c" <script>alert(1)</script>'


def scores(accuracy):
  found = {"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]}
  found |= {"nll": 2 * accuracy, "ece": accuracy / 4, "brier": accuracy / 8}
  return found | {"reliability": {"count": [8], "confidence": [0.7], "accuracy": [accuracy]}}


SERVED = {"served_accuracy": 0.75, "served_interval": [0.7, 0.8], "served_samples": 20}
SERVED |= {"accuracy_all_draws": 0.5, "interval_all_draws": [0.4, 0.6], "draws": 10}
OWN = {"own_accuracy": 0.5, "own_interval": [0.4, 0.6]}


def attack(name, epsilon, mode, figures):
  settings = {"steps": 20, "restarts": 2, "eot": 5, "loss": "cross_entropy"}
  return {"name": name, "norm": "linf", "epsilon": epsilon, "mode": mode, **settings, **figures}


def corruption(accuracy, at_one, at_five):
  return scores(accuracy) | {"severities": {"1": scores(at_one), "5": scores(at_five)}}


KINDS = {"fog": corruption(0.48, 0.64, 0.32), "glass_blur": corruption(0.4, 0.56, 0.24)}
CORRUPTIONS = {**scores(0.36), "mean": 0.44, "mean_corruption_error": 0.56, "mode": "sampled"}
CORRUPTIONS |= {"by_type": KINDS, "by_severity": {"1": scores(0.6), "5": scores(0.28)}}
CORRUPTIONS |= {"examples": 500, "types": ["fog", "glass_blur"], "severities": ["1", "5"]}
CORRUPTIONS |= {"origin": "computed", "constants": "CIFAR-10-C"}
REPRESENTATION = {"kl_mean": 3.5, "kl_max": 9.25, "kl_mean_part": 2.5, "sigma": 0.5}
REPRESENTATION |= {"sigma_min": 0.125, "sigma_max": 0.75, "loc_std": 1.25, "snr": 2.25}
REPRESENTATION |= {"drift": 0.375, "neighbour_flips": 0.25}
BOUND = {"clean_loss": 1.5, "measured_adversarial_loss": 3.25, "M": 7.0, "kl_mean": 3.5}
BOUND |= {"regulariser": 6.75, "value": 8.25, "vacuous": True, "cap_share": 0.02}
BOUND |= {"regulariser_tight": 4.25, "value_tight": 5.75, "vacuous_tight": False}
THREAT = {"norm": "linf", "epsilon": 0.1, "examples": 100, "steps": 50, "restarts": 2}


@pytest.fixture(scope="module")
def measured():
  """A report of a sampled classifier, with every part; the figures of a table all differ."""
  clean, noted = scores(0.8) | SERVED, {"model": {"notes": [NOTE]}}
  return {
    "clean": {"mode": "sampled", "examples": 1000, "deterministic": scores(0.88), **clean},
    "attacks": [
      attack("pgd", 4 / 255, "sampled", scores(0.4) | OWN | SERVED),
      attack("pgd", 4 / 255, "deterministic", scores(0.32) | OWN),
      attack("fgsm", 0.1, "sampled", scores(0.24) | SERVED),
    ],
    "checks": [
      {"name": "gradients", "passed": True, "detail": "0.0% < 10% of the images"},
      {"name": "effort", "passed": False, "detail": NOTE},
    ],
    "corruptions": CORRUPTIONS,
    "representation": REPRESENTATION | THREAT,
    "bound": BOUND | THREAT | {"samples": 200, "loss_steps": 20},
    "config": {"dataset": "digits", "norm": "linf", "epsilon": 0.1, "samples": 200, **noted},
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


@pytest.fixture(scope="module")
def page(folder):
  return (folder / report.PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page):
  """The page read as XML, which fails where a tag is not closed in its turn."""
  return ElementTree.fromstring(re.sub(r"(<(?:meta|img)\b[^>]*)>", r"\1/>", page))


@pytest.fixture(scope="module")
def tables(tree):
  """[[[text of each cell] of each row] of each table]."""
  rows = lambda table: [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]  # noqa: E731
  return [*map(rows, tree.iter("table"))]


def test_the_page_needs_no_other_file(page):
  assert page.startswith("<!DOCTYPE html>")
  assert not re.search(r"<(script|link|iframe|object|base)\b|https?:|url\(|@import", page)
  links = re.findall(r'(?:href|src|srcset|action|background|poster)="([^"]*)"', page)
  assert all(link.startswith("data:image/png;base64,") for link in links)
  assert "default-src 'none';" in html.unescape(page)


def test_the_page_shows_the_pictures(page, folder):
  names = ["reliability", "accuracy_vs_epsilon", "examples", "corruptions"]
  assert len(names) == len(list((folder / "figures").iterdir()))
  found = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
  assert len(re.findall(r'<img [^>]*alt="[^"]', page)) == len(names)
  for name, data in zip(names, found, strict=True):
    assert base64.b64decode(data) == (folder / "figures" / f"{name}.png").read_bytes()


def test_the_page_begins_with_the_main_figures(page):
  tile = r'<dt>(.*?)</dt><dd class="figure">(.*?)</dd><dd>(.*?)</dd>'
  assert re.findall(tile, page) == [
    ("clean accuracy", "80.00%", "1,000 images, sampled z"),
    ("attacked, linf 4/255", "40.00%", "lowest of all: pgd"),
    ("attacked, linf 0.1", "24.00%", "lowest of all: fgsm"),
    ("corrupted", "44.00%", "mean of 2 types"),
    ("bound on the loss", "8.25 nats", "vacuous, measured 3.25"),
    ("checks passed", "1 of 2", "not: effort"),
  ]


def test_the_tables_hold_the_figures_of_the_report(tables):
  clean, attacked, served, checks, corrupted, representation, bound = (
    table[1:] for table in tables
  )
  assert clean == [
    ["sampled", "80.00 (70.00 to 90.00)", "1.6000", "0.2000", "0.1000"],
    ["deterministic", "88.00 (78.00 to 98.00)", "1.7600", "0.2200", "0.1100"],
  ]
  assert [row[:6] for row in attacked] == [
    ["pgd", "linf", "4/255", "sampled", "40.00 (30.00 to 50.00)", "50.00 (40.00 to 60.00)"],
    ["pgd", "linf", "4/255", "deterministic", "32.00 (22.00 to 42.00)", "50.00 (40.00 to 60.00)"],
    ["fgsm", "linf", "0.1", "sampled", "24.00 (14.00 to 34.00)", "-"],
  ]
  assert attacked[0][6:] == ["0.8000", "0.1000", "0.0500", "20", "2", "5", "cross_entropy"]
  each = ["75.00 (70.00 to 80.00)", "50.00 (40.00 to 60.00)"]
  assert served == [
    ["clean", "-", "80.00 (70.00 to 90.00)", *each],
    ["pgd", "4/255", "40.00 (30.00 to 50.00)", *each],
    ["fgsm", "0.1", "24.00 (14.00 to 34.00)", *each],
  ]
  assert [row[:3] for row in checks] == [
    ["gradients", "passed", "0.0% < 10% of the images"],
    ["effort", "failed", NOTE],
  ]
  assert corrupted == [
    ["fog", "64.00", "32.00", "48.00 (38.00 to 58.00)", "0.9600", "0.1200", "0.0600"],
    ["glass_blur", "56.00", "24.00", "40.00 (30.00 to 50.00)", "0.8000", "0.1000", "0.0500"],
    ["mean", "60.00", "28.00", "44.00 (26.00 to 46.00)", "0.7200", "0.0900", "0.0450"],
  ]
  assert [row[1] for row in representation] == [f"{value:.4g}" for value in REPRESENTATION.values()]
  assert bound == [
    ["clean loss (eq. 2)", "1.5", "1.5"],
    ["regulariser", "6.75", "4.25"],
    ["bound: their sum", "8.25", "5.75"],
    ["M", "7", "7"],
    ["measured adversarial loss (eq. 3)", "3.25", "3.25"],
  ]


def test_both_forms_say_the_same(folder, tables):
  text = (folder / "report.md").read_text(encoding="utf-8")
  rows = re.findall(r"^\| (?!-).*", text, re.MULTILINE)
  cells = [cell for line in rows for cell in line.strip("| ").split(" | ")]
  assert len(rows) == sum(len(table) for table in tables)
  shown = [cell for table in tables for row in table for cell in row if cell]
  # A bar, and not more, tells a Markdown table from what a note may hold.
  assert [c.replace("*", "") for c in cells if c] == shown
  assert "**failed**" in text
  figures = re.findall(r"!\[.+\]\((.+)\)", text)
  assert sorted(figures) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())


def test_what_notes_say_is_no_html(page, tree):
  assert sum(NOTE in text for text in tree.itertext()) == 2
  assert "<script>" not in page
