"""Attacks made for a head on a Gaussian representation."""

import dataclasses
from typing import ClassVar

from urkle_tf import errors
from urkle_tf.attacks import base, losses
from urkle_tf.attacks.apgd import APGD
from urkle_tf.attacks.plan import Plan

# (loss, what is averaged over z, where a run begins): see `Plan`.
_STAGES = (
  (losses.margin, "probabilities", ""),
  (losses.margin, "logits", ""),
  (losses.margin, "probabilities", "mu"),
  (losses.cross_entropy, "logits", "mu"),
  (losses.margin, "probabilities", "fixed"),
  (losses.margin, "probabilities", "kl"),
  (losses.cross_entropy, "logits", "kl"),
)


class WorstOfAll(base.Attack):
  """APGD on several objectives from several starts, after all other attacks.

  The mean over z of the probabilities may be flat where the mean of the logits is not.  A run
  starts at a random point, at an adversary of z = mu, at an adversary under other, fixed samples of
  z, or at the neighbour that changes the representation most, which needs neither label nor head.

  Its stages attack the images that no earlier attack broke.  Its row combines all attacks: an image
  counts as correct only if none of them broke it.
  """

  refused: ClassVar = {"training": "runs several attacks on a classifier: use pgd"}

  def __init__(self, threat, steps=50, restarts=3):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps of a run, >= 1; finding its start takes the same number again.
      restarts: runs of each stage, each with a different start, >= 1.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    errors.whole(1, self.name, steps=steps)
    self.steps = int(steps)

  def run(self, *arguments, **options):
    """Raises `UserError`: the stages have several objectives; see `evaluation.attacked`."""
    raise errors.UserError(
      "worst_of_all has several objectives, so it cannot be called: use evaluate --attacks"
    )

  def plans(self, classes=None):
    plan = Plan(APGD(self.threat, self.steps, self.restarts), ensemble=self.name, last=True)
    return [
      dataclasses.replace(plan, loss=loss, average=average, start=start)
      for loss, average, start in _STAGES
    ]
