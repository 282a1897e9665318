"""The metadata of an export: metadata.json and the model card."""

import hashlib
import json
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import urkle_tf
from urkle_tf import errors, spec
from urkle_tf.export import card
from urkle_tf.networks import presets
from urkle_tf.networks.saved import exports

_FOLDERS = ("output_dir", "data_dir", "init_from", "encoder", "classifier", "regressor")
_PATHS = (*_FOLDERS, "prototypes", "data_service")  # the last names hosts
_OPTIONS = ("teacher", "original", "report")  # paths among the options of specs


def versions():
  """The package versions with which an export or a report is made."""
  return {
    "urkle_tf": urkle_tf.__version__,
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "tensorflow_probability": tfp.__version__,
  }


def settings_without_paths(settings):
  """Settings without folders of this machine, which others may see."""
  hidden = lambda name, value: name in _PATHS and not presets.is_named(value)  # noqa: E731
  shown = {name: value for name, value in settings.items() if not hidden(name, value)}
  # In `train`, encoder names an architecture.
  if "pretext" in settings and "encoder" in settings:
    named = str(settings["encoder"])
    shown["encoder"] = pathlib.Path(named).name if named.endswith(".keras") else named
  for name in ("head", "against"):
    if shown.get(name) and (name == "against" or shown[name].endswith(".keras")):
      shown[name] = pathlib.Path(shown[name]).name
  if isinstance(shown.get("dataset"), str) and shown["dataset"].startswith("folder:"):
    shown["dataset"] = "folder:" + pathlib.Path(shown["dataset"][len("folder:") :]).name
  for name in ("pretext", "measure"):
    value = shown.get(name) or ""
    if re.search(rf"({'|'.join(_OPTIONS)})\s*=", str(value)):
      parts = spec.split(value) if isinstance(value, str) else value
      shown[name] = ", ".join(map(_without_folders, parts))
  return shown


def _without_folders(text):
  """A spec whose paths are reduced to the names of their files."""
  name, options = spec.parse(text)
  for option in set(_OPTIONS) & set(options):
    options[option] = pathlib.Path(str(options[option])).name
  given = ", ".join(f"{key}={value}" for key, value in options.items())
  return f"{name}({given})" if given else name


def fingerprint(models):
  """A hash of the weights; equal weights have equal hashes."""
  digest = hashlib.sha256()
  for model in models:
    for variable in model.variables:
      digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
  return digest.hexdigest()[:16]


def write(folder, kind, models, fields):
  """Writes metadata.json and the model card.

  Args:
    folder: a `pathlib.Path`.
    kind: "encoder", "classifier" or "regressor".
    models: the models whose weights make the fingerprint.
    fields: {name: value}, further entries, without those that are None and without paths in
      settings.

  Raises:
    UserError: for an entry with which the export could not be loaded.
  """
  fields = {name: value for name, value in fields.items() if value is not None}
  fields["settings"] = settings_without_paths(fields.get("settings", {}))
  if "encoder_settings" in fields:
    fields["encoder_settings"] = settings_without_paths(fields["encoder_settings"])
  metadata = {
    "format_version": exports.FORMAT_VERSION,
    "kind": kind,
    "value_range": [0, 1],
    **fields,
    "fingerprint": fingerprint(models),
    "versions": versions(),
  }
  text = json.dumps(metadata, indent=2, default=_json)
  metadata = json.loads(text)
  if wrong := exports.invalid(metadata):
    raise errors.UserError(f"metadata of an export: {wrong}, with which it could not be loaded")
  (folder / "metadata.json").write_text(text + "\n", encoding="utf-8")
  card.write(folder, metadata)


def _json(value):
  return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
