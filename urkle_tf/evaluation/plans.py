"""Turns specs of attacks, `"pgd(steps=100, restarts=2),autoattack"`, into plans."""

import dataclasses

from urkle_tf import attacks, errors, spec


def read(texts, threat, steps=20, step_size=None, restarts=1, classes=None):
  """Reads and checks specs of attacks, before any work is done.

  Args:
    texts: specs, such as `"fgsm"`, `"pgd(steps=100, restarts=2)"`, `"apgd_t(targets=3)"` or
      `"autoattack(version=rand)"`: a list, or one string, separated by commas.
    threat: a `ThreatModel` of any radius: see `attacks.Plan.radius_and_step`.
    steps: steps of attacks such as PGD, if the spec does not give them; AutoAttack's stages have
      published budgets.
    step_size: their size, in pixel units; None for 2.5 epsilon / steps.
    restarts: of the attacks.
    classes: how many classes the classifier has, since some losses need several; None if unknown.

  Returns:
    A list of `attacks.Plan`; plans that are `last` come at its end.

  Raises:
    UserError: for an unknown attack or one only for training, an option out of its range, or a loss
      that needs more classes.
  """
  texts = spec.split(texts) if isinstance(texts, str) else list(texts)
  if not texts:
    raise errors.UserError("give --attacks, separated by commas: pgd, fgsm or autoattack")
  flags = {"steps": steps, "step_size": step_size, "restarts": restarts}
  found = [
    dataclasses.replace(plan, group=group, options="" if plan.ensemble else _options(text))
    for group, text in enumerate(texts)
    for plan in attacks.for_evaluation(text, threat, **flags).plans(classes)
  ]
  return sorted(found, key=lambda plan: plan.last)


def _options(text):
  shown = ("steps", "restarts", "queries")  # in columns of their own
  options = spec.parse(text)[1].items()
  short = lambda value: f"{value:.4g}" if isinstance(value, float) else value  # noqa: E731
  return ", ".join(f"{name}={short(value)}" for name, value in options if name not in shown)
