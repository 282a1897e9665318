"""Files that appear under their name only when they are whole."""

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
  with open(side, "wb") as stream:
    if callable(content):
      content(stream)
    else:
      stream.write(content.encode("utf-8") if isinstance(content, str) else content)
  os.replace(side, file)
