#!/usr/bin/env python3
r"""Makes an encoder of this package from the weights that train.py saved.

  python tools/accelerator/encoder.py RUN/encoder --weights student_0.npz student_1.npz \
    --about=student.json

The folder is what a training writes: `finetune`, `evaluate`, `embed`, `--init_from` and
`distil(teacher=...)` take it.  It computes in float32, whatever precision the training had.
"""

import json
import pathlib
import sys
import zipfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # not installed works too

import arrays

from experiments import jobs
from urkle_tf import errors, export, networks, pretexts, robustness, spec
from urkle_tf.training import pretraining


def make(folder, weights, about, settings="settings", image_shape=None, changed=()):
  """Writes an encoder's folder, as `urkle_tf.export_encoder` does.

  Args:
    folder: where to.
    weights: .npz files, the parts of one encoder: arrays named by their place, in float32 or
      float16.
    about: a JSON file, such as NAME.json of train.py: the settings of the training, and
      "encoder_paths", the names of the encoder's variables in order.
    settings: the entry of it that holds the settings.
    image_shape: (height, width, channels); None where "batch" in `about` says it.
    changed: (name, value) of settings that were others on the machine.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if a file cannot be read, or weights and settings do not fit each other.
  """
  described = _read(about, lambda file: json.loads(pathlib.Path(file).read_text()))
  for name in (settings, "encoder_paths"):
    if name not in described:
      raise errors.UserError(f"{about} has no {name!r}: give the NAME.json that train.py wrote")
  if image_shape is None and "batch" not in described:
    raise errors.UserError(f"{about} does not say how large images are: give --image_shape=32,32,3")
  image_shape = tuple(image_shape or described["batch"][0][1][1:])
  settings = {"loc": "dense", **described[settings], **dict(changed)}  # before there was a choice
  encoder = networks.GaussianEncoder(
    networks.backbone(settings["encoder"], image_shape),
    *(settings[name] for name in ("latent_dim", "min_scale", "max_scale")),
    loc=settings["loc"],
  )
  values = _read(" ".join(map(str, weights)), lambda _: arrays.read_weights(weights))
  _assign(encoder.network.weights, described["encoder_paths"], values)
  task = spec.plugin("pretexts", settings["pretext"], pretexts.Pretext)
  scheme = spec.plugin("robustness", settings["robustness"], robustness.Robustness)
  return export.export_encoder(encoder, folder, pretraining.describe(settings, task, scheme))


def _read(file, read):
  try:
    return read(file)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise errors.UserError(f"cannot read {file}: {errors.reason(error)}") from error


def _assign(variables, paths, values):
  """Gives each variable its array, once all of them fit by name and shape."""
  if not len(variables) == len(paths) == len(values):
    raise errors.UserError(
      f"the encoder of these settings has {len(variables)} variables, but the weights are "
      f"{len(values)} and their names {len(paths)}: give all parts, and the settings they belong to"
    )
  for variable, path, value in zip(variables, paths, values, strict=True):
    if (variable.path, tuple(variable.shape)) != (path, value.shape):
      raise errors.UserError(
        f"the weights hold {path} of shape {value.shape} where the encoder of these settings has "
        f"{variable.path} of shape {tuple(variable.shape)}: give the settings they belong to"
      )
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value.astype(np.float32))


def _setting(text):
  name, _, value = text.partition("=")
  return name, json.loads(value)


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("folder", help="where the encoder goes, RUN/encoder")
  add("--weights", nargs="+", required=True, help="its parts, .npz")
  add("--about", required=True, help="NAME.json")
  add("--settings", default="settings", help="the entry of it with the settings")
  shape, where = lambda text: tuple(map(int, text.split(","))), "default: as NAME.json says"
  add("--image_shape", type=shape, help=f"height,width,channels; {where}")
  several = {"nargs": "*", "type": _setting, "default": [], "dest": "changed"}
  what = "settings that were others on the machine: epochs=85 examples=null"
  add("--set", **several, metavar="NAME=JSON", help=what)
  print(make(**vars(parser.parse_args())))


if __name__ == "__main__":
  jobs.main(main)
