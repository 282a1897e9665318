"""The pictures of a training."""

import numpy as np

from urkle_tf.training import pictures


def test_sheet_lays_out_and_magnifies():
  ones, zeros = np.ones((2, 8, 8, 1), "float32"), np.zeros((2, 8, 8, 1), "float32")
  picture = pictures.sheet([zeros, ones, zeros])[0, ..., 0]
  assert picture.shape == (2 * 68, 3 * 68)
  assert not picture[:64, :64].any()
  assert picture[:64, 68:132].all()
  assert picture[64:68].all()
  assert picture[:, 64:68].all()
