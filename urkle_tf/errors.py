"""Mistakes of the user, reported in one line."""

import difflib


class UserError(ValueError):
  """A mistake that the user can fix.  Its message is one line that says how.

  ```python
  try:
    urkle_tf.load_encoder("no-such-folder")
  except urkle_tf.UserError as error:
    print(error)  # no folder 'no-such-folder': give the folder of an encoder
  ```
  """


def unknown(kind, name, known):
  """Returns the `UserError` for a name that does not exist.

  Args:
    kind: what the name should have been, for example "data set".
    name: the name that was given.
    known: the names that exist.

  Returns:
    A `UserError` that names the nearest known name, and all of them if few.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  listing = f" (known: {', '.join(known)})" if len(known) <= 24 else ""
  return UserError(f"unknown {kind} {name!r}{hint}{listing}")
