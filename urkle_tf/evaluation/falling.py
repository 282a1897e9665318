"""Attacks in which an image leaves the batch as soon as it is broken."""

import functools

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, loops
from urkle_tf.attacks import base, losses

# Whole batches that are attacked side by side: the images not broken yet are gathered into full
# ones whenever some are.  The next images do not take the free places: the number of a step decides
# over step sizes and squares, and belongs to everything that is attacked together.
BATCHES = 4
_SEGMENT = 2  # steps before the first check which images are broken; more and more if few are
_FEW = 1 / 8
_LOOKS = 5  # checks in a run, at least
# Of the spread of the scores.  What scores an adversary in the end rounds otherwise than the folded
# network that is attacked: at 0.001 one image in a hundred was lost that way.
_CLEAR = 0.1


def possible(plan):
  """Whether a plan can run this way: only on images not broken yet, in steps, from one start."""
  from_one_start = plan.restarts == 1 and not plan.start
  usual = plan.on_standing and plan.average == "probabilities"
  return usual and plan.attack.in_steps and from_one_start


class Mode:
  """One mode of a classifier, of which all attacks share one trace.

  Args:
    classifier: a `Classifier`.
    mode: "sampled" or "deterministic".
    eot: samples of z per evaluation.
    batch_size: the most images of a compiled call.

  Attributes:
    scores: (images, noise) -> log-probabilities, float32 [n, classes].
    batch_size: that of the arguments.
    noisy: whether there is noise.
    attackable: whether its noise, if it has any, can be given from outside.
  """

  def __init__(self, classifier, mode, eot=20, batch_size=250):
    frozen = classifier.frozen()  # batch norms are folded here, once
    self.batch_size = batch_size
    self.noisy = mode == "sampled"
    self.attackable = not self.noisy or hasattr(frozen, "from_noise")

    @tf.function(autograph=False, reduce_retracing=True)
    def scores(images, noise):
      loc, scale = frozen.represent(images)
      if self.noisy:
        return frozen.from_noise(loc, scale, noise)
      return tf.nn.log_softmax(frozen.head(loc))

    self.scores = scores
    self._draw = lambda count, seed: frozen.noise(count, seed, eot)

  def noise(self, count, seed):
    """The noise that `scores` takes for `count` images; an empty tensor without noise."""
    return self._draw(count, seed) if self.noisy else tf.zeros([count, 0])


class Falling:
  """Runs a plan on one mode of a classifier, as `adversaries.adversary` does.

  Every point that the attack evaluates counts, not only the one with the best objective.  The first
  point that is misclassified, by more than rounding, is an image's adversary, and the image then
  leaves the batch.  Under noise, further noise must misclassify it too.  Of an image that stays,
  the point with the largest margin, if it is misclassified at all, is a candidate, too.  The other
  images take the same path as in the whole batch: noise depends on the image, and is drawn before
  any leaves.  Only noise that is fresh at every evaluation is drawn for the images that are left.

  Args:
    plan: a `Plan` of which `possible` is true.
    mode: a `Mode` that is attackable.
  """

  def __init__(self, plan, mode):
    self._plan, self._mode = plan, mode
    self._compiled = None

  def at_once(self, count):
    """The number of targets that fill a batch, if each of `count` images has a row per target."""
    return max(1, min(self._plan.rounds, self._mode.batch_size // max(count, 1)))

  def __call__(self, images, labels, seed, epsilon, step_size=None, targets=None):
    """See `adversaries.adversary`: any number of images, without another trace.

    Targets are int [k, n].  All of an image are aimed at side by side, until one is hit.
    """
    copies = 1 if targets is None else len(targets)
    given = {"images": tf.tile(images, [copies, 1, 1, 1]), "labels": tf.tile(labels, [copies])}
    given |= {} if targets is None else {"targets": tf.reshape(targets, [-1])}
    noise = distribution.fold(seed, 1)
    if self._plan.fixed_noise:
      given["noise"] = self._mode.noise(len(given["images"]), noise)
    state = self._begin(given["images"], distribution.fold(seed, 0, 0), epsilon)
    if self._compiled is None:
      self._compiled = self._compile(given, state, epsilon)
    candidates, share = self._run(given, state, noise, epsilon, np.tile(range(len(images)), copies))
    return np.concatenate(candidates).reshape(-1, *images.shape), share

  def _run(self, given, state, noise, epsilon, owners):
    """(candidates, share of zero gradients), owners [n] being whose rows are."""
    advance, finish = self._compiled
    found = given["images"].numpy().copy()
    last, rows = found.copy(), np.arange(len(found))
    zeros = made = 0.0
    done, length, steps = 0, _SEGMENT, self._plan.steps
    while done < steps and len(rows):
      count = min(length, steps - done)
      state = self._in_parts(
        advance, given, state, noise, tf.constant(done), tf.constant(count), epsilon
      )
      zeros, made = zeros + np.sum(state["zeros"]), made + count * len(rows)
      fallen = state["fallen"].numpy()
      found[rows[fallen]] = state["broken"].numpy()[fallen]
      gone = np.isin(owners[rows], owners[rows[fallen]])
      if gone.any():
        rows, given, state = rows[~gone], _kept(given, ~gone), _kept(state, ~gone)
      done += count
      length = min(2 * length, max(steps // _LOOKS, _SEGMENT)) if gone.mean() < _FEW else _SEGMENT
    candidates = [found]
    if len(rows):
      ends = self._in_parts(finish, given, state, noise, epsilon)
      found[rows] = ends["result"].numpy()
      last[rows] = ends["last"].numpy()
      candidates += [last] * self._mode.noisy
      slight = state["margin"].numpy() > 0
      if slight.any():
        candidates.append(found.copy())
        candidates[-1][rows[slight]] = state["broken"].numpy()[slight]
    return candidates, zeros / max(made, 1)

  def _in_parts(self, compute, given, state, *others):
    """What a compiled function returns for all rows, in equal parts of at most a batch."""
    count = len(given["images"])
    parts = np.array_split(np.arange(count), -(-count // self._mode.batch_size))
    found = [
      compute(_rows(given, part[0], part[-1] + 1), _rows(state, part[0], part[-1] + 1), *others)
      for part in parts
    ]
    return tf.nest.map_structure(lambda *values: tf.concat(values, 0), *found)

  def _compile(self, given, state, epsilon):
    """Some steps of a run, and its end, for any number of images."""
    given, state, epsilon = tf.nest.map_structure(_any_number, (given, state, epsilon))
    seed, number = tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32)
    advance = [given, state, seed, number, number, epsilon]
    return (
      tf.function(self._advance, advance, autograph=False),
      tf.function(self._finish, [given, state, seed, epsilon], autograph=False),
    )

  def _begin(self, images, seed, epsilon):
    """The state of an attack, all of it with rows: "zeros" is one's sum of shares."""
    state = self._plan.attack.at(epsilon).begin(images, 0, seed)
    count = len(images)
    return {
      **state,
      "zeros": tf.zeros([count]),
      "broken": images,
      "margin": tf.zeros([count]),  # of what is broken
      "fallen": tf.fill([count], False),
    }

  def _advance(self, given, state, noise, first, count, epsilon):
    attack, images = self._plan.attack.at(epsilon), given["images"]

    def step(number, state):
      seen = []

      def watched(points):
        found = self._scores(points, given, noise, number)
        seen.append((points, found))
        return found

      objective = self._plan.objective(watched, given["labels"], given.get("targets"))
      state = {**state, **attack.advance(objective, images, state, number)}
      for points, found in seen:
        margin = losses.margin(found, given["labels"])
        clear = _is_clear(margin, found)
        wrong = ((margin > state["margin"]) | clear) & ~state["fallen"]
        before = {name: state[name] for name in ("broken", "margin", "fallen")}
        state |= tf.cond(
          tf.reduce_any(wrong),  # rare
          functools.partial(_fell, attack.threat, images, points, wrong, clear, margin, before),
          lambda before=before: before,
        )
      return state

    start = {**state, "zeros": tf.zeros([])}
    new = loops.repeat(count, lambda done, state: step(first + done, state), start)
    if self._mode.noisy:
      key = distribution.fold(noise, 0, first + count)
      found = self._mode.scores(new["broken"], self._mode.noise(tf.shape(images)[0], key))
      still = _is_clear(losses.margin(found, given["labels"]), found)
      new["margin"] = tf.where(new["fallen"] & ~still, 0.0, new["margin"])
      new["fallen"] &= still
    return {**new, "zeros": tf.zeros_like(state["zeros"]) + new["zeros"]}

  def _scores(self, points, given, noise, number):
    """The scores of points in a step: its noise, unless the run has its own, is fresh."""
    if self._plan.fixed_noise:
      return self._mode.scores(points, given["noise"])
    fresh = self._mode.noise(tf.shape(points)[0], distribution.fold(noise, number + 1))
    return self._mode.scores(points, fresh)

  def _finish(self, given, state, noise, epsilon):
    scores = lambda points: self._scores(points, given, noise, self._plan.steps)  # noqa: E731
    objective = self._plan.objective(scores, given["labels"], given.get("targets"))
    state = {**state, "zeros": tf.zeros([])}
    found = self._plan.attack.at(epsilon).finish(objective, given["images"], state)
    return {"result": found["result"], "last": found.get("last", found["result"])}


def _fell(threat, images, points, wrong, clear, margin, before):
  """What is broken after further points are seen, of which those that are wrong and near count."""
  wrong &= threat.distance(points, images) <= threat.epsilon * (1 + 1e-5)
  return {
    "broken": base.choose(wrong, threat.project(points, images), before["broken"]),
    "margin": tf.where(wrong, margin, before["margin"]),
    "fallen": before["fallen"] | (wrong & clear),
  }


def _is_clear(margin, scores):
  """Whether a margin is larger than what rounding changes."""
  return margin > _CLEAR * (tf.reduce_max(scores, 1) - tf.reduce_min(scores, 1))


def _any_number(tensor):
  return tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)


def _rows(tree, start, end):
  return {name: value[start:end] for name, value in tree.items()}


def _kept(tree, mask):
  """The rows of a mask."""
  rows = tf.constant(np.flatnonzero(mask))
  return {name: tf.gather(value, rows) for name, value in tree.items()}
