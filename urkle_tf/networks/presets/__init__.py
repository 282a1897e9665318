"""Weights that come with the package: listed, read, checked.

`tools/make_preset.py` writes them.  Each is a folder of `urkle_tf/networks/presets/`:

    weights.npz    {"network/..." or "head/...", by the variables' paths}: kernels in float16, the
                   rest in float32
    preset.json    the network's spec, both parts' metadata as in exports, the SHA-256 of
                   weights.npz, the measured figures, and which of the first test images are right
    README.md      the model card
"""

import hashlib
import io
import json
import pathlib

import numpy as np

from urkle_tf import errors
from urkle_tf.networks import backbones, heads

FOLDER = pathlib.Path(__file__).resolve().parent
PREFIX = "preset:"


def presets():
  """Lists the weights that come with the package.

  Returns:
    {name: {"dataset", "image_size" ([height, width, channels]), "latent_dim", "classes",
    "figures"}}.  The figures are those of the linear head that comes with the encoder, at z = mu:
    {"clean" or an attack such as "pgd20": {"accuracy" and its 95% "interval" as fractions,
    "examples", and for an attack "norm" and "epsilon"}}.

  ```python
  known = urkle_tf.presets()["cifar10_resnet18"]
  size = known["image_size"]  # [32, 32, 3]
  accuracy = known["figures"]["pgd20"]["accuracy"]  # a fraction, under PGD of 20 steps
  ```
  """
  return {name: _summary(read(name)) for name in _names()}


def _summary(found):
  metadata = found["classifier"]
  shown = {name: metadata[name] for name in ("dataset", "image_size", "latent_dim", "classes")}
  return {**shown, "figures": found["figures"]}


def _names():
  return sorted(file.parent.name for file in FOLDER.glob("*/preset.json"))


def is_named(path):
  """Whether a path, or a spec of an encoder, is `preset:NAME`."""
  return str(path).startswith(PREFIX)


def read(name):
  """The content of preset.json.

  Args:
    name: the preset's, with or without `preset:` before it.

  Raises:
    UserError: if there is no such preset, or the file is damaged.
  """
  name = str(name).removeprefix(PREFIX)
  errors.one_of("preset", name, _names())
  file = FOLDER / name / "preset.json"
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise _damaged(file) from error


def metadata(name, kind=None):
  """As `export.read_metadata`, for the preset's encoder (also if `kind` is None) or classifier."""
  found = read(name)
  if kind not in ("encoder", "classifier", None):
    raise errors.UserError(
      f"{str(name)!r} holds an encoder and a classifier, not a {kind}: give the folder of one"
    )
  return found[kind or "encoder"]


def encoder(name, kind):
  """Builds a preset's encoder.

  Args:
    name: the preset's, with or without `preset:` before it.
    kind: `GaussianEncoder`, or a subclass.

  Returns:
    The encoder, with the preset's weights.

  Raises:
    UserError: if there is no such preset, or a file is damaged.
  """
  found = read(name)
  model = build(found["network"], found["encoder"]["image_size"], kind)
  fill(model.network, _arrays(name, found), "network")
  return model


def build(network, image_size, kind):
  """Builds an encoder with new weights.

  Args:
    network: {"encoder": the backbone's spec, and arguments of `GaussianEncoder`}.
    image_size: (height, width, channels).
    kind: as in `encoder`.
  """
  options = dict(network)
  backbone = backbones.backbone(options.pop("encoder"), tuple(image_size))
  return kind(backbone, **options)


def head(name):
  """Builds a preset's linear head, z -> logits; arguments and errors as in `encoder`."""
  found = read(name)
  sizes = found["classifier"]
  model = heads.mlp(sizes["latent_dim"], [sizes["classes"]], "head")
  fill(model, _arrays(name, found), "head")
  return model


def fill(model, arrays, part):
  """Assigns a model's weights.

  Args:
    model: a Keras model.
    arrays: {"PART/PATH": array}, by the paths of the model's variables.
    part: "network" or "head".
  """
  for variable in model.variables:
    variable.assign(arrays[f"{part}/{variable.path}"])


def _arrays(name, found):
  """The content of weights.npz, after a check that it is complete."""
  file = FOLDER / str(name).removeprefix(PREFIX) / "weights.npz"
  content = file.read_bytes() if file.is_file() else b""
  if hashlib.sha256(content).hexdigest() != found["sha256"]:
    raise _damaged(file)
  return np.load(io.BytesIO(content), allow_pickle=False)


def _damaged(file):
  return errors.UserError(f"{str(file)!r} is damaged: install urkle_tf again")
