"""FGSM from strong noise."""

from typing import ClassVar

from urkle_tf import errors
from urkle_tf.attacks.pgd import PGD
from urkle_tf.attacks.threat import Linf


class NFGSM(PGD):
  """FGSM from strong noise, without a projection (de Jorge et al., 2022), only for training.

      x_0 ~ uniform within 2 epsilon of x, and within the pixel bounds
      x_1 = clip(x_0 + epsilon sign(grad objective(x_0)), lower, upper)

  The adversaries lie up to 3 epsilon from their images, outside the threat model, so they do not
  measure an encoder's robustness within epsilon.

  ```python
  attack = urkle_tf.attacks.NFGSM(urkle_tf.attacks.Linf(epsilon=8 / 255))
  adversaries = attack(objective, images)  # up to 24/255 from the images
  ```
  """

  takes = ("carried",)
  _travel = 1.0
  refused: ClassVar = {"evaluation": "leaves the ball of epsilon: use pgd, rs_fgsm or autoattack"}

  def __init__(self, threat):
    """Builds the attack.

    Args:
      threat: an `Linf`.

    Raises:
      UserError: for another norm.
    """
    super().__init__(threat, steps=1)
    if threat.norm != "linf":
      raise errors.UserError(
        f"n_fgsm is for linf only, and the norm is {threat.norm}: use --attack=rs_fgsm"
      )
    self.threat, self.start = _Pixels(**threat.options()), 2.0


class _Pixels(Linf):
  """Only the pixel box; `epsilon` is the unit of noise and steps."""

  def project(self, adversaries, images):
    return self._clip(adversaries)
