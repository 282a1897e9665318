"""Model cards: a snippet that runs, figures of an evaluation, nothing private."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import yaml
from cases import refuses
from small_models import digits

import urkle_tf
from urkle_tf import export, networks
from urkle_tf.networks.classifier import Classifier

SETTINGS = {"pretext": "simclr(temperature=0.5)", "robustness": "urkle(beta=0.05)"}
SETTINGS |= {"dataset": "folder:/home/somebody/photos", "output_dir": "/home/somebody/runs"}
SETTINGS["epochs"] = 76.8974358974359


def parts(text):
  """(the front matter as a dict, the rest)."""
  _, front, body = text.split("---\n", 2)
  return yaml.safe_load(front), body


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
  made = Classifier(encoder.network, networks.mlp(6, [10], "head"), stochastic=True, samples=4)
  metadata = {"dataset": "digits", "norm": "linf", "epsilon": 8 / 255, "encoder_settings": SETTINGS}
  metadata["settings"] = {"protocol": "slf", "labels": 500, "encoder": "/home/somebody/encoder"}
  return export.export_classifier(made, tmp_path_factory.mktemp("card") / "classifier", metadata)


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
  place = tmp_path_factory.mktemp("report")
  options = {"attacks": "pgd(steps=2)", "eot": 1, "samples": 4, "checks": False, "examples": 12}
  found = urkle_tf.assess(str(folder), output_dir=place, representation_examples=4, **options)
  return place, found


def test_the_card_s_snippet_runs(folder, monkeypatch):
  _, body = parts((folder / "README.md").read_text())
  source = body.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
  names = {"images": tf.constant(digits()[0][:3])}
  exec(source, names)
  expected = export.load_classifier(folder).logits(names["images"])
  np.testing.assert_allclose(names["found"], expected, atol=1e-5)
  assert "| pre-training: epochs | 76.9 |" in body  # of a run by the clock


@pytest.mark.full
def test_it_reports_what_was_measured(folder, report):
  place, found = report
  written = urkle_tf.model_card(folder, place)
  front, body = parts(written.read_text())
  (index,) = front["model-index"]
  (result,) = index["results"]
  assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
  names = [
    f"{kind}, {z}" for z in ("sampled z", "z = mu") for kind in ("clean", "pgd-2, linf 8/255")
  ]
  assert [metric["name"] for metric in result["metrics"]] == names
  clean, attacked, point, _ = result["metrics"]
  assert clean["value"] == round(100 * found["clean"]["accuracy"], 2)
  assert point["value"] == round(100 * found["clean"]["deterministic"]["accuracy"], 2)
  rows = [row for row in found["attacks"] if row["mode"] == "sampled"]
  assert attacked["value"] == round(100 * rows[0]["accuracy"], 2)
  low, high = (round(100 * bound, 1) for bound in rows[0]["interval"])
  assert f"| pgd-2, linf 8/255, sampled z | {attacked['value']:.2f} ({low} to {high}) |" in body
  assert front["datasets"] == ["digits"]
  assert "somebody" not in body


def test_reports_of_others_are_refused(folder, report, tmp_path):
  place, _ = report
  for missing in (tmp_path, "~no-such-user/report"):
    refuses("no report", urkle_tf.model_card, folder, missing)
  other = json.loads((place / "report.json").read_text())
  other["config"]["fingerprint"] = "0"
  ill, none = "is not a report of evaluate", {"config": "none"}
  for content, words in ((other, "about another model"), ([], ill), (none, ill)):
    (tmp_path / "report.json").write_text(json.dumps(content))
    refuses(words, urkle_tf.model_card, folder, tmp_path)


def test_the_hub_is_asked_for_in_one_line(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  refuses("pip install huggingface_hub", urkle_tf.push_to_hub, folder, "somebody/encoder")
