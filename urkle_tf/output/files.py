"""Files that appear under their name only when they are whole."""

import contextlib
import os


def write(file, content):
  """Writes a file to the side and moves it into place, whatever stands there.

  Args:
    file: a `pathlib.Path`; its folder is made.
    content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

  Raises:
    OSError: if writing fails; what stood under the name is kept.
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
  """An `OSError` that names the file that could not be written; half of it is removed.

  A full disk is reported by `write`, which does not know the file, and is less full without it.

  Args:
    error: the `OSError`.
    file: what was to be written.
    side: what there is of it.
  """
  with contextlib.suppress(OSError):
    os.unlink(side)
  return OSError(error.errno, error.strerror or str(error), str(file))
