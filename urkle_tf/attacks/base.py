"""What all attacks share: the interface, the checks of an objective, the choice among restarts."""

import copy
import inspect
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.attacks import losses
from urkle_tf.attacks.plan import Plan
from urkle_tf.attacks.threat.base import rows_of, shape_of


class Attack:
  """Maximises an objective per example inside a threat model.

  A subclass, alone in a file of this folder, is an attack of that file's name everywhere.  It
  defines one attempt, `_attempt`, or its steps (see `in_steps`), and overrides the class attributes
  that differ.  Restarts are attempts with different seeds; the best is kept for each example.

  Call an attack outside a gradient tape, or in a `tf.function`: an eager tape around it would
  record every forward pass.

  Attributes:
    name: the attack's name in specs, logs and reports: that of its file.
    gradients: whether it follows gradients, and so is not informative for a model without them.
    decisions: whether it uses only the sign of an objective, so that a model's decisions are
      enough.
    in_steps: whether it defines `begin`, `advance` and `finish` instead of `_attempt`.
    refused: {"training" or "evaluation": why not, and what to use}; empty if it serves both.
    takes: what `run` accepts besides epsilon: "steps", "step_size", "carried", "start".
    budget: arguments of the constructor that the commands' flags set if a spec does not: "steps",
      "step_size", "restarts".
    in_evaluation: further arguments of the constructor in an evaluation.
    loss: the one of `losses` that it maximises in an evaluation.
    targets: how many wrong classes that loss aims at; 0 for a loss without targets.
    fixed_noise: whether it compares values between evaluations, so that a noisy objective must use
      the same noise at each; otherwise fresh noise is better.
    threat: the `ThreatModel`.
    steps: gradient steps, or queries, of an attempt.
    restarts: how many attempts are made.
    carry: whether a `Trainer` passes to `run` what the previous step's adversaries have in common.

  ```python
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255))  # an Attack
  objective = lambda neighbours: -encoder(neighbours).loc[:, 0]  # [n], to be made large
  adversaries = attack(objective, images, seed=[0, 0])  # of the images' shape, in the ball
  adversaries, info = attack.run(objective, images)  # info["objective"]: float32 [n]
  ```
  """

  name = ""
  gradients = True
  decisions = False
  in_steps = False
  refused: ClassVar[dict[str, str]] = {}
  takes: tuple[str, ...] = ()
  budget: tuple[str, ...] = ()
  in_evaluation: ClassVar[dict[str, Any]] = {}
  loss: Callable = staticmethod(losses.cross_entropy)
  targets = 0
  fixed_noise = False
  steps: Any = 1
  carry = False

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    package, _, name = cls.__module__.rpartition(".")
    if package == __package__:
      cls.name = name

  def __init__(self, threat, restarts=1):
    self.threat = threat
    self.restarts = count("restarts", restarts)

  def __repr__(self):
    known = ("name", "norm", "epsilon")  # from the class and the threat model
    settings = [f"{k}={v!r}" for k, v in self.describe().items() if k not in known]
    return f"{type(self).__name__}({', '.join([repr(self.threat), *settings])})"

  @classmethod
  def check(cls, use):
    """Refuses a use, "training" or "evaluation", that the attack is not for.

    Raises:
      UserError: if so; it says why, and what to use instead.
    """
    if use in cls.refused:
      raise errors.UserError(f"{cls.name} {cls.refused[use]}")

  @classmethod
  def accepted(cls, options):
    """The entries of a dict of options that the constructor takes."""
    parameters = inspect.signature(cls).parameters
    return {name: value for name, value in options.items() if name in parameters}

  def describe(self):
    """The settings as plain values, for logs and metadata."""
    return {
      "name": self.name,
      "norm": self.threat.norm,
      "epsilon": float(self.threat.epsilon),
      "restarts": self.restarts,
    }

  def plans(self, classes=None):
    """What an evaluation runs for this attack: a list of one `Plan`, or of several for an ensemble.

    Args:
      classes: how many classes the classifier has, or None.

    Raises:
      UserError: if the loss needs more classes.
    """
    targets = self.targets if classes is None else min(self.targets, classes - 1)
    return [Plan(self, self.loss, targets, self.fixed_noise)]

  def step_size_at(self, epsilon):
    """The norm of a step at a radius, in pixel units; None if the attack chooses it."""
    del epsilon

  def __call__(self, objective, images, seed=None):
    """Finds images within the threat model that maximise the objective.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2] of everything random; None draws one (a different one on each
        replica).

    Returns:
      float32 [n, ...], without a gradient.
    """
    return self.run(objective, images, seed)[0]

  def run(
    self,
    objective,
    images,
    seed=None,
    epsilon=None,
    steps=None,
    step_size=None,
    carried=None,
    start=None,
  ):
    """As a call, and also reports what the attack saw.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2], or None.
      epsilon: a scalar (tensor) that replaces the threat model's radius; the step size is scaled
        with it.
      steps: an int32 scalar (tensor), at least 1, that replaces the number of steps; `steps *
        step_size` stays the same.
      step_size: a scalar (tensor): the norm of a step in pixel units, which is not scaled.
      carried: float32 [...], a direction of one image's shape, in which the random start is moved
        by epsilon before it is projected; 0 moves nothing.
      start: a function of an attempt's seed, int32 [2], to float32 [n, ...].  The attempt begins
        there, after a projection, instead of at a random point.

    Returns:
      `(adversaries, info)`: float32 [n, ...] without a gradient, and a dict: `objective`
      float32 [n], its value at the adversaries; `zero_gradients`, the share of input-gradient
      entries that were exactly zero (0 without gradients); what else the class says.

    Raises:
      UserError: for an argument that the class does not take, images that are no floats, or an
        objective that does not return one value per image.
    """
    given = {"steps": steps, "step_size": step_size, "carried": carried, "start": start}
    for name, value in given.items():
      if value is not None and name not in self.takes:
        raise errors.UserError(f"{self.name} takes no other {name} than its own: leave it out")
    attack = self._changed(epsilon, **given)
    images, seed = attack._prepare(images, seed)
    adversaries, info = attack._repeat(
      lambda restart, seed: attack._attempt(objective, images, restart, seed), images, seed
    )
    return adversaries, {"zero_gradients": tf.zeros([]), **info}

  def at(self, epsilon):
    """A copy with another radius, a scalar (tensor)."""
    return self._changed(epsilon)

  def _changed(self, epsilon, **given):
    """A copy with the arguments of `run`, which makes the attempts."""
    del given  # for subclasses that use it
    other = copy.copy(self)
    if epsilon is not None:
      other.threat = self.threat.with_epsilon(epsilon)
    return other

  def _prepare(self, images, seed):
    """The images as float32 constants, checked; and a seed."""
    threat, images = self.threat, tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
      raise errors.UserError(
        f"an attack needs float images in [{threat.lower:g}, {threat.upper:g}], "
        f"but was given {images.dtype.name}: divide by 255"
      )
    threat.check(images)
    if seed is None:
      seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    return tf.stop_gradient(tf.cast(images, tf.float32)), tf.cast(seed, tf.int32)

  def _attempt(self, objective, images, restart, seed):
    """One attempt: a dict of the keys and shapes of `_nothing`."""

    def step(number, state):
      return number + 1, self.advance(objective, images, state, number)

    _, state = tf.while_loop(
      lambda number, _: number < self.steps,
      step,
      (tf.constant(0), self.begin(images, restart, seed)),
      parallel_iterations=1,
    )
    return self.finish(objective, images, state)

  def begin(self, images, restart, seed):
    """The state at the start: {name: tensor}, each [n, ...] but for the scalar "zeros"."""
    raise NotImplementedError

  def advance(self, objective, images, state, number):
    """The state after one step; entries that do not change may be left out."""
    raise NotImplementedError

  def finish(self, objective, images, state):
    """What `_attempt` returns, from the state after the last step."""
    raise NotImplementedError

  def _nothing(self, images):
    """The result before the first attempt, worse than any attempt's.

    "result" [n, ...] and the entries of `info`.  Of several attempts, those of the best are kept
    for each example, and scalars are averaged.
    """
    return {"result": images, "objective": lowest(images)}

  def _merit(self, state):
    """The value by which attempts are compared, float32 [n]."""
    return state["objective"]

  def _repeat(self, attempt, images, seed):
    """Makes all attempts; returns what `run` does."""

    def body(restart, best):
      new = attempt(restart, distribution.fold(seed, restart))
      better = self._merit(new) > self._merit(best)
      merged = {
        name: value + best[name] if value.shape.rank == 0 else choose(better, value, best[name])
        for name, value in new.items()
      }
      return restart + 1, merged

    if self.restarts == 1:
      state = attempt(0, distribution.fold(seed, 0))
    else:
      _, state = tf.while_loop(
        lambda restart, _: restart < self.restarts,
        body,
        (tf.constant(0), self._nothing(images)),
        parallel_iterations=1,
      )
    state = {
      name: tf.stop_gradient(value / self.restarts if value.shape.rank == 0 else value)
      for name, value in state.items()
    }
    return state.pop("result"), state


def count(name, value):
  """`value` as an int >= 1."""
  if not isinstance(value, numbers.Integral) or int(value) < 1:
    raise errors.UserError(f"attack {name} must be an integer >= 1, but is {value!r}")
  return int(value)


def share(name, value):
  """`value` as a float in [0, 1]."""
  if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
    raise errors.UserError(f"attack {name} must be in [0, 1], but is {value!r}")
  return float(value)


def values(objective, images):
  """The objective as float32 [batch]."""
  found = tf.convert_to_tensor(objective(images))
  if not found.shape.is_compatible_with(images.shape[:1]):
    raise errors.UserError(
      "an attack's objective must return one value per image, of shape "
      f"{images.shape[:1]}, but returned shape {found.shape}"
    )
  return tf.ensure_shape(tf.cast(found, tf.float32), images.shape[:1])


def values_and_gradient(objective, images):
  """The objective and its gradient with respect to the images only: no weight is watched."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(images)
    found = values(objective, images)
    total = tf.reduce_sum(found)
  gradient = tape.gradient(total, images)
  if gradient is None:
    raise errors.UserError("an attack's objective must depend on the images, differentiably")
  return found, tf.cast(gradient, tf.float32)


def choose(mask, chosen, other):
  """For each example, `chosen` where the mask [n] is true, and `other` elsewhere."""
  # In rows: TensorFlow's `where` is four times faster there on a CPU than over four axes.
  found = tf.where(mask[:, None], rows_of(chosen), rows_of(other))
  return tf.reshape(found, shape_of(other))


def per_example(values, images):
  """One value per example, [n], to be broadcast over `images`."""
  return tf.reshape(values, [-1] + [1] * (images.shape.rank - 1))


def zero_share(gradient):
  """The share of entries that are exactly zero."""
  return tf.reduce_mean(tf.cast(gradient == 0, tf.float32))


def lowest(images):
  """float32 [batch] of minus infinity."""
  filled = tf.fill([tf.shape(images)[0]], -float("inf"))
  return tf.ensure_shape(filled, images.shape[:1])
