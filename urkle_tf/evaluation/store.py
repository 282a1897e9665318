"""Files with an evaluation's results so far, from which a killed evaluation resumes."""

import json
import zipfile

import numpy as np

from urkle_tf import errors
from urkle_tf.output import files

FOLDER, OWNER = "partial", "owner.json"  # inside a run's folder, while it is not finished


class Store:
  """Stores results by name.

  A file appears under its name only when it is complete, so a process may be killed at any moment.
  A file that cannot be read (after a power failure) counts as missing.

  Args:
    folder: a `pathlib.Path`, made when there is something to store; None stores nothing.
    owner: what the results belong to, such as a model's fingerprint, as a dict for JSON.

  Raises:
    UserError: if the folder holds results that belong to another owner.
  """

  def __init__(self, folder=None, owner=None):
    self._folder, self._owner = folder, owner
    earlier = None if folder is None else _read_json(folder / OWNER)
    if earlier not in (None, owner):
      raise errors.UserError(
        f"{folder.parent} holds an unfinished report on another model or other data: give another "
        "--output_dir"
      )

  def find(self, name):
    """The arrays kept under a name, {name: array}; None if there are none."""
    if self._folder is None:
      return None
    try:
      with np.load(self._folder / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
      return None

  def keep(self, name, arrays):
    """Keeps {name: array} under a name; returns it."""
    if self._folder is not None:
      self._write(f"{name}.npz", lambda file: np.savez(file, **arrays))
    return arrays

  def arrays(self, name, compute):
    """The result of the first `compute()` under this name, {name: array}."""
    found = self.find(name)
    if found is None:
      found = {key: np.asarray(value) for key, value in compute().items()}
      self.keep(name, found)
    return found

  def json(self, name, compute):
    """The same for what JSON can hold."""
    if self._folder is None:
      return compute()
    found = _read_json(self._folder / f"{name}.json")
    if found is None:
      found = compute()
      self._write(f"{name}.json", json.dumps(found))
    return found

  def _write(self, name, content):
    if name != OWNER and not (self._folder / OWNER).exists():  # the owner is written first
      self._write(OWNER, json.dumps(self._owner))
    files.write(self._folder / name, content)


def _read_json(file):
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
