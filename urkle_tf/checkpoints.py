"""Checkpoints: every variable of a run in one checked file, moved into place when whole."""

import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from urkle_tf import errors

_KEEP = 3


def _names(variables):
  # By position and shape: Keras paths hold counters that differ from process to process.
  return [
    f"{index:05d}_{'x'.join(map(str, variable.shape)) or 'scalar'}"
    for index, variable in enumerate(variables)
  ]


class Checkpoints:
  """The checkpoints of a run, by step.

  Args:
    folder: where they lie; made when the first is saved.
    variables: the Keras variables that make up the state, in a fixed order.
  """

  def __init__(self, folder, variables):
    self._folder, self._variables = pathlib.Path(folder), list(variables)

  def _files(self):
    return sorted(self._folder.glob("step_*.npz"), reverse=True)

  def save(self, step):
    """Writes the state to the side and moves it into place; keeps the newest three."""
    self._folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
      name: np.asarray(variable.numpy())
      for name, variable in zip(_names(self._variables), self._variables, strict=True)
    }
    side = self._folder / ".side.npz"
    with open(side, "wb") as file:
      np.savez(file, step=np.int64(step), **arrays)
      file.flush()
      os.fsync(file.fileno())
    os.replace(side, self._folder / f"step_{step:09d}.npz")
    for old in self._files()[_KEEP:]:
      old.unlink()

  def _read(self, file):
    with np.load(file, allow_pickle=False) as stored:
      # Everything is read (and its checksum checked) before anything of it is believed, the names
      # included, or assigned.
      found = {name: stored[name] for name in stored.files}
    names = _names(self._variables)
    if set(found) != {"step", *names}:
      raise errors.UserError(f"{file} holds the state of another model: give another --output_dir")
    return int(found["step"]), [found[name] for name in names]

  def restore(self):
    """Restores the newest readable checkpoint.

    Returns:
      Its step, or 0 if there is none.

    Raises:
      UserError: if a checkpoint belongs to another model.
    """
    for file in self._files():
      try:
        step, values = self._read(file)
      except (errors.UserError, PermissionError, MemoryError):
        raise
      except Exception as error:  # zip and NumPy raise many kinds for a damaged file
        logging.warning("%s is damaged (%s): going back to the one before", file, error)
        continue
      for variable, value in zip(self._variables, values, strict=True):
        variable.assign(value)
      return step
    return 0
