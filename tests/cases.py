"""What tables of cases need: cases that take long, and mistakes that end in one line."""

import contextlib
import os

import pytest

from urkle_tf import errors

DATA_DIR = os.environ.get("URKLE_DATA_DIR")
needs_data = pytest.mark.skipif(
  not DATA_DIR, reason="URKLE_DATA_DIR is not set: it holds mnist and cifar10, prepared by TFDS"
)


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


def refuses(words, call, *arguments, **options):
  """Asserts that a call ends in a `UserError` of one line.

  Args:
    words: texts that the line holds, " & " between them.
    call: what is called.
    *arguments: its arguments.
    **options: its options.
  """
  with refused(*words.split(" & ")):
    call(*arguments, **options)
