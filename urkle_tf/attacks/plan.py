"""A plan: an attack on a classification, with the loss that it climbs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from urkle_tf.attacks import losses

_STARTS = {"": "", "mu": " from z = mu", "fixed": " from fixed z", "kl": " from the worst KL"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """An attack on a classification, as `autoattack` and the evaluation run it.

  Attributes:
    attack: the `Attack`, of whatever radius: see `radius_and_step`.
    loss: of `losses`: (scores, labels) -> [n], or (scores, labels, targets) -> [n].
    targets: how many wrong classes are aimed at, one after the other, the most likely first; 0
      for a loss without targets.
    fixed_noise: whether an objective with noise must use the same at each evaluation.
    note: what is not as the name says, or "".
    ensemble: the name of the ensemble that the attack is a stage of, or "".
    group: of the stages of one ensemble the same number.
    average: of a classifier with noise the mean over samples of "probabilities" or of "logits" is
      what the loss is of.
    start: where runs begin: "" at random, or at the result of the same attack on z = mu ("mu"),
      under other samples of z that stay the same ("fixed"), or on the KL between the
      representations of image and neighbour ("kl").
    last: whether it comes after all others, on what every attack so far left standing.

  ```python
  plan = urkle_tf.attacks.Plan(attack, urkle_tf.attacks.losses.margin)
  objective = plan.objective(logits, labels)  # images -> float32 [n]
  adversaries = plan.attack(objective, images)
  ```
  """

  attack: Any
  loss: Callable = losses.cross_entropy
  targets: int = 0
  fixed_noise: bool = False
  note: str = ""
  ensemble: str = ""
  group: int = 0
  average: str = "probabilities"
  start: str = ""
  last: bool = False

  @property
  def name(self):
    """What reports call it."""
    average = " of mean logits" if self.average == "logits" else ""
    return f"{self.attack.name}{average}{_STARTS[self.start]}"

  @property
  def by_noise(self):
    """Whether it is another attack than without `average` and `start` only where z is sampled."""
    return self.average == "logits" or self.start in ("mu", "fixed")

  @property
  def steps(self):
    """Gradient steps, or queries, of a run."""
    return self.attack.steps

  @property
  def restarts(self):
    """Runs."""
    return self.attack.restarts

  @property
  def by_gradients(self):
    """Whether it says nothing of a model that has no gradient."""
    return self.attack.gradients

  @property
  def on_standing(self):
    """Whether it attacks only what is still classified rightly."""
    return bool(self.ensemble or self.targets or self.last)

  @property
  def rounds(self):
    """How many times the attack is run: for each target, or once."""
    return max(self.targets, 1)

  def step_size(self, epsilon):
    """The norm of a step at a radius, in pixel units; None where the attack chooses it."""
    return self.attack.step_size_at(epsilon)

  def radius_and_step(self, epsilon):
    """What `Attack.run` is given for a radius: float32 epsilon, and step size or None."""
    takes = "step_size" in self.attack.takes
    step_size = tf.constant(self.step_size(epsilon), tf.float32) if takes else None
    return tf.constant(epsilon, tf.float32), step_size

  def objective(self, scores, labels, targets=None):
    """What the attack maximises: images -> float32 [n].

    Args:
      scores: images -> float32 [n, classes].
      labels: int [n].
      targets: int [n]; only for a loss with targets.
    """
    goal = (labels, targets) if self.targets else (labels,)
    return lambda images: self.loss(scores(images), *goal)
