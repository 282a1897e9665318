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

      y = x + backward * (x_k - x) where f(x_k) > 0, else x_k
      a = min(||d(y)|| / (||d(y)|| + ||d(x)||), bias)
      x_{k+1} = clip((1 - a) * (y + overshoot * d(y)) + a * (x + overshoot * d(x)))

  from x_0 = x.  Restarts begin at random points within half of epsilon.  At the end, the line from
  x to the nearest point is bisected.

  The paper linearises f at y.  Both points lie near the boundary, on either side of it.  Here
  f(x_k) and its gradient come from one pass, so a step is a forward pass shorter.  The points found
  are as near, or nearer: docs/results/autoattack.md.

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
    "training": "looks for a decision boundary, and a training objective has none: use pgd"
  }
  loss = staticmethod(losses.targeted_margin)

  def __init__(
    self, threat, steps=100, restarts=1, targets=9, overshoot=1.05, backward=0.9, bias=0.1
  ):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      steps: gradient steps, >= 1.
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
      "point": tf.where(restart == 0, images, start),
      "nearest": images,
      "distance": -base.lowest(images),
      "zeros": tf.zeros([]),
    }

  def advance(self, objective, images, state, number):
    values, gradient = base.values_and_gradient(objective, state["point"])
    state = self._offer(images, state, values)
    state["point"] = self._towards_boundary(state["point"], values, gradient, images)
    state["zeros"] += base.zero_share(gradient)
    return state

  def _offer(self, images, state, values):
    """The state with its point as the nearest, if that is broken and nearer than before."""
    distance = self.threat.distance(state["point"], images)
    nearer = (values > 0) & (distance < state["distance"])
    return {
      **state,
      "nearest": base.choose(nearer, state["point"], state["nearest"]),
      "distance": tf.where(nearer, distance, state["distance"]),
    }

  def finish(self, objective, images, state):
    state = self._offer(images, state, base.values(objective, state["point"]))
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

  def _towards_boundary(self, point, values, gradient, images):
    """The point x_{k+1} of the class's docstring."""
    threat, way = self.threat, point - images
    rise = tf.reduce_sum(gradient * way, axes(images))  # of the linearisation, from x to x_k
    kept = tf.where(values > 0, self.backward, 1.0)  # of the way
    back = images + like(kept, images) * way
    near = threat.reach(back, gradient, (1 - kept) * rise - values)
    far = threat.reach(images, gradient, rise - values)
    near_size, far_size = threat.length(near), threat.length(far)
    bias = tf.minimum(tf.math.divide_no_nan(near_size, near_size + far_size), self.bias)
    from_back, from_image = back + self.overshoot * near, images + self.overshoot * far
    moved = from_back + like(bias, images) * (from_image - from_back)
    return tf.clip_by_value(moved, threat.lower, threat.upper)
