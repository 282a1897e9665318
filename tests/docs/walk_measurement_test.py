"""The walk "adding a measurement by one file" runs as its page has it."""

import json
import pathlib
import re
import shlex
import sys

import numpy as np
from small_models import small_encoder

import urkle_tf
from urkle_tf import export, networks
from urkle_tf.data import sources
from urkle_tf.evaluation import measurements
from urkle_tf.networks.classifier import Classifier

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "walks" / "measurement.md"


def test_the_pages_file_is_a_measurement(tmp_path, monkeypatch):
  text = PAGE.read_text(encoding="utf-8")
  (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  name = re.match(r"# urkle_tf/evaluation/measurements/(\w+)\.py\n", block)[1]
  (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
  monkeypatch.setattr(measurements, "__path__", [*measurements.__path__, str(tmp_path)])
  monkeypatch.delitem(sys.modules, f"urkle_tf.evaluation.measurements.{name}", raising=False)
  (command,) = re.findall(r"^    python -m urkle_tf\.evaluate (.*)$", text, re.MULTILINE)
  given = dict(word[2:].split("=", 1) for word in shlex.split(command))

  encoder = small_encoder()
  head = networks.mlp(6, [10], "head")
  kernel = head.get_layer("dense1").kernel
  kernel.assign(3 * kernel)  # more or less sure of its classes
  model = Classifier(encoder.network, head, False)
  export.export_classifier(model, tmp_path / given["classifier"], {"epsilon": 0.1})
  given |= {key: str(tmp_path / given[key]) for key in ("classifier", "output_dir")}
  small = {"attacks": "fgsm", "checks": False, "representation_examples": 0, "examples": 20}
  result = urkle_tf.assess(**given, **small)

  images = sources.load("digits", "test", examples=20).images / np.float32(255)
  logits = model.logits(images).numpy().astype(np.float64)
  gaps = []
  for row in np.exp(logits) / np.exp(logits).sum(1, keepdims=True):
    *_, second, first = sorted(row)
    gaps.append(first - second)
  close = sum(gap < 0.2 for gap in gaps) / 20
  assert 0 < close < 1  # the option decides something
  part = result["margins"]["deterministic"]
  np.testing.assert_allclose(part["mean"], np.mean(gaps), rtol=1e-4)
  assert part["undecided"] == close
  folder = pathlib.Path(given["output_dir"])
  stored = json.loads((folder / "report.json").read_text())
  assert stored == json.loads(json.dumps(result))
  assert list(stored) == ["clean", "attacks", "margins", "config", "versions"]
  assert stored["config"]["measure"] == given["measure"]
  section = (folder / "report.md").read_text().split("## Margins\n")[1]
  assert f"| deterministic | {np.mean(gaps):.3f} | {close:.3f} |" in section
