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

  def __init__(self, threat, carry=False):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      carry: as in `PGD`.
    """
    super().__init__(threat, steps=1, carry=carry)

  def _default_size(self, epsilon):
    return 1.25 * epsilon
