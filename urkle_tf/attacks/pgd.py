"""Projected gradient ascent."""

from typing import ClassVar

import tensorflow as tf

from urkle_tf import errors, loops
from urkle_tf.attacks import base

_KEEP = ("last", "best")


class PGD(base.Attack):
  """Projected gradient descent (Madry et al., 2018), here as ascent.

      x_0 ~ random point of the ball of radius start * epsilon
      x_{t+1} = project(x_t + step_size * normalise(grad objective(x_t)))

  The attack never starts at the clean image, where the divergence between clean and adversarial
  representations has no gradient.  Pixels whose gradient is exactly zero do not move; `run` reports
  their share.

  With `keep="last"`, `run` reports the `objective` of the last gradient evaluation, one step before
  the adversaries, which takes no further forward pass.  With "best", `run` also reports `last`,
  float32 [n, ...], the last iterate of the best run.

  ```python
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255), steps=7, restarts=2)
  adversaries = attack(objective, images)
  ```
  """

  takes: tuple[str, ...] = ("steps", "step_size", "carried")
  budget: tuple[str, ...] = ("steps", "step_size", "restarts")
  in_evaluation: ClassVar = {"keep": "best", "carry": False}
  settings = ("steps", "step_size", "start", "keep")
  _carried = None
  _travel = 2.5  # radii that all steps cover together by default

  def __init__(
    self, threat, steps=10, step_size=None, start=1.0, restarts=1, keep="last", carry=False
  ):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1.
      step_size: a step's norm in pixel units, like `epsilon`; None for 2.5 * epsilon / steps, which
        is enough for an iterate to cross the ball and come back.
      start: the radius of the random start as a share of `epsilon`, in (0, 1].
      restarts: runs from different random starts, >= 1; the best is kept for each example.
      keep: "last" returns the last iterate.  "best" returns for each example the iterate with the
        highest objective, including the random start and the last (one more forward pass per run).
        More than one restart implies "best".
      carry: whether a `Trainer` passes to `run` what the previous step's adversaries have in
        common.

    Raises:
      UserError: if an argument is out of its range.
    """
    errors.within("(0, 1]", self.name, start=start)
    if step_size is not None:
      errors.within("(0, inf)", self.name, step_size=step_size)
    errors.one_of("choice of keep", keep, _KEEP)
    super().__init__(threat, restarts)
    errors.whole(1, self.name, steps=steps)
    self.steps = int(steps)
    self._own_size = None if step_size is None else float(step_size)
    self.step_size = self.step_size_at(threat.epsilon)
    self.start = float(start)
    self.keep = "best" if self.restarts > 1 else keep
    self.carry = bool(carry)

  def _default_size(self, epsilon):
    return self._travel * epsilon / self.steps

  def step_size_at(self, epsilon):
    return self._default_size(epsilon) if self._own_size is None else self._own_size

  def _changed(self, epsilon, steps=None, step_size=None, carried=None, **given):
    other = super()._changed(epsilon, **given)
    other._carried = carried
    if epsilon is not None:
      # A radius of 0 has no ratio, so the default applies.
      known = tf.is_tensor(self.threat.epsilon) or self.threat.epsilon > 0
      ratio = self.step_size / self.threat.epsilon if known else self._default_size(1.0)
      other.step_size = ratio * other.threat.epsilon
    if steps is not None:
      other.steps = steps
      other.step_size = other.step_size * self.steps / tf.cast(steps, tf.float32)
    if step_size is not None:
      other.step_size = step_size
    return other

  def _nothing(self, images):
    return {**super()._nothing(images), "last": images, "zero_gradients": tf.zeros([])}

  def _attempt(self, objective, images, restart, seed):
    """One run.  The loop carries the iterate, and the best one if it is kept."""
    threat, best = self.threat, self.keep == "best"
    start = threat.random_start(images, seed, self.start)
    if self._carried is not None:
      moved = start + threat.epsilon * threat.normalise(self._carried[None])
      start = threat.project(moved, images)
    state = {"iterate": start, "objective": base.lowest(images), "zeros": tf.zeros([])}
    if best:
      state["result"] = start

    def body(_, state):
      iterate = state["iterate"]
      values, gradient = base.values_and_gradient(objective, iterate)
      new = {
        "iterate": threat.step(iterate, gradient, images, self.step_size),
        "objective": values,
        "zeros": state["zeros"] + base.zero_share(gradient),
      }
      if best:
        higher = values > state["objective"]
        new["objective"] = tf.where(higher, values, state["objective"])
        new["result"] = base.choose(higher, iterate, state["result"])
      return new

    state = loops.repeat(self.steps, body, state)
    last, zeros = state["iterate"], state["zeros"] / tf.cast(self.steps, tf.float32)
    if not best:
      return {"result": last, "objective": state["objective"], "zero_gradients": zeros}
    end = base.better_end(objective, last, state["result"], state["objective"])
    return {**end, "zero_gradients": zeros}
