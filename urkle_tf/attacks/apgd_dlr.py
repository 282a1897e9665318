"""APGD on the difference of logits ratio, a part of AutoAttack."""

from typing import ClassVar

from urkle_tf import errors
from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd import APGD


class APGDDLR(APGD):
  """APGD on the difference of logits ratio, with the published budget."""

  budget = ()  # the published one
  refused: ClassVar = {"training": "climbs a loss of labels, and a training has its own: use apgd"}
  loss = staticmethod(losses.dlr)

  def plans(self, classes=None):
    if classes is not None and classes < 3:
      raise errors.UserError(
        f"apgd_dlr: the DLR loss needs at least 3 classes, but there are {classes}: use apgd_ce"
      )
    return super().plans(classes)
