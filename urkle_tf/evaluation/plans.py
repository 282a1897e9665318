"""Turns specs of attacks, `"pgd(steps=100, restarts=2),autoattack"`, into plans."""

import dataclasses

import tensorflow as tf

from urkle_tf import attacks, errors, spec


def read(texts, norm, epsilons, image_shape, steps=20, step_size=None, restarts=1, classes=None):
  """Reads and checks specs of attacks, before any work is done.

  Args:
    texts: specs, such as `"fgsm"`, `"pgd(steps=100, restarts=2)"`, `"apgd_t(targets=3)"` or
      `"autoattack(version=rand)"`: a list, or one string with commas in between.
    norm: "linf", "l2" or "l1".
    epsilons: radii in pixel units.
    image_shape: (height, width, channels).
    steps: steps of attacks such as PGD if the spec gives none; AutoAttack's stages have published
      budgets.
    step_size: their size, in pixel units; None for 2.5 epsilon / steps.
    restarts: of the attacks.
    classes: the number of the classifier's classes, since some losses need several.  None if
      unknown.

  Returns:
    A list of `attacks.Plan`, those that come last at its end.

  Raises:
    UserError: for an unknown attack or one only for training, an option or a radius out of its
      range, or a loss that needs more classes.
  """
  texts = spec.split(texts) if isinstance(texts, str) else list(texts)
  if not texts:
    raise errors.UserError("give --attacks: pgd, fgsm or autoattack, with commas in between")
  threats = [attacks.from_norm(norm, epsilon) for epsilon in epsilons]
  for threat in threats:
    threat.check(tf.zeros([1, *image_shape]))
  flags = {"steps": steps, "step_size": step_size, "restarts": restarts}
  found = [
    dataclasses.replace(plan, group=group)
    for group, text in enumerate(texts)
    for plan in attacks.for_evaluation(text, threats[0], **flags).plans(classes)
  ]
  return sorted(found, key=lambda plan: plan.last)
