"""What a kill leaves of a run, without a second training that dies."""

import contextlib
import shutil
from unittest import mock

from urkle_tf.training import checkpoints


@contextlib.contextmanager
def copied(copies):
  """Copies a run's folder when it has written a checkpoint: as a kill at that moment leaves it.

  Args:
    copies: {how many checkpoints it has written: folder of the copy}.
  """
  save, saved = checkpoints.Checkpoints.save, []

  def save_and_copy(self, step):
    save(self, step)
    if self._folder.name == "checkpoints":
      saved.append(step)
      if folder := copies.get(len(saved)):
        shutil.copytree(self._folder.parent, folder)

  with mock.patch.object(checkpoints.Checkpoints, "save", save_and_copy):
    yield
