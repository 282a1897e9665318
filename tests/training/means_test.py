"""Means over steps, against sums done by hand."""

import numpy as np
import tensorflow as tf

from urkle_tf.training import means


def test_means_of_the_steps_that_were_taken():
  found = means.Means(["loss", "kl"])
  assert np.isnan(list(found.result().values())).tolist() == [True, True]
  found.update_state({"kl": tf.constant(1.0), "loss": tf.constant(4.0)})
  found.update_state({"loss": float("nan"), "kl": float("inf")}, taken=tf.constant(False))
  found.update_state({"loss": 1.0, "kl": 2.0})
  assert float(found.count) == 2
  assert {name: float(value) for name, value in found.result().items()} == {"loss": 2.5, "kl": 1.5}
  found.reset_state()
  assert float(found.count) == 0
  found.update_state({"loss": float("nan"), "kl": 1.0}, taken=tf.constant(False))
  assert np.isnan(list(found.result().values())).tolist() == [True, True]
  assert len(found.variables) == 1  # what a checkpoint holds of it
