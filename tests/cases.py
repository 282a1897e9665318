"""What tables of cases need: cases that take long, and mistakes that end in one line."""

import contextlib

import pytest

from urkle_tf import errors


def slow(*cases):
  """These cases of `pytest.mark.parametrize`, each a value or a tuple of them, for --full alone."""
  rows = (case if isinstance(case, tuple) else (case,) for case in cases)
  return [pytest.param(*row, marks=pytest.mark.full) for row in rows]


@contextlib.contextmanager
def refused(*words, match=None):
  """Asserts that its block ends in a `UserError` of one line.

  Args:
    words: texts that the line holds.
    match: a pattern that is found in the line.
  """
  with pytest.raises(errors.UserError, match=match) as caught:
    yield
  said = str(caught.value)
  assert "\n" not in said
  assert all(word in said for word in words), said
