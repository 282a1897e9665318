"""Barlow Twins: a dimension agrees between views, and does not correlate with any other."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import heads
from urkle_tf.pretexts._pairs import of_batch
from urkle_tf.pretexts.base import Pretext


def cross_correlation(first, second):
  """The correlation, over the batch, of each dimension of one with each dimension of the other.

  Args:
    first: float32 [..., N, d].
    second: float32 [..., N, d].

  Returns:
    float32 [..., d, d]: C_ij of dimension i of `first` and j of `second`, in [-1, 1].
  """
  first, second = _standardised(first), _standardised(second)
  examples = tf.cast(tf.shape(first)[-2], tf.float32)
  return tf.matmul(first, second, transpose_a=True) / examples


def _standardised(z):
  mean, variance = tf.nn.moments(z, [-2], keepdims=True)
  return (z - mean) * tf.math.rsqrt(variance + 1e-5)


class BarlowTwins(Pretext):
  """Brings the cross-correlation of two views to the identity (Zbontar et al., 2021, eq. 1).

      1/d sum_i (1 - C_ii)^2  +  redundancy / d  sum_{i != j} C_ij^2

  averaged over all pairs of members of the tuple, including adversaries.  C is the
  cross-correlation of the projections over the global batch.

  This is the paper's loss divided by d.  The first term is in [0, 4], and near 1 at the start for
  any d and batch, so the weight of an added KL term need not change with them.  As in the paper,
  the second term grows with d at the same mean C_ij^2.  C_ij of unrelated dimensions has variance
  1/N, so with a batch of N the second term does not fall below redundancy (d - 1) / N.

  The loss belongs to the whole batch: each example gets the same number.

  Args:
    redundancy: the paper's lambda, at least 0.
    projector: width of the projector's two hidden layers, each with batch norm and ReLU.
    projection: d, its output width; in the paper, wide ones (8192) are better.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.BarlowTwins(redundancy=0.0051))
  ```
  """

  positives = True
  couples = True
  terms = ("invariance", "redundancy")

  def __init__(self, redundancy=0.0051, projector=512, projection=512):
    super().__init__(name="barlow_twins")
    errors.at_least(0, "barlow_twins", redundancy=redundancy)
    errors.whole(1, "barlow_twins", projector=projector, projection=projection)
    self.redundancy = redundancy
    self._widths = [projector, projector, projection]

  def attach(self, encoder):
    """Makes the projector."""
    self.projector = heads.mlp(encoder.latent_dim, self._widths, "projector")

  def loss(self, representations, aux, training=True):
    """{"invariance": [n], "redundancy": [n]}, the second times its weight."""
    _, first, second, examples = of_batch(self.projector, representations, training)
    correlation = cross_correlation(first, second)
    diagonal = tf.linalg.diag_part(correlation)  # [pairs, d]
    off_diagonal = tf.linalg.set_diag(correlation, tf.zeros_like(diagonal))
    invariance = tf.reduce_mean(tf.square(1 - diagonal))
    redundancy = tf.reduce_mean(tf.reduce_sum(tf.square(off_diagonal), -1))
    return {
      "invariance": examples * invariance,
      "redundancy": examples * self.redundancy * redundancy,
    }
