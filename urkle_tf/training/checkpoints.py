"""Checkpoints: all variables of a run in one file with checksums, complete or not at all."""

import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from urkle_tf import distribution, errors
from urkle_tf.output import files

_KEEP = 3


def names(variables):
  """The names of variables in a checkpoint.

  They consist of position and shape, because Keras paths hold counters that differ between
  processes.
  """
  return [
    f"{index:05d}_{'x'.join(map(str, variable.shape)) or 'scalar'}"
    for index, variable in enumerate(variables)
  ]


def state(learner):
  """All variables of a compiled `Trainer`, in the order that checkpoints hold them.

  This includes the metrics, because a signal may come between two rows.
  """
  return [*learner.variables, *learner.optimizer.variables, *learner.metrics_variables]


class Checkpoints:
  """The checkpoints of a run, by step.

  With several workers, only the chief reads and writes; all of them must call the methods.

  Args:
    folder: their folder, made when the first one is saved.
    variables: the Keras variables that make up the state, in a fixed order.
    scope: the strategy that the variables belong to; None for one process.
  """

  def __init__(self, folder, variables, scope=None):
    self._folder, self._variables = pathlib.Path(folder), list(variables)
    self._scope = scope or tf.distribute.get_strategy()

  def _files(self):
    return sorted(self._folder.glob("step_*.npz"), reverse=True)

  def save(self, step):
    """Writes the state of a step, and removes all but the newest three checkpoints."""
    arrays: dict[str, Any] = {  # read by all workers, each of which holds a part of a mean
      name: distribution.plain(variable)
      for name, variable in zip(names(self._variables), self._variables, strict=True)
    }
    if not distribution.is_chief(self._scope):
      return

    def content(file):
      np.savez(file, step=np.int64(step), **arrays)
      file.flush()
      os.fsync(file.fileno())

    new = self._folder / f"step_{step:09d}.npz"
    files.write(new, content)
    # Newer ones were damaged when this run began, and must not take the place of this one.
    readable = [file for file in self._files() if file <= new]
    left_over = self._folder.glob("*.side")  # by runs that were killed
    for old in [*readable[_KEEP:], *left_over]:
      old.unlink()

  def _read(self, file):
    with np.load(file, allow_pickle=False) as stored:
      # All arrays are read, which checks their checksums, before a name or a value is used.
      found = {name: stored[name] for name in stored.files}
    wanted = names(self._variables)
    if set(found) != {"step", *wanted}:
      raise errors.UserError(f"{file} holds the state of another model: give another --output_dir")
    return int(found["step"]), [found[name] for name in wanted]

  def restore(self):
    """Restores the newest readable checkpoint.

    Returns:
      Its step, or 0 if there is none.

    Raises:
      UserError: if a checkpoint belongs to another model.
    """
    step, values = 0, [np.zeros(variable.shape, variable.dtype) for variable in self._variables]
    if distribution.is_chief(self._scope):
      step, values = self._newest() or (0, values)
    step, *values = distribution.from_chief(self._scope, [step, *values])
    if step:
      for variable, value in zip(self._variables, values, strict=True):
        variable.assign(value)
    return int(step)

  def last_good(self):
    """The newest checkpoint with only finite numbers, a `pathlib.Path`, or None."""
    for file in self._files():
      try:
        _, values = self._read(file)
      except Exception:  # as in `_newest`
        continue
      floats = [value for value in values if np.issubdtype(value.dtype, np.floating)]
      if all(np.isfinite(value).all() for value in floats):
        return file
    return None

  def _newest(self):
    """(step, values) of the newest readable checkpoint, or None."""
    for file in self._files():
      try:
        return self._read(file)
      except (errors.UserError, PermissionError, MemoryError):
        raise
      except Exception as error:  # zip and NumPy raise many kinds for a damaged file
        logging.warning("%s is damaged (%s): using the one before it", file, error)
    return None
