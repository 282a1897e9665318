"""Moves an export into place when it is complete."""

import os
import pathlib
import shutil

import tensorflow as tf

from urkle_tf import errors


def replace(folder, write):
  """Lets `write` fill a temporary folder, and moves that into place once it is complete.

  Args:
    folder: where it goes; an existing export is replaced once the new one is complete.
    write: called with the temporary folder, a `pathlib.Path`.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if the folder is a file, or holds something else.
    OSError: if writing fails; the folder then keeps its content.
  """
  folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
  if folder.exists() and not folder.is_dir():
    raise errors.UserError(f"{str(folder)!r} is a file: give a folder to export to")
  if folder.is_dir() and any(folder.iterdir()) and not (folder / "metadata.json").is_file():
    raise errors.UserError(f"{str(folder)!r} holds something else: give a new or empty folder")
  side, old = folder.with_name(f".{folder.name}.side"), folder.with_name(f".{folder.name}.old")
  if old.is_dir() and not folder.exists():  # killed between the two moves below
    os.replace(old, folder)
  for left_over in (side, old):
    shutil.rmtree(left_over, ignore_errors=True)
  side.mkdir(parents=True)
  try:
    write(side)
    if folder.exists():
      os.replace(folder, old)
    os.replace(side, folder)
  except tf.errors.OpError as error:  # TensorFlow's writers raise these for a full disk
    raise OSError(f"cannot write {str(folder)!r}: {error.message.splitlines()[0]}") from error
  finally:
    shutil.rmtree(side, ignore_errors=True)
  shutil.rmtree(old, ignore_errors=True)
  return folder
