"""Adversarial attacks: `attack(objective, images, seed) -> adversaries`.

An attack maximises any `objective(images) -> [batch]` per example inside a
threat model.  It knows no network and no label, so that training and evaluation
use the same code.  `losses` are objectives of classifications; `autoattack` runs
the ensemble of that name on any callable that scores images.
"""

from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd import APGD
from urkle_tf.attacks.autoattack import autoattack
from urkle_tf.attacks.base import Attack
from urkle_tf.attacks.fab import FAB
from urkle_tf.attacks.pgd import FGSM, PGD, RSFGSM
from urkle_tf.attacks.square import Square
from urkle_tf.attacks.threat import L1, L2, Linf, ThreatModel, from_norm

__all__ = [
  "APGD",
  "FAB",
  "FGSM",
  "L1",
  "L2",
  "PGD",
  "RSFGSM",
  "Attack",
  "Linf",
  "Square",
  "ThreatModel",
  "autoattack",
  "from_norm",
  "losses",
]
