"""APGD on the targeted difference of logits ratio, a part of AutoAttack."""

import dataclasses

from urkle_tf import errors
from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd_ce import APGDCE


class APGDT(APGDCE):
  """APGD on the targeted difference of logits ratio, target by target."""

  loss = staticmethod(losses.targeted_dlr)

  def __init__(self, threat, steps=100, restarts=1, targets=9, momentum=0.75, rho=0.75):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1.
      restarts: runs from different random starts, >= 1.
      targets: how many wrong classes are aimed at, one after the other, >= 1.
      momentum: as in `APGD`.
      rho: as in `APGD`.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, steps, restarts, momentum, rho)
    errors.whole(1, self.name, targets=targets)
    self.targets = int(targets)

  def plans(self, classes=None):
    """The plan.  With fewer than 4 classes, which that loss needs, it uses the targeted margin."""
    (plan,) = super().plans(classes)
    if classes is None or classes >= 4:
      return [plan]
    note = f"the targeted margin: {classes} classes are too few for the targeted DLR loss"
    return [dataclasses.replace(plan, loss=losses.targeted_margin, note=note)]
