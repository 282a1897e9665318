"""Compiled attacks on one reading of a classifier."""

import copy

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import distribution
from urkle_tf.attacks.threat.base import axes
from urkle_tf.evaluation import falling
from urkle_tf.networks.kl import kl_from


def _flat(objective):
  """An objective with the same values and a gradient of zero, for one that has no gradient."""
  return lambda images: (
    tf.stop_gradient(objective(images)) + 0.0 * tf.reduce_sum(images, axes(images))
  )


def _start(plan, images, epsilon, frozen, objective):
  """The `start` of `Attack.run` for a plan: a function of a seed.

  Args:
    plan: a `Plan` with a start.
    images: float32 [n, h, w, c].
    epsilon: the radius.
    frozen: a classifier's `frozen()`.
    objective: a function from a seed of the samples of z to the objective, if it is not the KL.
  """
  represent = lambda x: tfp.distributions.Normal(*frozen.represent(x))  # noqa: E731
  attack = copy.copy(plan.attack)
  attack.restarts = 1

  def start(seed):
    if plan.start == "kl":
      climbed = kl_from(represent(images), represent)
    else:
      climbed = objective(distribution.fold(seed, 1))
    return attack.run(climbed, images, distribution.fold(seed, 0), epsilon)[0]

  return start


def adversary(classifier, plan, mode, eot=20, alone=None):
  """Compiles an attack on one mode of a classifier or regressor.

  The objective is the plan's loss of the log-probabilities, or of a regressor's predictions.  In
  the sampled mode these are the log of the mean over `eot` samples of z (expectation over
  transformation), or the mean of the predictions, drawn again at every evaluation.  A counter in a
  variable distinguishes the evaluations, since the attack passes only images to its objective.
  Square and FAB compare values between evaluations, where fresh noise would reward luck, so they
  use the same samples throughout a run.

  Args:
    classifier: a `Classifier`, `Foreign` or `Regressor`.
    plan: a `Plan`.
    mode: "sampled" or "deterministic".
    eot: samples of z per evaluation.
    alone: a `falling.Mode`, if no other mode counts: an image then needs no further attack once it
      is broken, if the plan allows that.  None otherwise.

  Returns:
    A function (images float32 [n, h, w, c], labels int [n], seed int32 [2], epsilon, step
    size or None, targets int [1, n] where the plan has some) -> (candidates [k, n, h, w, c],
    share of zero gradients); or a `falling.Falling`.
  """
  link = getattr(classifier, "link", tf.nn.log_softmax)
  has_gradient = getattr(classifier, "differentiable", True)
  # Whether attacks climb the scores that decide the class.
  decides = classifier.metadata.get("attacked") != "inner scores"
  follows = (has_gradient or not plan.by_gradients) and decides
  if alone is not None and alone.attackable and falling.possible(plan) and follows:
    return falling.Falling(plan, alone)
  evaluations = tf.Variable(0, trainable=False, dtype=tf.int64)  # GPUs add no int32

  @tf.function(autograph=False, reduce_retracing=True)
  def find(images, labels, seed, epsilon, step_size, targets=None):
    noise = distribution.fold(seed, 1)
    targets = None if targets is None else targets[0]
    frozen = classifier.frozen()
    if plan.attack.decisions:  # inner scores may favour another class than the model's output
      frozen = getattr(classifier, "own_gradients", lambda: frozen)()
    evaluations.assign(0)

    def scores(neighbours, mode=mode, draws=None):
      loc, scale = frozen.represent(neighbours)
      if mode == "deterministic":
        return link(frozen.head(loc))
      if draws is None:
        draws = noise
        if not plan.fixed_noise:
          draws = distribution.fold(noise, evaluations.assign_add(1))
      if plan.average == "logits":
        return frozen.mean_logits(loc, scale, draws, eot)
      return frozen.from_representation(loc, scale, draws, eot)

    objective = plan.objective(scores, labels, targets)
    climbed = objective if has_gradient else _flat(objective)
    seed = distribution.fold(seed, 0)
    given = {"step_size": step_size}
    if plan.start and (mode == "sampled" or plan.start == "kl"):
      other = "deterministic" if plan.start == "mu" else mode
      climbed_by = lambda draws: plan.objective(  # noqa: E731
        lambda x: scores(x, other, draws), labels, targets
      )
      given["start"] = _start(plan, images, epsilon, frozen, climbed_by)
    found, info = plan.attack.run(climbed, images, seed, epsilon, **given)
    candidates = [found]
    if mode == "sampled" and "last" in info:
      # Under fresh noise, the best iterate may only have had lucky draws.  The last one is not
      # chosen by its draws, and comes after all of the climbing.  The scorer judges both.
      candidates.append(info["last"])
    return tf.stack(candidates), info["zero_gradients"]

  return find
