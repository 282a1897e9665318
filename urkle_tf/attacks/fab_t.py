"""FAB: the nearest point beyond a decision boundary."""

from typing import ClassVar

import tensorflow as tf

from urkle_tf import errors, loops
from urkle_tf.attacks import _nearest, base, losses
from urkle_tf.attacks.threat.base import axes, like

_BISECTIONS = 6  # of the last tenth of the line to the nearest point found


class FAB(_nearest.Nearest):
  """The fast adaptive boundary attack (Croce and Hein, 2020, Minimally distorted examples).

  It looks for the point nearest to the image x at which the objective f is positive.  The sign of f
  shows on which side of a boundary a point lies, like the sign of `losses.targeted_margin`.  Let
  d(v) be the smallest change of v, within the pixel box, to a zero of the linearisation of f at x_k
  (`ThreatModel.reach`):

      a = min(||d(x_k)|| / (||d(x_k)|| + ||d(x)||), bias)
      x' = clip((1 - a) * (x_k + overshoot * d(x_k)) + a * (x + overshoot * d(x)))
      x_{k+1} = x + backward * (x' - x) where f(x') > 0, else x'

  from x_0 = x.  Restarts begin at random points within half of epsilon.  At the end, the line from
  x to the nearest point is bisected.

  ```python
  attack = urkle_tf.attacks.FAB(urkle_tf.attacks.L2(epsilon=0.5), steps=10)
  wrong = lambda neighbours: urkle_tf.attacks.losses.margin(logits(neighbours), labels)
  adversaries, info = attack.run(wrong, images)
  distances = info["distance"]  # float32 [n], to the nearest misclassified point
  ```
  """

  in_steps = True
  settings = ("steps", "overshoot", "backward", "bias")
  refused: ClassVar = {
    "training": "looks for a decision boundary, and a training's objective has none: use pgd"
  }
  loss = staticmethod(losses.targeted_margin)

  def __init__(
    self, threat, steps=100, restarts=1, targets=9, overshoot=1.05, backward=0.9, bias=0.1
  ):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1; each takes one forward pass more than PGD's.
      restarts: runs, >= 1: from the image itself, then from random points.
      targets: how many wrong classes are aimed at in an evaluation, one after the other, >= 1.
      overshoot: the length of a step beyond the linearised boundary, >= 1.
      backward: the share of the way that a broken point keeps, in [0, 1].
      bias: the largest weight of the image's own projection, in [0, 1].

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    errors.whole(1, self.name, steps=steps, targets=targets)
    errors.within("[1, inf)", self.name, overshoot=overshoot)
    errors.within("[0, 1]", self.name, backward=backward, bias=bias)
    self.steps, self.targets = int(steps), int(targets)
    self.overshoot, self.backward, self.bias = float(overshoot), float(backward), float(bias)

  def begin(self, images, restart, seed):
    start = self.threat.random_start(images, seed, 0.5)
    return {
      "iterate": tf.where(restart == 0, images, start),
      "nearest": images,
      "distance": -base.lowest(images),
      "zeros": tf.zeros([]),
    }

  def advance(self, objective, images, state, number):
    iterate = state["iterate"]
    values, gradient = base.values_and_gradient(objective, iterate)
    state = self._offer(images, state, iterate, values > 0)
    moved = self._towards_boundary(iterate, values, gradient, images)
    broken = base.values(objective, moved) > 0
    state = self._offer(images, state, moved, broken)
    state["iterate"] = base.choose(broken, images + self.backward * (moved - images), moved)
    state["zeros"] += base.zero_share(gradient)
    return state

  def _offer(self, images, state, point, broken):
    """The state with this point as the nearest, if it is broken and nearer than before."""
    distance = self.threat.distance(point, images)
    nearer = broken & (distance < state["distance"])
    return {
      **state,
      "nearest": base.choose(nearer, point, state["nearest"]),
      "distance": tf.where(nearer, distance, state["distance"]),
    }

  def finish(self, objective, images, state):
    way = state["nearest"] - images
    at = lambda share: images + like(share, images) * way  # noqa: E731
    broken = lambda share: base.values(objective, at(share)) > 0  # noqa: E731
    whole = tf.ones_like(state["distance"])
    share = loops.bisect(_BISECTIONS, broken, 0.9 * whole, whole)
    return {
      "result": self.threat.project(at(share), images),
      "distance": share * state["distance"],
      "zero_gradients": state["zeros"] / self.steps,
    }

  def _towards_boundary(self, iterate, values, gradient, images):
    """The point x' of the class's docstring."""
    threat = self.threat
    # The linearisation at the image.
    of_image = values + tf.reduce_sum(gradient * (images - iterate), axes(images))
    near = threat.reach(iterate, gradient, -values)
    far = threat.reach(images, gradient, -of_image)
    near_size, far_size = (threat.distance(d, tf.zeros_like(d)) for d in (near, far))
    bias = tf.minimum(tf.math.divide_no_nan(near_size, near_size + far_size), self.bias)
    bias = like(bias, images)
    moved = (1 - bias) * (iterate + self.overshoot * near) + bias * (images + self.overshoot * far)
    return tf.clip_by_value(moved, threat.lower, threat.upper)
