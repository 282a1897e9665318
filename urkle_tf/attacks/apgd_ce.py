"""APGD on the cross-entropy, a part of AutoAttack."""

from typing import ClassVar

from urkle_tf.attacks.apgd import APGD


class APGDCE(APGD):
  """APGD on the cross-entropy, with the published budget."""

  budget = ()  # the published one
  refused: ClassVar = {"training": "maximises a loss of labels, and training has its own: use apgd"}
