"""Projected gradient ascent, and the single-step attacks as cases of it."""

import numbers

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.attacks import base
from urkle_tf.attacks.threat import Linf

_KEEP = ("last", "best")


class PGD(base.Attack):
  """Projected gradient descent (Madry et al., 2018), here as ascent.

      x_0 ~ random point of the ball of radius start * epsilon
      x_{t+1} = project(x_t + step_size * normalise(grad objective(x_t)))

  The attack never starts at the clean image, where the divergence between clean
  and adversarial representations has no gradient.  A gradient that is exactly
  zero moves nothing; `run` reports the share of such entries.
  """

  def __init__(
    self,
    threat,
    steps=10,
    step_size=None,
    start=1.0,
    restarts=1,
    keep="last",
    name="pgd",
    carry=False,
  ):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1.
      step_size: a step's norm in pixel units, as `epsilon` is; None: 2.5 *
        epsilon / steps, which can cross the ball and come back.
      start: the radius of the random start as a share of `epsilon`, in (0, 1].
      restarts: runs from different random starts, >= 1; the best of them is kept
        per example.
      keep: "last" returns the last iterate, "best" per example the iterate with
        the highest objective, from the random start to the last (one forward
        pass more a run).  More than one restart implies "best".
      name: what logs and reports call the attack.
      carry: whether a `Trainer` is to give `run` what the adversaries of the step before have in
        common.

    Raises:
      UserError: if an argument is out of its range.
    """
    if not isinstance(start, numbers.Real) or not 0 < float(start) <= 1:
      raise errors.UserError(
        f"attack start must be in (0, 1], a share of epsilon (at the clean image there may be no "
        f"gradient), but is {start!r}"
      )
    steps = base.count("steps", steps)
    if step_size is None:
      step_size = 2.5 * threat.epsilon / steps
    elif not tf.is_tensor(step_size) and not (
      isinstance(step_size, numbers.Real) and 0 <= float(step_size) < float("inf")
    ):
      raise errors.UserError(f"attack step size must be a number >= 0, but is {step_size!r}")
    if keep not in _KEEP:
      raise errors.unknown("choice of keep", keep, _KEEP)
    super().__init__(threat, restarts, name)
    self.steps = steps
    self.step_size = step_size
    self.start = float(start)
    self.keep = "best" if self.restarts > 1 else keep
    self.carry = bool(carry)

  def describe(self):
    return {
      **super().describe(),
      "steps": self.steps,
      "step_size": float(self.step_size),
      "start": self.start,
      "keep": self.keep,
    }

  def run(self, objective, images, seed=None, epsilon=None, steps=None, carried=None):
    """As calling, and also says what the attack saw.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2], or None.
      epsilon: a scalar (tensor) that stands in for the threat model's radius; the
        step size is scaled with it.  For the warm-up of epsilon in training.
      steps: an int32 scalar (tensor), at least 1, that stands in for the number of steps;
        `steps * step_size` stays what it was.
      carried: float32 [...], a direction of one image's shape, in which the random start is moved
        by epsilon before it is projected; 0 moves nothing.

    Returns:
      `(adversaries, info)`: float32 [n, ...] without a gradient, and a dict:
      `objective` float32 [n]: with `keep="best"` its value at the adversaries,
      with "last" that at the last gradient evaluation, one step earlier (no
      forward pass is spent on it); `zero_gradients`: the share of input-gradient
      entries that were exactly zero, over all steps; with `keep="best"` also
      `last` float32 [n, ...], the last iterate of the best run.
    """
    threat, size = self.threat, self.step_size
    if epsilon is not None:
      threat = self.threat.with_epsilon(epsilon)
      # At a radius of 0 the ratio is lost; then the default one holds.
      known = tf.is_tensor(self.threat.epsilon) or self.threat.epsilon > 0
      ratio = self.step_size / self.threat.epsilon if known else 2.5 / self.steps
      size = ratio * threat.epsilon
    if steps is None:
      steps = self.steps
    else:
      size = size * self.steps / tf.cast(steps, tf.float32)
    images, seed = self._prepare(threat, images, seed)
    return self._repeat(
      lambda _, seed: self._ascend(objective, images, threat, size, steps, seed, carried),
      images,
      seed,
    )

  def _nothing(self, images):
    return {**super()._nothing(images), "last": images, "zero_gradients": tf.zeros([])}

  def _ascend(self, objective, images, threat, size, steps, seed, carried):
    """One run.  The loop carries the iterate, and the best one if it is kept."""
    best = self.keep == "best"
    start = threat.random_start(images, seed, self.start)
    if carried is not None:
      start = threat.project(start + threat.epsilon * threat.normalise(carried[None]), images)
    state = {"iterate": start, "objective": base.lowest(images), "zeros": tf.zeros([])}
    if best:
      state["result"] = start

    def body(step, state):
      iterate = state["iterate"]
      values, gradient = base.values_and_gradient(objective, iterate)
      new = {
        "iterate": threat.step(iterate, gradient, images, size),
        "objective": values,
        "zeros": state["zeros"] + base.zero_share(gradient),
      }
      if best:
        higher = values > state["objective"]
        new["objective"] = tf.where(higher, values, state["objective"])
        new["result"] = base.choose(higher, iterate, state["result"])
      return step + 1, new

    _, state = tf.while_loop(
      lambda step, _: step < steps, body, (tf.constant(0), state), parallel_iterations=1
    )
    last, zeros = state["iterate"], state["zeros"] / tf.cast(steps, tf.float32)
    if not best:
      return {"result": last, "objective": state["objective"], "zero_gradients": zeros}
    values = base.values(objective, last)
    higher = values > state["objective"]
    return {
      "result": base.choose(higher, last, state["result"]),
      "objective": tf.where(higher, values, state["objective"]),
      "last": last,
      "zero_gradients": zeros,
    }


class FGSM(PGD):
  """The fast gradient sign method (Goodfellow et al., 2015), for every norm.

  One step of size epsilon, from a random point a thousandth of epsilon away from
  the image instead of the image itself, where a divergence has no gradient.  A
  network in bfloat16 does not resolve so small a distance: give a larger `start`
  there.
  """

  def __init__(self, threat, start=1e-3):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      start: the radius of the random start as a share of epsilon, in (0, 1].
    """
    super().__init__(threat, steps=1, step_size=threat.epsilon, start=start, name="fgsm")


class RSFGSM(PGD):
  """FGSM from a random start (Wong et al., 2020): one step of 1.25 epsilon."""

  def __init__(self, threat, carry=False):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      carry: as `PGD`'s.
    """
    step_size = 1.25 * threat.epsilon
    super().__init__(threat, steps=1, step_size=step_size, name="rs-fgsm", carry=carry)


class NFGSM(PGD):
  """FGSM from strong noise, without a projection (de Jorge et al., 2022), for training alone.

      x_0 ~ uniform within 2 epsilon of x, and within the pixel bounds
      x_1 = clip(x_0 + epsilon sign(grad objective(x_0)), lower, upper)

  The adversaries lie up to 3 epsilon from their images, outside of the threat model: what they do
  to an encoder says nothing of its robustness within epsilon.
  """

  def __init__(self, threat):
    """Builds the attack.

    Args:
      threat: an `Linf`.

    Raises:
      UserError: for another norm.
    """
    if threat.norm != "linf":
      raise errors.UserError(
        f"n_fgsm knows linf alone, and the norm is {threat.norm}: use --attack=rs_fgsm"
      )
    super().__init__(_Pixels(**threat.options()), 1, threat.epsilon, name="n-fgsm")
    self.start = 2.0


class _Pixels(Linf):
  """The pixel box alone; `epsilon` is the unit of noise and steps."""

  def project(self, adversaries, images):
    del images
    return self._clip(adversaries)
