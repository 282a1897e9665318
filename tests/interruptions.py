"""What a kill leaves of a run, without a second training that dies."""

import contextlib
import shutil
from unittest import mock

from urkle_tf.training import checkpoints


@contextlib.contextmanager
def at_saves(acts):
  """Has a run do something when it has written a checkpoint.

  Args:
    acts: {how many checkpoints it has written: a function of its folder}.
  """
  save, saved = checkpoints.Checkpoints.save, []

  def save_and_act(self, step):
    save(self, step)
    if self._folder.name == "checkpoints":
      saved.append(step)
      if act := acts.get(len(saved)):
        act(self._folder.parent)

  with mock.patch.object(checkpoints.Checkpoints, "save", save_and_act):
    yield


def copied(copies):
  """Copies a run's folder when it has written a checkpoint: as a kill at that moment leaves it.

  Args:
    copies: {how many checkpoints it has written: folder of the copy}.
  """
  return at_saves({n: lambda run, to=to: shutil.copytree(run, to) for n, to in copies.items()})
