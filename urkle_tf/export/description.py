"""What an export says of itself: metadata.json, with the model card beside it."""

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

FORMAT_VERSION = 1
_KINDS = {"encoder": "an encoder", "classifier": "a classifier", "regressor": "a regressor"}
_FOLDERS = ("output_dir", "data_dir", "init_from", "encoder", "classifier", "regressor")
_PATHS = (*_FOLDERS, "data_service")  # the latter names hosts
_LARGEST_METADATA = 2**24  # bytes
_NEEDED = ("format_version", "kind", "image_size", "latent_dim", "stochastic")


def versions():
  """The versions that an export or a report was made with."""
  return {
    "urkle_tf": urkle_tf.__version__,
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "tensorflow_probability": tfp.__version__,
  }


def settings_without_paths(settings):
  """Settings that can be shown to others: no folder of this machine is in them."""
  hidden = lambda name, value: name in _PATHS and not presets.is_named(value)  # noqa: E731
  shown = {name: value for name, value in settings.items() if not hidden(name, value)}
  # In `train`, encoder names an architecture.
  if "pretext" in settings and "encoder" in settings:
    named = str(settings["encoder"])
    shown["encoder"] = pathlib.Path(named).name if named.endswith(".keras") else named
  if isinstance(shown.get("dataset"), str) and shown["dataset"].startswith("folder:"):
    shown["dataset"] = "folder:" + pathlib.Path(shown["dataset"][len("folder:") :]).name
  if re.search(r"(teacher|original)=", str(shown.get("pretext"))):
    name, options = spec.parse(shown["pretext"])
    for option in {"teacher", "original"} & set(options):
      options[option] = pathlib.Path(options[option]).name
    shown["pretext"] = f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
  return shown


def read_metadata(folder, kind=None):
  """Reads and checks an export's metadata.json.

  Args:
    folder: the export's, or `"preset:NAME"`.
    kind: "encoder", "classifier" or "regressor"; None for any.

  Returns:
    A dict; see `docs/exports.md`.

  Raises:
    UserError: if the folder is missing, is no export, or one of another kind; or there is no such
      preset.
  """
  if presets.is_named(folder):
    return presets.metadata(folder, kind)
  folder = pathlib.Path(folder)
  wanted = _KINDS.get(kind, "an encoder, a classifier or a regressor")
  if not folder.is_dir():
    raise errors.UserError(f"no folder {str(folder)!r}: give the folder of {wanted}")
  file = folder / "metadata.json"
  if not file.is_file():
    inner = [f.parent.name for f in sorted(folder.glob("*/metadata.json"))]
    hint = f"; did you mean {str(folder / inner[0])!r}?" if inner else ""
    raise errors.UserError(f"{str(folder)!r} holds no export of {wanted} (no metadata.json){hint}")
  try:
    if file.stat().st_size > _LARGEST_METADATA:
      raise ValueError(f"it has over {_LARGEST_METADATA >> 20} MiB")
    metadata = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in _NEEDED if name not in metadata]
  except (ValueError, TypeError, RecursionError) as error:
    raise errors.UserError(f"{str(file)!r} is damaged: {error}; export again") from error
  if missing:
    raise errors.UserError(f"{str(file)!r} lacks {missing[0]!r}: export again")
  if metadata["format_version"] != FORMAT_VERSION:
    raise errors.UserError(
      f"{str(folder)!r} has export format {str(metadata['format_version'])[:20]}, and this version "
      f"of urkle_tf reads {FORMAT_VERSION}"
    )
  _check(file, metadata)
  if kind is not None and metadata["kind"] != kind:
    raise errors.UserError(f"{str(folder)!r} holds {_KINDS.get(metadata['kind'])}, not {wanted}")
  return metadata


def _check(file, metadata):
  """Refuses metadata.json with an entry that no export could have."""
  whole = lambda value, most: type(value) is int and 1 <= value <= most  # noqa: E731  (bool is int)
  text = lambda value: isinstance(value, str) and len(value) < 10_000  # noqa: E731
  size, names = metadata["image_size"], metadata.get("class_names")
  classes, epsilon = metadata.get("classes"), metadata.get("epsilon")
  right = {
    "kind": text(metadata["kind"]) and metadata["kind"] in _KINDS,
    "image_size": isinstance(size, list) and len(size) == 3 and all(whole(s, 2**16) for s in size),
    "latent_dim": whole(metadata["latent_dim"], 2**24),
    "stochastic": isinstance(metadata["stochastic"], bool),
    "samples": whole(metadata.get("samples", 1), 10**6),
    "classes": whole(classes, 2**24) or (classes is None and metadata["kind"] != "classifier"),
    "class_names": names is None
    or (isinstance(names, list) and all(map(text, names)) and len(names) == classes),
    "outputs": whole(metadata.get("outputs", 1), 2**24),
    "epsilon": epsilon is None or (type(epsilon) in (int, float) and 0 <= epsilon < 1e6),
    "settings": isinstance(metadata.get("settings", {}), dict),
    "versions": isinstance(metadata.get("versions", {}), dict),
    **{name: text(metadata.get(name, "")) for name in ("norm", "dataset", "target", "stream")},
  }
  if wrong := [name for name, fine in right.items() if not fine]:
    value = str(metadata.get(wrong[0]))[:60]
    raise errors.UserError(f"{str(file)!r} cannot be right: {wrong[0]} is {value}; export again")


def fingerprint(models):
  """A hash of the weights: the same weights, the same hash."""
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
    models: whose weights the fingerprint is of.
    fields: {name: value} of what else it says; those that are None are left out, and so are paths
      among the settings.
  """
  fields = {name: value for name, value in fields.items() if value is not None}
  fields["settings"] = settings_without_paths(fields.get("settings", {}))
  if "encoder_settings" in fields:
    fields["encoder_settings"] = settings_without_paths(fields["encoder_settings"])
  metadata = {
    "format_version": FORMAT_VERSION,
    "kind": kind,
    "value_range": [0, 1],
    **fields,
    "fingerprint": fingerprint(models),
    "versions": versions(),
  }
  with open(folder / "metadata.json", "w", encoding="utf-8") as file:
    json.dump(metadata, file, indent=2, default=_json)
    file.write("\n")
  card.write(folder, json.loads(json.dumps(metadata, default=_json)))


def _json(value):
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  return str(value)
