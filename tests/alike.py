"""Rows of arrays, such as the weights of two networks, that must be the same."""

import numpy as np


def same(ones, others, **tolerance):
  """Asserts that arrays equal others one by one.

  Args:
    ones: arrays.
    others: as many; the tolerance is relative to these.
    **tolerance: atol and rtol of `np.testing.assert_allclose`; without any, to the bit.
  """
  for one, other in zip(ones, others, strict=True):
    if tolerance:
      np.testing.assert_allclose(one, other, **tolerance)
    else:
      np.testing.assert_array_equal(one, other)
