"""APGD on the difference of logits ratio, a part of AutoAttack."""

from urkle_tf import errors
from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd_ce import APGDCE


class APGDDLR(APGDCE):
  """APGD on the difference of logits ratio, with the published budget."""

  loss = staticmethod(losses.dlr)

  def plans(self, classes=None):
    if classes is not None and classes < 3:
      raise errors.UserError(
        f"apgd_dlr: the DLR loss needs at least 3 classes, but there are {classes}: use apgd_ce"
      )
    return super().plans(classes)
