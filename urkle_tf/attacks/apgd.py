"""Auto-PGD: projected gradient ascent that chooses its own step size."""

import math

import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.attacks import base
from urkle_tf.attacks.threat.base import like


def checkpoints(steps):
  """The iterations at which the step size is reconsidered (Croce and Hein, 2020, sec. 3.1).

      w_j = ceil(p_j * steps),  p_0 = 0,  p_1 = 0.22,
      p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)

  Args:
    steps: the budget.

  Returns:
    A list of ints from 0 to at most `steps`.
  """
  found, percent, gap = [0], 22, 22  # in whole percent: exact
  while percent <= 100:
    found.append(-(-percent * steps // 100))
    gap = max(gap - 3, 6)
    percent += gap
  return sorted(set(found))


class APGD(base.Attack):
  """Auto-PGD (Croce and Hein, 2020, Reliable evaluation of adversarial robustness, alg. 1).

      z_{k+1} = project(x_k + step_k * normalise(grad objective(x_k)))
      x_{k+1} = project(x_k + momentum * (z_{k+1} - x_k) + (1 - momentum) * (x_k - x_{k-1}))

  from a random start.  The step is 2 epsilon at first.  A checkpoint halves it, and continues the
  ascent from the best point so far, if since the last checkpoint

  1. the objective rose in fewer than the share `rho` of the steps, or
  2. neither the step nor the best value have changed.

  For l1, as in Croce and Hein (2021, Mind the box), there is no momentum, and a step moves 2/3 as
  many pixels as the best point has changed.  If that number has just fallen by 5%, the step becomes
  epsilon, and the ascent continues from the best point; otherwise the step is divided by 1.5, down
  to epsilon / 10.  Unlike theirs, a step moves pixels in proportion to their gradients, not their
  signs (see `L1.normalise`), and no larger ball is searched first: docs/results/autoattack.md.

  The best iterate is returned.  With a noisy objective it may only have been lucky: compare it
  under fresh noise with `info["last"]`, the last iterate.

  ```python
  attack = urkle_tf.attacks.APGD(urkle_tf.attacks.Linf(epsilon=8 / 255), steps=10)
  adversaries, info = attack.run(objective, images)  # info["last"]: the last iterates
  ```
  """

  in_steps = True
  takes: tuple[str, ...] = ("start",)
  budget: tuple[str, ...] = ("steps", "restarts")
  _start = None

  def __init__(self, threat, steps=100, restarts=1, momentum=0.75, rho=0.75):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1.
      restarts: runs from different random starts, >= 1.
      momentum: the share of the new step in a move, in (0, 1]; not for l1.
      rho: the share of steps that must raise the objective, in [0, 1]; not for l1.

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    errors.whole(1, self.name, steps=steps)
    errors.within("(0, 1]", self.name, momentum=momentum)
    errors.within("[0, 1]", self.name, rho=rho)
    self.steps, self.momentum, self.rho = int(steps), float(momentum), float(rho)
    self.settings = ("steps",) if threat.norm == "l1" else ("steps", "momentum", "rho")

  def _changed(self, epsilon, start=None, **given):
    other = super()._changed(epsilon, **given)
    other._start = start
    return other

  def _nothing(self, images):
    return {**super()._nothing(images), "last": images, "zero_gradients": tf.zeros([])}

  def _schedule(self, images):
    return (_Sparsity if self.threat.norm == "l1" else _Halving)(self, images)

  def begin(self, images, restart, seed):
    if self._start is None:
      start = self.threat.random_start(images, seed)
    else:
      start = self.threat.project(self._start(seed), images)
    return {
      "iterate": start,
      "previous": start,
      "values": base.lowest(images),
      "best": start,
      "best_values": base.lowest(images),
      "best_gradient": tf.zeros_like(start),
      "zeros": tf.zeros([]),
      **self._schedule(images).start(),
    }

  def advance(self, objective, images, state, number):
    schedule = self._schedule(images)
    values, gradient = base.values_and_gradient(objective, state["iterate"])
    higher = values > state["best_values"]
    state = {
      **state,
      "best": base.choose(higher, state["iterate"], state["best"]),
      "best_values": tf.where(higher, values, state["best_values"]),
      "best_gradient": base.choose(higher, gradient, state["best_gradient"]),
      "zeros": state["zeros"] + base.zero_share(gradient),
    }
    state, back = schedule.check(number, values, state)
    gradient = base.choose(back, state["best_gradient"], gradient)
    iterate = base.choose(back, state["best"], state["iterate"])
    state["values"] = tf.where(back, state["best_values"], values)
    state["iterate"] = schedule.move(number, iterate, gradient, state)
    state["previous"] = iterate
    return state

  def finish(self, objective, images, state):
    end = base.better_end(objective, state["iterate"], state["best"], state["best_values"])
    return {**end, "zero_gradients": state["zeros"] / self.steps}


class _Halving:
  """The steps for linf and l2: see `APGD`."""

  def __init__(self, attack, images):
    self._attack, self._images = attack, images
    # Of each step the length of the window that it closes as a checkpoint, else 0.
    windows = np.zeros(attack.steps + 1, np.float32)
    checked = checkpoints(attack.steps)
    windows[checked[1:]] = np.diff(checked)
    self._windows = tf.constant(windows)

  def start(self):
    zeros = tf.zeros_like(base.lowest(self._images))
    return {
      "size": zeros + 2.0 * self._attack.threat.epsilon,
      "rises": zeros,
      "checked_values": zeros - float("inf"),
      "unchanged": zeros == 0.0,
    }

  def check(self, step, values, state):
    """The state after a checkpoint, if this step is one, and bool [n]: who goes back."""
    window = tf.gather(self._windows, step)
    at = window > 0
    # The start is no rise: it has nothing to rise from.
    rises = state["rises"] + tf.cast((values > state["values"]) & (step > 0), tf.float32)
    oscillates = rises < self._attack.rho * window
    stuck = state["unchanged"] & (state["best_values"] == state["checked_values"])
    halved = at & (oscillates | stuck)
    return {
      **state,
      "size": tf.where(halved, state["size"] / 2, state["size"]),
      "rises": tf.where(at, 0.0, rises),
      "checked_values": tf.where(at | (step == 0), state["best_values"], state["checked_values"]),
      "unchanged": tf.where(at, ~halved, state["unchanged"]),
    }, halved

  def move(self, step, iterate, gradient, state):
    threat, images = self._attack.threat, self._images
    size = like(state["size"], images)
    target = threat.step(iterate, gradient, images, size)
    new = tf.where(step == 0, 1.0, self._attack.momentum)
    moved = iterate + new * (target - iterate) + (1 - new) * (iterate - state["previous"])
    return threat.project(moved, images)


class _Sparsity:
  """The steps for l1: see `APGD`."""

  def __init__(self, attack, images):
    self._attack, self._images = attack, images
    self._pixels = math.prod(images.shape[1:])
    self._period = max(int(0.04 * attack.steps), 1)

  def start(self):
    zeros = tf.zeros_like(base.lowest(self._images))
    return {
      "size": zeros + self._attack.threat.epsilon,
      "share": zeros + 0.2,
      "changed": zeros + float(self._pixels),
    }

  def check(self, step, values, state):
    """As `_Halving.check`."""
    at = (step > 0) & (step % self._period == 0)
    differs = tf.cast(state["best"] != self._images, tf.float32)
    changed = tf.reduce_sum(tf.reshape(differs, [-1, self._pixels]), 1)
    sparser = changed < 0.95 * state["changed"]
    epsilon = self._attack.threat.epsilon
    size = tf.where(sparser, epsilon, tf.maximum(state["size"] / 1.5, epsilon / 10))
    return {
      **state,
      "size": tf.where(at, size, state["size"]),
      "share": tf.where(at, changed / (1.5 * self._pixels), state["share"]),
      "changed": tf.where(at, changed, state["changed"]),
    }, at & sparser

  def move(self, step, iterate, gradient, state):
    threat = self._attack.threat.with_sparsity(1 - state["share"])
    size = like(state["size"], self._images)
    return threat.step(iterate, gradient, self._images, size)
