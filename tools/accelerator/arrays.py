"""What export.py, train.py, judge.py and encoder.py share: their files, read with NumPy alone."""

import io
import json
import pathlib
import tarfile
import tempfile

import numpy as np

PROGRAM, DESCRIPTION, STATE = "step.mlirbc", "step.json", "state.npz"
LARGE = 4000  # elements: larger arrays are kernels
_PART = 15e6  # bytes of a file of weights


def read_program(folder):
  """Reads what export.py wrote beside the program.

  Args:
    folder: a `pathlib.Path`.

  Returns:
    (what step.json says, {name: array} of the state that the training begins with).
  """
  described = json.loads((folder / DESCRIPTION).read_text())
  with np.load(folder / STATE, allow_pickle=False) as stored:
    state = dict(stored)
  for name, (shape, deviation, seed) in described["drawn"].items():
    state[name] = np.random.default_rng(seed).normal(0, deviation, shape).astype(np.float32)
  return described, state


def read_images(path):
  """Reads images; those of an archive are decoded once, and kept beside other temporary files.

  Args:
    path: an archive with files SPLIT/CLASS/NAME of one size, which Pillow reads; or an .npz of
      what is returned.

  Returns:
    {"train_images": uint8 [n, h, w, c], "train_labels": int32 [n], and so on for each split},
    each split in its own order.
  """
  path = pathlib.Path(path)
  if path.suffix != ".npz":
    archive = path
    path = pathlib.Path(tempfile.gettempdir(), f"{archive.name}-{archive.stat().st_size}.npz")
    if not path.exists():
      side = path.with_suffix(".side.npz")
      np.savez(side, **_decoded(archive))
      side.replace(path)
  with np.load(path, allow_pickle=False) as stored:
    return dict(stored)


def _decoded(archive):
  from PIL import Image

  found = {}
  with tarfile.open(archive) as files:
    for file in files:
      if file.isfile():
        split, label, _ = file.name.removeprefix("./").split("/")
        image = Image.open(io.BytesIO(files.extractfile(file).read())).convert("RGB")
        found.setdefault(split, []).append((label, np.asarray(image)))
  classes = sorted({label for rows in found.values() for label, _ in rows})
  data = {}
  for split, rows in found.items():
    order = np.random.default_rng(0).permutation(len(rows))
    data[f"{split}_images"] = np.stack([rows[i][1] for i in order])
    data[f"{split}_labels"] = np.array([classes.index(rows[i][0]) for i in order], np.int32)
  return data


def read_weights(files):
  """The arrays of `write_weights`, in order.

  Args:
    files: all parts.
  """
  found = {}
  for file in files:
    with np.load(file, allow_pickle=False) as stored:
      found.update(stored)
  return [found[place] for place in sorted(found)]


def write_weights(prefix, values):
  """Writes arrays, kernels in float16, into PREFIX_0.npz, PREFIX_1.npz and so on.

  Args:
    prefix: a path and a name.
    values: a list of arrays.
  """
  parts, size = [{}], 0
  for place, value in enumerate(values):
    value = np.asarray(value, np.float16) if value.size > LARGE else np.asarray(value)
    if size + value.nbytes > _PART and parts[-1]:
      parts.append({})
      size = 0
    parts[-1][f"{place:04d}"] = value
    size += value.nbytes
  for number, part in enumerate(parts):
    np.savez(f"{prefix}_{number}.npz", **part)
