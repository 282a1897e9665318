"""Adversarial attacks: `attack(objective, images, seed) -> adversaries`.

An attack maximises any `objective(images) -> [batch]` per example inside a
threat model.  It knows no network and no label, so that training and evaluation
use the same code.  `losses` are objectives of classifications; `autoattack` runs
the ensemble of that name on any callable that scores images.
"""

from urkle_tf import spec
from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd import APGD
from urkle_tf.attacks.autoattack import autoattack
from urkle_tf.attacks.base import Attack
from urkle_tf.attacks.fab import FAB
from urkle_tf.attacks.pgd import FGSM, NFGSM, PGD, RSFGSM
from urkle_tf.attacks.square import Square
from urkle_tf.attacks.threat import L1, L2, Linf, ThreatModel, from_norm

_TRAINING = {
  "pgd": lambda threat, steps, step_size, start=1.0, restarts=1, keep="last", carry=False: PGD(
    threat, steps, step_size, start, restarts, keep, carry=carry
  ),
  "rs_fgsm": lambda threat, steps, step_size, carry=False: RSFGSM(threat, carry),
  "fgsm": lambda threat, steps, step_size, start=1e-3: FGSM(threat, start),
  "n_fgsm": lambda threat, steps, step_size: NFGSM(threat),
}


def from_spec(text, threat, steps, step_size=None):
  """The attack of a training, of a spec such as `"pgd(start=0.5)"` or `"rs_fgsm"`.

  Args:
    text: the spec: `pgd(start, restarts, keep, carry)`, `rs_fgsm(carry)`, `fgsm(start)` or
      `n_fgsm`.
    threat: the `ThreatModel`.
    steps: of PGD; the others take one.
    step_size: likewise, in pixel units; None for 2.5 epsilon / steps.

  Raises:
    UserError: for another attack, option or norm.
  """
  given = {"threat": threat, "steps": steps, "step_size": step_size}
  return spec.call(_TRAINING, text, "attack", **given)


__all__ = [
  "APGD",
  "FAB",
  "FGSM",
  "L1",
  "L2",
  "NFGSM",
  "PGD",
  "RSFGSM",
  "Attack",
  "Linf",
  "Square",
  "ThreatModel",
  "autoattack",
  "from_norm",
  "from_spec",
  "losses",
]
