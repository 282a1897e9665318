"""TRADES: predictions that stay the same in a neighbourhood (Zhang et al., 2019)."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks.tuples import flat, folded
from urkle_tf.robustness.base import Robustness


class Trades(Robustness):
  """Adds beta * mean_x max_{x' in A(x)} D(f(x), f(x')), with D from the pretext.

  For `supervised`, D = KL[p(y|x) || p(y|x')] (TRADES).  For `ae`, it is the squared difference of
  the reconstructions (Urkle paper, appendix B.1, eq. 36).  The pretext's own loss is computed on
  the clean image.

  Args:
    beta: the weight of the term, at least 0; 6 is usual for `supervised`.

  Raises:
    UserError: if it is negative.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone, loc="dense")
  scheme = urkle_tf.robustness.Trades(beta=6.0)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.Supervised(outputs=10), scheme, attack)
  ```
  """

  terms = ("divergence",)

  def __init__(self, beta=6.0):
    errors.at_least(0, "trades", beta=beta)
    self.beta = beta

  def check(self, pretext):
    """There must be a deterministic prediction for each image."""
    if not pretext.predicts or pretext.stochastic:
      raise errors.UserError(
        f"trades needs a pretext with deterministic predictions, and {pretext.name} has none: use "
        "--pretext=supervised or --pretext=ae, or --robustness=urkle"
      )

  def objective(self, encoder, pretext, views, aux):
    """The divergence from the prediction for the clean image, all in inference mode."""
    represent, predict = encoder.frozen(), pretext.inference()
    clean = tf.stop_gradient(predict(represent(flat(views)).loc))
    return lambda x: pretext.divergence(clean, predict(represent(x).loc))

  def losses(self, pretext, representations, views, aux):
    """{"divergence": (beta, [n])}, minimised through both predictions."""
    predictions = pretext.predict(representations.flat, training=True)
    predictions = folded(predictions, representations.z.shape[1])
    return {"divergence": (self.beta, pretext.divergence(predictions[:, 0], predictions[:, views]))}
