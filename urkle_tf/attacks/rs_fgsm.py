"""FGSM from a random start."""

from urkle_tf.attacks.pgd import PGD


class RSFGSM(PGD):
  """FGSM from a random start (Wong et al., 2020): one step of 1.25 epsilon.

  ```python
  attack = urkle_tf.attacks.RSFGSM(urkle_tf.attacks.Linf(epsilon=8 / 255))
  adversaries = attack(objective, images)
  ```
  """

  takes = ("carried",)
  _travel = 1.25

  def __init__(self, threat, carry=False):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      carry: as in `PGD`.
    """
    super().__init__(threat, steps=1, carry=carry)
