"""RoCL: adversaries of the contrastive loss itself (Kim et al., 2020)."""

from urkle_tf import errors
from urkle_tf.robustness import _contrast
from urkle_tf.robustness.base import Robustness


class RoCL(Robustness):
  """Robust contrastive learning: the instance-wise adversary joins its views as a positive.

  The adversary t1' of the first view maximises its contrast with the second view t2:

      t1' = argmax_{x in A(t1)} NT-Xent(x, t2)
      loss = NT-Xent(t1, t2, t1') + weight * NT-Xent(t1', t2)

  with z = loc, and NT-Xent over tuples as `pretexts.simclr.nt_xent` averages it (Kim et al.,
  "Adversarial self-supervised contrastive learning", where weight is 1/256).  The negatives of
  the attack are our reading: see `_contrast.objective`.

  Args:
    weight: of the second term, at least 0.

  Raises:
    UserError: if the weight is negative.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.RoCL(weight=1 / 256)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme, attack)
  ```
  """

  exact = True

  def __init__(self, weight=1 / 256):
    errors.at_least(0, "rocl", weight=weight)
    self.weight = weight

  def check(self, pretext):
    """The pretext must contrast two views."""
    _contrast.check("rocl", pretext)

  def targets(self, views):
    """The first view."""
    return views[:, :1]

  def objective(self, encoder, pretext, views, aux):
    """NT-Xent of the first view's neighbour and the second view, in inference mode."""
    return _contrast.objective(encoder, pretext, views, attacked=[0])

  def tuples(self, views, adversaries):
    """The views and the adversary; and the second view and the adversary."""
    return [(1.0, (0, 1, 2)), (self.weight, (1, 2))]
