"""A plan: an attack on a classifier, with the loss that it maximises."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from urkle_tf.attacks import losses

_STARTS = {"": "", "mu": " from z = mu", "fixed": " from fixed z", "kl": " from the worst KL"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """An attack on a classifier, as `autoattack` and the evaluation run it.

  Attributes:
    attack: the `Attack`, of any radius: see `radius_and_step`.
    loss: one of `losses`: (scores, labels) -> [n], or (scores, labels, targets) -> [n].
    targets: how many wrong classes are aimed at, one after the other, the most likely first; 0
      for a loss without targets.
    fixed_noise: whether a noisy objective must use the same noise at each evaluation.
    note: how it differs from what its name suggests, or "".
    options: those of its spec that a report shows nowhere else, such as "start=0.5".
    ensemble: the name of the ensemble that the attack is a stage of, or "".
    group: a number that the stages of one ensemble share.
    average: what is averaged over samples of a noisy classifier before the loss: "probabilities" or
      "logits".
    start: where runs begin: at random (""), or at the result of the same attack: on z = mu ("mu"),
      with other, fixed samples of z ("fixed"), or on the KL between the representations of image
      and neighbour ("kl").
    last: whether it runs after all others, on the images that no attack has broken.

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
  options: str = ""
  ensemble: str = ""
  group: int = 0
  average: str = "probabilities"
  start: str = ""
  last: bool = False

  @property
  def name(self):
    """Its name in reports."""
    average = " of mean logits" if self.average == "logits" else ""
    return f"{self.attack.name}{average}{_STARTS[self.start]}"

  @property
  def by_noise(self):
    """Whether `average` or `start` have an effect only if z is sampled."""
    return self.average == "logits" or self.start in ("mu", "fixed")

  @property
  def steps(self):
    """Gradient steps, or queries, of a run."""
    return self.attack.steps

  @property
  def restarts(self):
    """Runs of the attack."""
    return self.attack.restarts

  @property
  def by_gradients(self):
    """Whether it follows gradients, so that it is not informative for a model without them."""
    return self.attack.gradients

  @property
  def on_standing(self):
    """Whether it attacks only images that are still classified correctly."""
    return bool(self.ensemble or self.targets or self.last)

  @property
  def rounds(self):
    """How many times the attack is run: for each target, or once."""
    return max(self.targets, 1)

  def step_size(self, epsilon):
    """The norm of a step at a radius, in pixel units; None if the attack chooses it."""
    return self.attack.step_size_at(epsilon)

  def radius_and_step(self, epsilon):
    """The arguments of `Attack.run` for a radius: float32 epsilon, and step size or None."""
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
