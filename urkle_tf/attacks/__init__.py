"""Adversarial attacks: `attack(objective, images, seed) -> adversaries`.

An attack maximises any `objective(images) -> [batch]` per example inside a threat model.  It knows
no network and no label, so training and evaluation use the same code.  Each attack is one file,
found by its name.  `losses` holds the objectives for classifiers.  `autoattack` runs the ensemble
of that name on any callable that scores images.

```python
attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255), steps=7)
nats = urkle_tf.kl_robustness(encoder, images, attack)  # [n], one an image
```
"""

from urkle_tf import spec
from urkle_tf.attacks import losses
from urkle_tf.attacks.apgd import APGD
from urkle_tf.attacks.autoattack import autoattack
from urkle_tf.attacks.base import Attack
from urkle_tf.attacks.fab_t import FAB
from urkle_tf.attacks.fgsm import FGSM
from urkle_tf.attacks.hop_skip_jump import HopSkipJump
from urkle_tf.attacks.n_fgsm import NFGSM
from urkle_tf.attacks.pgd import PGD
from urkle_tf.attacks.plan import Plan
from urkle_tf.attacks.rs_fgsm import RSFGSM
from urkle_tf.attacks.square import Square
from urkle_tf.attacks.threat import L1, L2, Linf, ThreatModel, from_norm

SHARED = ("losses", "plan", "threat")  # modules that hold no attack: see `spec.names`


def from_spec(text, threat, steps, step_size=None):
  """The attack for training, from a spec such as `"pgd(start=0.5)"` or `"rs_fgsm"`.

  Args:
    text: the spec: the name of a file in this folder, and options of its class.
    threat: the `ThreatModel`.
    steps: gradient steps, for attacks that let the user choose.
    step_size: their size, in pixel units; None for 2.5 epsilon / steps.

  Returns:
    An `Attack`.

  Raises:
    UserError: for an unknown attack or option, a norm that the attack does not support, or an
      attack that training cannot use.

  ```python
  threat = urkle_tf.attacks.Linf(epsilon=8 / 255)
  attack = urkle_tf.attacks.from_spec("pgd(start=0.5)", threat, steps=7)
  ```
  """
  kind = spec.plugin("attacks", text, Attack)
  kind.check("training")
  flags = {"steps": steps, "step_size": step_size}
  flags = {name: value for name, value in flags.items() if name in kind.budget}
  return spec.build("attacks", text, Attack, **kind.accepted({"threat": threat, **flags}))


def for_evaluation(text, threat, **flags):
  """The attack for an evaluation, from a spec such as `"pgd(steps=100)"` or `"autoattack"`.

  Args:
    text: the spec.
    threat: the `ThreatModel`.
    **flags: `steps`, `step_size` and `restarts`.  They apply to attacks whose `budget` names them,
      if the spec does not set them.

  Returns:
    An `Attack`.

  Raises:
    UserError: as in `from_spec`, or for an attack that evaluation cannot use.

  ```python
  threat = urkle_tf.attacks.Linf(epsilon=8 / 255)
  attack = urkle_tf.attacks.for_evaluation("apgd_t(targets=3)", threat, steps=20)
  ```
  """
  kind = spec.plugin("attacks", text, Attack)
  kind.check("evaluation")
  flags = {name: value for name, value in flags.items() if name in kind.budget}
  given = kind.accepted({"threat": threat, **kind.in_evaluation})
  return spec.build("attacks", text, Attack, kind.accepted(flags), **given)


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
  "HopSkipJump",
  "Linf",
  "Plan",
  "Square",
  "ThreatModel",
  "autoattack",
  "for_evaluation",
  "from_norm",
  "from_spec",
  "losses",
]
