"""Attacks in which an image leaves the batch as soon as it is broken."""

import numpy as np
import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.attacks import base, losses

_SEGMENT = 5  # steps between two checks which images are broken
# Of the spread of the scores.  What scores an adversary in the end rounds otherwise than the folded
# network that is attacked: at 0.001 one image in a hundred was lost that way.
_CLEAR = 0.1


def possible(plan):
  """Whether a plan can run this way: only on images not broken yet, in steps, from one start."""
  return plan.on_standing and plan.attack.in_steps and plan.restarts == 1 and not plan.start


class Falling:
  """Runs a plan on a classifier without noise, as `adversaries.adversary` does.

  Every point that the attack evaluates counts, not only the one with the best objective.  The first
  point that is misclassified, by more than rounding, is an image's adversary, and the image then
  leaves the batch.  The other images take the same path as in the whole batch, because noise
  depends on the image and is drawn before any leaves.

  Args:
    plan: a `Plan` of which `possible` is true.
    scores: called in every compiled function; returns a function from images float32 [n, h, w, c]
      to scores [n, classes].
  """

  def __init__(self, plan, scores):
    self._plan, self._scores = plan, scores
    self._compiled = None

  def __call__(self, images, labels, seed, epsilon, step_size=None, targets=None):
    """See `adversaries.adversary`: batches of any size, without another trace."""
    del step_size  # these attacks choose their own
    given = {"images": images, "labels": labels}
    given |= {"targets": targets} if self._plan.targets else {}
    seed = distribution.fold(seed, 0)
    if self._compiled is None:
      self._compiled = self._compile(given, seed, epsilon)
    begin, advance, finish = self._compiled
    state = begin(given, seed, epsilon)
    found, rows = images.numpy().copy(), np.arange(len(images))
    zeros = made = 0.0
    for first in range(0, self._plan.steps, _SEGMENT):
      steps, before = min(_SEGMENT, self._plan.steps - first), float(state["zeros"])
      state = advance(given, state, tf.constant(first), tf.constant(steps), epsilon)
      zeros += (float(state["zeros"]) - before) * len(rows)
      made += steps * len(rows)
      fallen = state["fallen"].numpy()
      if fallen.any():
        found[rows[fallen]] = state["broken"].numpy()[fallen]
        rows = rows[~fallen]
        if not len(rows):
          break
        given, state = _kept(given, ~fallen), _kept(state, ~fallen)
    if len(rows):
      found[rows] = finish(given, state, epsilon).numpy()
    return found[None], zeros / max(made, 1)

  def _compile(self, given, seed, epsilon):
    """The start of a run, some steps of it, and its end, for any number of images."""
    anything = lambda tree: tf.nest.map_structure(_any_number, tree)  # noqa: E731
    given, seed, epsilon = anything(given), tf.TensorSpec([2], tf.int32), _any_number(epsilon)
    begin = tf.function(self._begin, [given, seed, epsilon], autograph=False)
    state = anything(begin.get_concrete_function().structured_outputs)
    number = tf.TensorSpec([], tf.int32)
    advance = [given, state, number, number, epsilon]
    return (
      begin,
      tf.function(self._advance, advance, autograph=False),
      tf.function(self._finish, [given, state, epsilon], autograph=False),
    )

  def _begin(self, given, seed, epsilon):
    images = given["images"]
    state = self._plan.attack.at(epsilon).begin(images, 0, distribution.fold(seed, 0))
    nobody = tf.fill([tf.shape(images)[0]], False)
    return {**state, "broken": images, "fallen": nobody}

  def _advance(self, given, state, first, count, epsilon):
    attack, scores = self._plan.attack.at(epsilon), self._scores()
    images, labels = given["images"], given["labels"]

    def step(number, state):
      seen = []

      def watched(points):
        found = scores(points)
        seen.append((points, found))
        return found

      objective = self._plan.objective(watched, labels, given.get("targets"))
      state = {**state, **attack.advance(objective, images, state, number)}
      for points, found in seen:
        near = attack.threat.distance(points, images) <= epsilon * (1 + 1e-5)
        spread = tf.reduce_max(found, 1) - tf.reduce_min(found, 1)
        new = near & (losses.margin(found, labels) > _CLEAR * spread) & ~state["fallen"]
        inside = attack.threat.project(points, images)
        state["broken"] = base.choose(new, inside, state["broken"])
        state["fallen"] |= new
      return number + 1, state

    return tf.while_loop(
      lambda number, _: number < first + count, step, (first, state), parallel_iterations=1
    )[1]

  def _finish(self, given, state, epsilon):
    objective = self._plan.objective(self._scores(), given["labels"], given.get("targets"))
    return self._plan.attack.at(epsilon).finish(objective, given["images"], state)["result"]


def _any_number(tensor):
  return tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)


def _kept(tree, mask):
  """The rows of a mask, of everything that has rows."""
  rows = tf.constant(np.flatnonzero(mask))
  return {
    name: tf.gather(value, rows) if value.shape.rank else value for name, value in tree.items()
  }
