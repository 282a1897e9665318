"""Tables of cases of which some take long."""

import pytest


def slow(*cases):
  """These cases of `pytest.mark.parametrize`, each a value or a tuple of them, for --full alone."""
  rows = (case if isinstance(case, tuple) else (case,) for case in cases)
  return [pytest.param(*row, marks=pytest.mark.full) for row in rows]
