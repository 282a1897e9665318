"""Files that appear under their name only when they are complete."""

import contextlib
import os


def write(file, content):
  """Writes a temporary file and moves it into place, over an existing one.

  Args:
    file: a `pathlib.Path`; its folder is made.
    content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

  Raises:
    OSError: if writing fails; an existing file is kept.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  side = file.with_suffix(".side")
  try:
    with open(side, "wb") as stream:
      if callable(content):
        content(stream)
      else:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
  except OSError as error:
    raise failed(error, file, side) from error
  os.replace(side, file)


def failed(error, file, side):
  """An `OSError` that names the file that could not be written; the incomplete one is removed.

  On a full disk the system's error does not name the file, and removing the part frees space.

  Args:
    error: the `OSError`.
    file: the file to write.
    side: the incomplete file.
  """
  with contextlib.suppress(OSError):
    os.unlink(side)
  return OSError(error.errno, error.strerror or str(error), str(file))
