"""The fast gradient sign method."""

from urkle_tf.attacks.pgd import PGD


class FGSM(PGD):
  """The fast gradient sign method (Goodfellow et al., 2015), for every norm.

  One step of size epsilon.  It starts at a random point a thousandth of epsilon away from the
  image, because a divergence has no gradient at the image itself.  A network in bfloat16 does not
  resolve such a small distance, and needs a larger `start`.

  ```python
  attack = urkle_tf.attacks.FGSM(urkle_tf.attacks.Linf(epsilon=8 / 255))
  adversaries = attack(objective, images)
  ```
  """

  takes = ("carried",)
  _travel = 1.0

  def __init__(self, threat, start=1e-3):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      start: the radius of the random start as a share of epsilon, in (0, 1].
    """
    super().__init__(threat, steps=1, start=start)
