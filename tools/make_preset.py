#!/usr/bin/env python3
r"""Makes weights that come with the package of an encoder and its linear classifier.

  python tools/make_preset.py NAME --encoder=RUN/encoder --classifier=HEAD/classifier \
    --data_dir=DATA_DIR --report=REPORT --report=AUTOATTACK

writes urkle_tf/networks/presets/NAME: kernels rounded to float16, which of the first 200 test
images are right, as they are and under PGD-20, with these rounded weights, and the model card with
what the reports of `urkle_tf.evaluate` found. They are those of --classifier=preset:NAME, once this
has run without them, or of the classifier before it was rounded, which the card then says.
"""

import hashlib
import inspect
import io
import json
import math
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import numpy as np
import tensorflow as tf

from experiments import effect, jobs
from urkle_tf import attacks, errors, export, networks
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import scoring
from urkle_tf.export import card, hub
from urkle_tf.networks import presets
from urkle_tf.networks.classifier import Classifier
from urkle_tf.output import files, tables

EXAMPLES = 200  # of the test split, whose correctness is recorded
STEPS = 20  # of PGD
BATCH = 20  # images that are attacked together, with their own seed
USE = """Images are float32 `[n, {0}, {1}, {2}]` in [0, 1]; normalisation is part of the network. \
Nothing is downloaded.

```python
import urkle_tf

encoder = urkle_tf.GaussianEncoder.from_preset("{name}")
embedding = encoder.predict(images)["loc"]  # [n, {latent_dim}]
logits = urkle_tf.load_classifier("preset:{name}").logits(images)  # [n, {classes}]
```

Every command takes `--encoder=preset:{name}`, and `evaluate` also `--classifier=preset:{name}`."""
DATA = {"cifar10": "CIFAR-10 itself states no licence."}


def correctness(classifier, source, attacked=None):
  """Says which images are right at z = mu, as they are and under PGD-20 of the training's radius.

  Args:
    classifier: a `Classifier` whose metadata has "norm" and "epsilon".
    source: a labelled `Source`.
    attacked: how many images are attacked, the first ones, a multiple of `BATCH`; None for all.

  Returns:
    (clean, attacked): texts with a 1 for each image that is right and a 0 for each other one. An
    image that is wrong without an attack counts as wrong under attack too.
  """
  threat = attacks.from_norm(*(classifier.metadata[name] for name in ("norm", "epsilon")))
  attack = attacks.PGD(threat, steps=STEPS, keep="best")
  predict, find = effect.attacker(classifier.frozen().logits, attack)
  found = [[], []]
  for number, (_, images, labels) in enumerate(scoring.stream(source, BATCH)):
    clean = predict(images).numpy() == labels
    found[0] += clean.tolist()
    if attacked is None or number * BATCH < attacked:
      adversaries = find(images, labels, tf.constant([0, number]))
      found[1] += (clean & (predict(adversaries).numpy() == labels)).tolist()
  return tuple("".join(str(int(each)) for each in part) for part in found)


def rebuilt(network, metadata):
  """What `GaussianEncoder.from_preset` is to build: {"encoder": spec, option: value}.

  Args:
    network: the exported network.
    metadata: the encoder's.

  Returns:
    (that, the `GaussianEncoder`, with the network's weights).

  Raises:
    UserError: if the export's settings make another network.
  """
  settings = {"loc": "dense", **metadata["settings"]}  # which it was before there was a choice
  named = inspect.signature(networks.GaussianEncoder).parameters
  found = {name: settings[name] for name in ("encoder", *named) if name in settings}
  found["loc"] = metadata.get("loc", "dense")  # exports from before there was a choice
  problem = "the encoder's settings do not make its network"
  if "encoder" not in found:
    raise errors.UserError(f"{problem}: they name no architecture")
  encoder = presets.build(found, metadata["image_size"], networks.GaussianEncoder)
  shapes = lambda model: {v.path: tuple(v.shape) for v in model.variables}  # noqa: E731
  if shapes(encoder.network) != shapes(network):
    raise errors.UserError(f"{problem}: its layers are not those of {found}")
  weights = {f"network/{v.path}": v.numpy() for v in network.variables}
  presets.fill(encoder.network, weights, "network")
  images = np.random.default_rng(0).uniform(size=(8, *metadata["image_size"]))
  ours, theirs = (model.predict(images, verbose=0) for model in (encoder.network, network))
  for name, values in theirs.items():
    # In low precision too; another form of loc or another bound of sigma is further off.
    if np.abs(ours[name] - values).max() > 0.05 * np.abs(values).max():
      raise errors.UserError(f"{problem}: {found} gives another {name}")
  return found, encoder


def rounded(model, part):
  """{"PART/PATH": array} of a model's weights: kernels in float16."""
  kind = lambda variable: np.float16 if variable.path.endswith("kernel") else np.float32  # noqa: E731
  return {f"{part}/{v.path}": v.numpy().astype(kind(v)) for v in model.variables}


def figures(reports, metadata):
  """What reports found at z = mu and the training's radius; of the same, that of more images."""
  found = {}
  for report in sorted(reports, key=lambda report: report["clean"]["examples"]):
    clean, attacked = tables.readings(report)["deterministic"]
    rows = {"clean": clean}
    for row in attacked:
      same = row["norm"] == metadata["norm"] and math.isclose(row["epsilon"], metadata["epsilon"])
      if same and "ensemble" not in row:
        steps = row["steps"] if row["name"] == "pgd" else ""
        restarts = f"x{row['restarts']}" if row["name"] == "pgd" and row["restarts"] > 1 else ""
        rows[f"{row['name']}{steps}{restarts}"] = row
    names = ("accuracy", "interval", "norm", "epsilon")
    for key, row in rows.items():
      found[key] = {name: row[name] for name in names if name in row}
      found[key]["examples"] = report["clean"]["examples"]
  return found


def make(name, encoder, classifier, reports=(), data_dir=None, recipe=""):
  """Writes a preset.

  Args:
    name: of its folder.
    encoder: the folder of an encoder that `train` exported, or of one like it.
    classifier: the folder of a classifier with a linear head on that encoder.
    reports: folders of `evaluate`.
    data_dir: where prepared TFDS data lies.
    recipe: what else the card says of the training.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if one of them does not fit.
  """
  of_encoder = export.read_metadata(encoder, "encoder")
  given = export.load_classifier(classifier)
  before = given.metadata
  for needed in ("dataset", "norm", "epsilon"):
    if needed not in before:
      raise errors.UserError(
        f"{classifier} records no {needed}, which the preset's figures need: give one of finetune, "
        "or give export_classifier metadata with dataset, norm and epsilon"
      )
  if export.fingerprint([given.network]) != of_encoder["fingerprint"]:
    raise errors.UserError(f"{classifier} is no classifier on {encoder} as it is")
  network, built = rebuilt(given.network, of_encoder)
  head = networks.mlp(given.latent_dim, [given.classes], "head")
  if [tuple(v.shape) for v in given.head.variables] != [tuple(v.shape) for v in head.variables]:
    raise errors.UserError(f"{classifier} has no linear head: finetune with --head=linear")

  arrays = {**rounded(given.network, "network"), **rounded(given.head, "head")}
  presets.fill(built.network, arrays, "network")
  presets.fill(head, arrays, "head")
  made = Classifier(built.network, head, given.stochastic, given.samples)
  of_encoder = {**of_encoder, "fingerprint": export.fingerprint([built.network])}
  fingerprints = {
    "fingerprint": export.fingerprint([built.network, head]),
    "encoder_fingerprint": of_encoder["fingerprint"],
  }
  made.metadata = {**before, **fingerprints}
  found = [hub.read_report(report, made.metadata, before) for report in reports]

  source = sources.load(made.metadata["dataset"], "test", data_dir, examples=EXAMPLES)
  compatibility.check_images(made.image_shape, source)
  clean, attacked = correctness(made, source)

  content = io.BytesIO()
  np.savez(content, **arrays)
  folder = presets.FOLDER / name
  files.write(folder / "weights.npz", content.getvalue())
  files.write(folder / card.NAME, _card(name, made.metadata, found, recipe))
  described = {
    "network": network,
    "encoder": of_encoder,
    "classifier": made.metadata,
    "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
    "figures": figures(found, made.metadata),
    "recorded": {"split": "test", "clean": clean, f"pgd{STEPS}": attacked},
  }
  files.write(folder / "preset.json", json.dumps(described, indent=1) + "\n")
  return folder


def _card(name, metadata, reports, recipe):
  height, width, _ = size = metadata["image_size"]
  limits = [
    f"It accepts only images of {height}x{width} pixels. For larger ones, make your own encoder "
    "robust with `urkle_tf.robustify`.",
    "The weights are under Apache-2.0, like the package. "
    + DATA.get(metadata["dataset"], f"See the terms of {metadata['dataset']}."),
  ]
  if any(report["config"]["fingerprint"] != metadata["fingerprint"] for report in reports):
    limits.append("Figures were measured before the kernels were rounded to float16.")
  use = USE.format(*size, **{**metadata, "name": name})
  return card.text(metadata, reports, use, recipe, limits, "Apache-2.0")


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("name")
  parser.add_argument("--encoder", required=True, help="the folder of the encoder")
  parser.add_argument("--classifier", required=True, help="the folder of its linear classifier")
  parser.add_argument("--report", action="append", default=[], help="a folder of evaluate")
  parser.add_argument("--data_dir", help="where prepared TFDS data lies")
  parser.add_argument("--recipe", default="", help="what else the card says of the training")
  given = parser.parse_args()
  folder = make(
    given.name, given.encoder, given.classifier, given.report, given.data_dir, given.recipe
  )
  size = (folder / "weights.npz").stat().st_size
  recorded = json.loads((folder / "preset.json").read_text(encoding="utf-8"))["recorded"]
  right = {name: text.count("1") for name, text in recorded.items() if name != "split"}
  print(f"{folder}: {size:,} bytes of weights; of {EXAMPLES} test images {right} are right")


if __name__ == "__main__":
  jobs.main(main)
