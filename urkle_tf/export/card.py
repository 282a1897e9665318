"""The model card of an export: README.md, in the form that Hugging Face reads."""

import json

from urkle_tf.output import files, tables

NAME = "README.md"

_TASKS = {"encoder": "image-feature-extraction", "classifier": "image-classification"}
_WHAT = {
  "encoder": "An image encoder, which maps each image to a Gaussian over representations",
  "classifier": "An image classifier on a Gaussian encoder",
  "regressor": "An image regressor on a Gaussian encoder",
}
_USE = {
  "encoder": ("embed", "embedding", "[n, {latent_dim}]"),
  "classifier": ("deterministic", "logits", "[n, {classes}]"),
  "regressor": ("deterministic", "predictions", "[n, {outputs}]"),
}
_NOT_MEASURED = (
  "Not measured yet. `python -m urkle_tf.evaluate` measures it, and "
  '`urkle_tf.model_card("FOLDER", report="REPORT")` adds the results here.'
)
# Settings in the table about the training, and the names of some.
_TRAINED = (
  *("pretext", "robustness", "augment", "encoder", "protocol", "head", "labels", "split"),
  *("examples", "epochs", "minutes", "batch_size", "optimizer", "learning_rate"),
  *("attack_steps", "precision", "seed"),
)
_CALLED = {"augment": "augmentation", "encoder": "architecture", "batch_size": "batch"}
_CALLED |= {"optimizer": "optimiser", "learning_rate": "learning rate"}
_CALLED |= {"attack_steps": "steps of the inner attack"}


def text(metadata, reports=(), use=None, recipe="", limits=(), licence=None):
  """The text of a card.

  Args:
    metadata: the content of metadata.json, without paths and names of machines.
    reports: the content of report.json of each evaluation of this export.
    use: how to use it, in Markdown; None for the text about a folder.
    recipe: further text about its training.
    limits: further lines about its limits.
    licence: the SPDX name of the licence; None leaves it to the publisher.

  Returns:
    Markdown that begins with YAML.
  """
  kind = metadata["kind"]
  name = _name(metadata)
  parts = [
    _front(metadata, name, reports, licence),
    f"# {name}",
    f"{_WHAT[kind]}, trained with urkle_tf{_promise(metadata)}.",
    "## Use",
    use or _use(metadata),
    "## Training",
    tables.markdown(("what", "value"), _trained(metadata)),
    recipe,
    "## Measured",
    "\n\n".join(map(_measured, reports)) or _NOT_MEASURED,
    "## Limits",
    _limits(metadata, limits, licence),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def write(folder, metadata, report=None):
  """Writes the card into an export's folder, a `pathlib.Path`."""
  files.write(folder / NAME, text(metadata, [report] if report else ()))


def _name(metadata):
  """The card's title, such as "simclr + urkle encoder, cifar10, 32x32"."""
  settings = {**metadata.get("encoder_settings", {}), **metadata.get("settings", {})}
  parts = [str(settings.get(key, "")).split("(")[0] for key in ("pretext", "robustness")]
  cell = " + ".join(part for part in parts if part not in ("", "none"))
  size = "x".join(map(str, metadata["image_size"][:2]))
  found = [f"{cell} {metadata['kind']}".strip(), metadata.get("dataset"), size]
  return ", ".join(str(part) for part in found if part)


def _promise(metadata):
  threat = _threat(metadata)
  return f" to resist adversarial attacks within {threat}" if threat else ""


def _threat(metadata):
  """The threat model, such as "linf 8/255"; "" if the metadata has none."""
  return tables.threat(metadata) if {"norm", "epsilon"} <= set(metadata) else ""


def _front(metadata, name, reports, licence):
  """The YAML front matter; values are JSON, which is YAML."""
  fields = {
    "library_name": "keras",
    "tags": ["tensorflow", "urkle_tf", "adversarial-robustness", "image", metadata["kind"]],
  }
  if metadata["kind"] in _TASKS:
    fields["pipeline_tag"] = _TASKS[metadata["kind"]]
  if licence:
    fields["license"] = licence.lower()
  data = _dataset(metadata)
  if data:
    fields["datasets"] = [data]
  if results := [_result(metadata, report) for report in reports if _rows(report)]:
    fields["metrics"] = ["accuracy"]
    fields["model-index"] = [{"name": name, "results": results}]
  lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
  return "\n".join(["---", *lines, "---"])


def _result(metadata, report):
  """A report's results, as the front matter holds them."""
  measured = str(report["config"]["dataset"])
  return {
    "task": {"type": _TASKS.get(metadata["kind"], "other")},
    "dataset": {
      "name": measured,
      "type": measured.split(":")[0],
      "split": str(report["config"].get("split", "test")),
    },
    "metrics": [
      {"type": "accuracy", "name": row["name"], "value": row["value"]} for row in _rows(report)
    ],
  }


def _dataset(metadata):
  """The public name of the data set; None for a folder, or if there is none."""
  data = str(metadata.get("dataset") or "").split(":")[0].split("/")[0]
  return None if data in ("", "folder") else data


def _use(metadata):
  endpoint, output, shape = _USE[metadata["kind"]]
  height, width, channels = metadata["image_size"]
  return f"""Images are float32 `[n, {height}, {width}, {channels}]` in [0, 1]; \
normalisation is part of the network. You need only TensorFlow and Keras:

```python
import keras

layer = keras.layers.TFSMLayer("FOLDER", call_endpoint="{endpoint}")
found = layer(images)["{output}"]  # {shape.format(**metadata)}
```

`metadata.json` describes the export. For further training, use `network.keras`."""


def _trained(metadata):
  rows = [("data", metadata.get("dataset") or "not given")]
  if threat := _threat(metadata):
    rows.append(("threat model", threat))
  rows += [("dimensions of z", metadata["latent_dim"]), ("z is sampled", metadata["stochastic"])]
  for part, of in (("encoder_settings", "pre-training: "), ("settings", "")):
    settings = metadata.get(part, {})
    if of and settings.get("dataset"):
      rows.append((of + "data", settings["dataset"]))
    rows += [
      (of + _CALLED.get(key, key), _short(settings[key]))
      for key in _TRAINED
      if settings.get(key) is not None
    ]
  versions = metadata.get("versions", {})
  rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
  return rows


def _short(value):
  """A run by the clock ends in the middle of an epoch: 76.8974358974359 is 76.9."""
  return f"{value:.4g}" if isinstance(value, float) else value


def _rows(report):
  """[{"name", "value" in percent, "interval"}] for each reading of z, clean images first."""
  if "clean" not in report:
    return []
  found, readings = [], tables.readings(report)
  for mode, (clean, attacks) in readings.items():
    reading = f", {tables.READINGS[mode]}" if len(readings) > 1 else ""
    found.append({"name": f"clean{reading}", **_percent(clean)})
    for row in attacks:
      name = f"{tables.attack(row)}, {tables.threat(row)}{reading}"
      found.append({"name": name, **_percent(row)})
  return found


def _percent(part):
  return {
    "value": round(100 * part["accuracy"], 2),
    "interval": [round(100 * bound, 1) for bound in part["interval"]],
  }


def _measured(report):
  said = [f"On {report['config']['dataset']}, {report['config'].get('split', 'test')}."]
  if rows := _rows(report):
    said[0] = f"{said[0][:-1]}, {report['clean']['examples']:,} images."
    cells = [
      (r["name"], f"{r['value']:.2f} ({r['interval'][0]} to {r['interval'][1]})") for r in rows
    ]
    said.append(tables.markdown(("images", "accuracy in percent, 95% interval"), cells))
  if part := report.get("regression"):
    errors = [f"{part['clean']['rmse']:.4g} on {part['examples']:,} clean images"]
    errors += [
      f"{row['rmse']:.4g} under {tables.attack(row)}, {tables.threat(row)}"
      for row in part["attacks"]
      if row["mode"] == part["clean"]["mode"]
    ]
    said.append(f"Root mean square error of {part['target']}: {'; '.join(errors)}.")
  if part := report.get("representation"):
    said.append(
      f"Without labels: the worst perturbation within {tables.threat(part)} moves an image's "
      f"Gaussian by a KL of {part['kl_mean']:.3g} nats (mean), and its representation by "
      f"{part['drift']:.2g} of the mean distance between images."
    )
  if failed := [check["name"] for check in report.get("checks", ()) if not check["passed"]]:
    said.append(f"Failed checks: {', '.join(failed)}. The figures may be too high.")
  return "\n\n".join(said)


def _limits(metadata, further, licence):
  figure, bound = "Robust accuracy", "an upper bound on the accuracy"
  if metadata["kind"] == "regressor":
    figure, bound = "The error under attack", "a lower bound on the error"
  said = [
    f"{figure} is measured against the attacks named beside it. It is {bound} against any attack, "
    "not a guarantee.",
    "It says nothing about larger perturbations, other kinds of change (shifts, occlusions, "
    "weather), or images unlike the training data.",
  ]
  if "epsilon" not in metadata:
    said.insert(0, "The training reported above used no attack.")
  if not metadata["stochastic"]:
    said.append("z is the mean, because sigma was not trained.")
  said += further
  if not licence:
    said.append("The publisher must add the licence, and the terms of the data.")
  return "\n".join(f"- {line}" for line in said)
