"""VICReg: views agree, every dimension varies, and no two dimensions vary together."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import heads
from urkle_tf.pretexts._pairs import of_batch
from urkle_tf.pretexts.base import Pretext


class VICReg(Pretext):
  """Variance, invariance and covariance of the projections (Bardes et al., 2022, algorithm 1).

      invariance  s(a, b) = 1/d  mean_n ||a_n - b_n||^2
      variance    v(a)    = 1/d  sum_i  max(0, 1 - sqrt(Var a_i + 1e-4))
      covariance  c(a)    = 1/d  sum_{i != j}  Cov(a_i, a_j)^2

      (lambda s(a, b)  +  mu (v(a) + v(b))  +  nu (c(a) + c(b)))  /  (lambda + mu + nu)

  averaged over all pairs (a, b) of members of the tuple, including adversaries.  Var and Cov are
  those of the global batch of N, over N - 1.

  The paper does not divide by the sum of the weights: with its 25, 25 and 1, the loss is about 50
  times that of other pretexts.  Divided, it is near 1, like theirs, so learning rates and the
  weight of a KL term carry over.  All three parts are means over the d dimensions, so s and v do
  not depend on d and the batch.  As in the paper, c grows with d at the same mean Cov^2.

  The loss belongs to the whole batch: each example gets the same number.

  Args:
    invariance: lambda, at least 0; only the ratios of the weights matter.
    variance: mu, at least 0.
    covariance: nu, at least 0; one of the three must be above 0.
    projector: width of the projector's two hidden layers, each with batch norm and ReLU.
    projection: d, its output width; in the paper, wide ones (8192) are better.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.VICReg(invariance=25.0))
  ```
  """

  positives = True
  couples = True
  terms = ("invariance", "variance", "covariance")

  def __init__(self, invariance=25.0, variance=25.0, covariance=1.0, projector=512, projection=512):
    super().__init__(name="vicreg")
    errors.at_least(0, "vicreg", invariance=invariance, variance=variance, covariance=covariance)
    errors.whole(1, "vicreg", projector=projector, projection=projection)
    total = invariance + variance + covariance
    if not 0 < total < float("inf"):
      raise errors.UserError(
        "vicreg: invariance, variance and covariance must be finite, and one above 0, got "
        f"{invariance}, {variance}, {covariance}"
      )
    self._shares = (invariance / total, variance / total, covariance / total)
    self._widths = [projector, projector, projection]

  def attach(self, encoder):
    """Makes the projector."""
    self.projector = heads.mlp(encoder.latent_dim, self._widths, "projector")

  def loss(self, representations, aux, training=True):
    """{"invariance": [n], "variance": [n], "covariance": [n]}, each times its share."""
    members, first, second, examples = of_batch(self.projector, representations, training)
    invariance = tf.reduce_mean(tf.square(first - second))
    # Each member is in the same number of pairs: the mean of v(a) + v(b) is twice the mean of v.
    covariances = covariance(members)  # [t, d, d]
    variances = tf.linalg.diag_part(covariances)
    variance = 2 * tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(variances + 1e-4)))
    off_diagonal = tf.linalg.set_diag(covariances, tf.zeros_like(variances))
    redundancy = 2 * tf.reduce_mean(tf.reduce_sum(tf.square(off_diagonal), -1))
    terms = zip(self.terms, self._shares, (invariance, variance, redundancy), strict=True)
    return {name: examples * share * value for name, share, value in terms}


def covariance(z):
  """The unbiased covariance over the batch: float32 [..., N, d] -> [..., d, d], N at least 2."""
  centred = z - tf.reduce_mean(z, -2, keepdims=True)
  examples = tf.cast(tf.shape(z)[-2], tf.float32)
  return tf.matmul(centred, centred, transpose_a=True) / (examples - 1)
