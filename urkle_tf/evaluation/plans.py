"""Attacks as they are asked for: `"pgd(steps=100, restarts=2),autoattack"` becomes plans."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from urkle_tf import attacks, errors, spec
from urkle_tf.attacks import losses
from urkle_tf.attacks.autoattack import STAGES, stages


@dataclasses.dataclass(frozen=True)
class Plan:
  """An attack without its radius.

  Attributes:
    name: what the report calls it.
    steps: gradient steps a run.
    restarts: runs.
    step_size: epsilon -> the step's norm in pixel units; None where the attack chooses it.
    make: (threat model, step size) -> attack.
    loss: what the attack maximises: see `attacks.losses`.
    targets: how many wrong classes the loss aims at, one after the other; 0 for one without.
    fixed_noise: whether the objective of the sampled mode has the same noise at each evaluation.
    note: what is not as the name says, or "".
    ensemble: the name of the ensemble that the attack is a stage of, or "".
    group: of the stages of one ensemble the same number.
  """

  name: str
  steps: int
  restarts: int
  step_size: Callable
  make: Callable
  loss: Callable = losses.cross_entropy
  targets: int = 0
  fixed_noise: bool = False
  note: str = ""
  ensemble: str = ""
  group: int = 0

  @property
  def by_gradients(self):
    """Whether it says nothing of a model that has no gradient."""
    return self.name != "square"

  @property
  def on_standing(self):
    """Whether it attacks only what is still classified rightly."""
    return bool(self.ensemble or self.targets)


def _pgd(defaults, steps=None, step_size=None, restarts=None, start=1.0):
  steps = defaults["steps"] if steps is None else steps
  step_size = defaults["step_size"] if step_size is None else step_size
  restarts = defaults["restarts"] if restarts is None else restarts
  if not isinstance(steps, int) or steps < 1:  # before the step size is computed from it
    raise errors.UserError(f"attack steps must be an integer >= 1, but is {steps!r}")
  return Plan(
    "pgd",
    steps,
    restarts,
    lambda epsilon: 2.5 * epsilon / steps if step_size is None else step_size,
    lambda threat, size: attacks.PGD(threat, steps, size, start, restarts, keep="best"),
  )


def _fgsm(defaults, start=1e-3):
  del defaults
  return Plan(
    "fgsm", 1, 1, lambda epsilon: epsilon, lambda threat, size: attacks.FGSM(threat, start)
  )


def _rs_fgsm(defaults):
  del defaults
  return Plan(
    "rs_fgsm", 1, 1, lambda epsilon: 1.25 * epsilon, lambda threat, size: attacks.RSFGSM(threat)
  )


ATTACKS = {"fgsm": _fgsm, "pgd": _pgd, "rs_fgsm": _rs_fgsm}


def _of_stage(stage, classes, ensemble="", group=0):
  """A stage of AutoAttack as a plan."""
  stage = stage.fit(classes) if classes else stage
  return Plan(
    stage.name,
    stage.steps,
    stage.restarts,
    lambda epsilon: None,
    lambda threat, size: stage.make(threat),
    stage.loss,
    stage.targets,
    stage.fixed_noise,
    stage.note,
    ensemble,
    group,
  )


def _of_spec(text, defaults, classes, group):
  """The plans of one spec: several for an ensemble."""
  name, _ = spec.parse(text)
  if name == "autoattack":
    found = spec.call({name: stages}, text, "attack")
    return [_of_stage(stage, classes, name, group) for stage in found]
  if name in STAGES:
    return [_of_stage(spec.call(STAGES, text, "attack"), classes)]
  if name == "n_fgsm":
    raise errors.UserError("n_fgsm leaves the ball of epsilon: use pgd, rs_fgsm or autoattack")
  if name not in ATTACKS:
    raise errors.unknown("attack", name, [*ATTACKS, *STAGES, "autoattack"])
  return [spec.call(ATTACKS, text, "attack", defaults=defaults)]


def read(texts, norm, epsilons, image_shape, steps=20, step_size=None, restarts=1, classes=None):
  """Reads and checks specs of attacks, before any work is done.

  Args:
    texts: specs, such as `"fgsm"`, `"pgd(steps=100, restarts=2)"`, `"apgd_t(targets=3)"` or
      `"autoattack(version=rand)"`: a list, or one string with commas in between.
    norm: "linf", "l2" or "l1".
    epsilons: radii in pixel units.
    image_shape: (height, width, channels).
    steps: of PGD where its spec names none; AutoAttack's stages have published budgets.
    step_size: likewise; None for 2.5 epsilon / steps.
    restarts: likewise.
    classes: how many the classifier knows: some losses need several.  None if unknown.

  Returns:
    A list of `Plan`.

  Raises:
    UserError: for an unknown attack, an option or a radius out of its range, or a loss that needs
      more classes.
  """
  texts = spec.split(texts) if isinstance(texts, str) else list(texts)
  if not texts:
    raise errors.UserError("give --attacks: pgd, fgsm or autoattack, with commas in between")
  defaults = {"steps": steps, "step_size": step_size, "restarts": restarts}
  found = [
    plan for group, text in enumerate(texts) for plan in _of_spec(text, defaults, classes, group)
  ]
  for epsilon in epsilons:
    threat = attacks.from_norm(norm, epsilon)
    threat.check(tf.zeros([1, *image_shape]))
    for plan in found:
      plan.make(threat, plan.step_size(epsilon))
  return found
