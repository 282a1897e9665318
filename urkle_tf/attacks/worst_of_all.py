"""Attacks that know what they are up against: a head on a Gaussian representation."""

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
  """APGD on several objectives from several starts, after every other attack that was asked for.

  The mean over z of the probabilities may be flat where that of the logits is not.  Starts are
  adversaries of z = mu, those under other samples of z that stay the same, and the neighbours
  that change the representation most, for which neither label nor head is asked.

  Its stages attack what all attacks before them left standing.  Its row unites all: an image
  stands only if it stands in every one.
  """

  refused: ClassVar = {"training": "is several attacks on a classification: use pgd"}

  def __init__(self, threat, steps=50, restarts=3):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps of a run, and as many to find where it begins, >= 1.
      restarts: runs of each stage, each with a start of its own, >= 1.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    self.steps = base.count("steps", steps)

  def run(self, *arguments, **options):
    """Raises `UserError`: the stages climb several objectives; see `evaluation.attacked`."""
    raise errors.UserError("worst_of_all climbs several objectives: give it to evaluate --attacks")

  def plans(self, classes=None):
    del classes
    plan = Plan(APGD(self.threat, self.steps, self.restarts), ensemble=self.name, last=True)
    return [
      dataclasses.replace(plan, loss=loss, average=average, start=start)
      for loss, average, start in _STAGES
    ]
