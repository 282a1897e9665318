"""Threat models: what an adversary may do to an image, as geometry only.

A threat model is a norm ball around each image, intersected with the pixel box.  It draws random
points of that set, gives the unit step that increases a linear function fastest, and projects onto
the set.  It also gives the smallest change, of any size, that raises a linear function by a given
amount.  Everything is float32, per example, and compiles under `tf.function` and XLA.
"""

from urkle_tf import errors
from urkle_tf.attacks.threat.base import ThreatModel
from urkle_tf.attacks.threat.l1 import L1
from urkle_tf.attacks.threat.l2 import L2
from urkle_tf.attacks.threat.linf import Linf

_NORMS = {"linf": Linf, "l2": L2, "l1": L1}


def from_norm(norm, epsilon, **options):
  """Builds the threat model of a norm.

  Args:
    norm: "linf", "l2" or "l1".
    epsilon: the radius in pixel units.
    **options: further arguments of the class.

  Returns:
    A `ThreatModel`: an `Linf`, `L2` or `L1`.

  Raises:
    UserError: if there is no such norm, or `epsilon` is out of its range.

  ```python
  threat = urkle_tf.attacks.from_norm("l2", epsilon=0.5)  # an L2
  ```
  """
  errors.one_of("norm", norm, _NORMS)
  return _NORMS[norm](epsilon, **options)


__all__ = ["L1", "L2", "Linf", "ThreatModel", "from_norm"]
