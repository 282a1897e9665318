"""Writes files that get their name only when they are complete."""

import contextlib
import os


def write(file, content):
  """Writes a temporary file and moves it into place, over an existing one.

  Args:
    file: a `pathlib.Path`; its folder is made.
    content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

  Raises:
    OSError: if writing fails; it names the file.  An existing file is kept.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  side = file.with_suffix(".side")
  try:
    with open(side, "wb") as stream:
      if callable(content):
        content(stream)
      else:
        # The escapes are Python's for names of files that are not UTF-8.
        text = isinstance(content, str)
        stream.write(content.encode("utf-8", "surrogateescape") if text else content)
    os.replace(side, file)
  except BaseException as error:  # also Ctrl-C
    with contextlib.suppress(OSError):
      os.unlink(side)
    if not isinstance(error, OSError):
      raise
    # The system's error does not name the file if the disk is full.
    raise OSError(error.errno, error.strerror or str(error), str(file)) from error
