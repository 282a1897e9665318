"""What all attacks share: the interface, the checks of an objective, the choice among restarts."""

import copy
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from urkle_tf import distribution, errors, loops
from urkle_tf.attacks import losses
from urkle_tf.attacks.plan import Plan
from urkle_tf.attacks.threat.base import ThreatModel, rows_of, shape_of

RESTARTS = "restarts"  # the name by which `cost.operations` finds the loop over attempts
_ROUNDING = 1e-4  # of pixels


class Attack:
  """Maximises an objective per example inside a threat model.

  A subclass that is alone in a file of this folder is known everywhere by that file's name.  It
  defines one attempt, `_attempt`, or its steps (see `in_steps`), and overrides the class attributes
  that differ.  Restarts are attempts with different seeds; the best is kept for each example.

  Call an attack outside a gradient tape, or in a `tf.function`: an eager tape around it would
  record every forward pass.

  Attributes:
    name: the attack's name in specs, logs and reports: that of its file.
    gradients: whether it follows gradients, so that it is not informative for a model without them.
    decisions: whether it uses only the sign of an objective, so that a model's decisions suffice.
    boundary: whether it looks for the nearest point where an objective becomes positive, so that an
      objective without a sign has nothing to find.
    in_steps: whether it defines `begin`, `advance` and `finish` instead of `_attempt`.
    refused: {"training" or "evaluation": why not, and what to use}; empty if it serves both.
    takes: what `run` accepts besides epsilon: "steps", "step_size", "carried", "start".
    budget: arguments of the constructor that the commands' flags set if a spec does not: "steps",
      "step_size", "restarts".
    settings: further attributes for `describe`.
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
  boundary = False
  in_steps = False
  refused: ClassVar[dict[str, str]] = {}
  takes: tuple[str, ...] = ()
  budget: tuple[str, ...] = ()
  settings: tuple[str, ...] = ()
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
    if not isinstance(threat, ThreatModel):
      raise errors.UserError(
        f"{self.name or type(self).__name__} needs a threat model, such as Linf(epsilon=8 / 255), "
        f"got {threat!r}"
      )
    errors.whole(1, self.name or type(self).__name__, restarts=restarts)
    self.threat, self.restarts = threat, int(restarts)

  def __repr__(self):
    known = ("name", "norm", "epsilon")  # from the class and the threat model
    settings = [f"{k}={v!r}" for k, v in self.describe().items() if k not in known]
    return f"{type(self).__name__}({', '.join([repr(self.threat), *settings])})"

  @classmethod
  def check(cls, use):
    """Refuses a use, "training" or "evaluation", that the attack is not made for.

    Raises:
      UserError: if the use is in `refused`.
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
      **{name: getattr(self, name) for name in self.settings},
    }

  def plans(self, classes=None):
    """What an evaluation runs for this attack: a list of one `Plan`, or of several for an ensemble.

    Args:
      classes: how many classes the classifier has, or None.

    Raises:
      UserError: if there is one class, or the loss needs more.
    """
    if classes == 1:
      raise errors.UserError("a classifier with one class is never wrong: give one with at least 2")
    targets = self.targets if classes is None else min(self.targets, classes - 1)
    return [Plan(self, self.loss, targets, self.fixed_noise)]

  def step_size_at(self, epsilon):
    """The norm of a step at a radius, in pixel units; None if the attack chooses it."""

  def __call__(self, objective, images, seed=None):
    """Finds images within the threat model that maximise the objective.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2], of all randomness; None draws one (a different one on each replica).

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
      carried: float32 [...], a direction of one image's shape.  The random start moves by epsilon
        in this direction, and is then projected; 0 moves nothing.
      start: a function of an attempt's seed, int32 [2], to float32 [n, ...].  The attempt begins at
        the projection of its result, instead of at a random point.

    Returns:
      `(adversaries, info)`: float32 [n, ...] without a gradient, and a dict.  It holds `objective`
      float32 [n], the value at the adversaries; `zero_gradients`, the share of input-gradient
      entries that were exactly zero (0 without gradients); and what the class adds.

    Raises:
      UserError: for an argument that the class does not take, images that are not floats or,
        outside a `tf.function`, not within the pixel bounds, or an objective that does not return
        one value per image.
    """
    given = {"steps": steps, "step_size": step_size, "carried": carried, "start": start}
    for name, value in given.items():
      if value is not None and name not in self.takes:
        raise errors.UserError(f"{self.name} does not accept {name}: leave it out")
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
    other = copy.copy(self)
    if epsilon is not None:
      other.threat = self.threat.with_epsilon(epsilon)
    return other

  def _prepare(self, images, seed):
    """The images as float32 constants, checked; and a seed."""
    images = tf.convert_to_tensor(images)
    check_floats(images.dtype, self.threat)
    if not tf.is_symbolic_tensor(images):
      check_pixels(images, self.threat, self.name)
    self.threat.check(images)
    if seed is None:
      seed = distribution.fresh_seed()
    return tf.stop_gradient(tf.cast(images, tf.float32)), tf.cast(seed, tf.int32)

  def _attempt(self, objective, images, restart, seed):
    """One attempt: a dict of the keys and shapes of `_nothing`."""
    advance = lambda number, state: self.advance(objective, images, state, number)  # noqa: E731
    state = loops.repeat(self.steps, advance, self.begin(images, restart, seed))
    return self.finish(objective, images, state)

  def begin(self, images, restart, seed):
    """The state at the start: {name: tensor}, each [n, ...] except for the scalar "zeros"."""
    raise NotImplementedError

  def advance(self, objective, images, state, number):
    """The state after one step; entries that do not change may be left out."""
    raise NotImplementedError

  def finish(self, objective, images, state):
    """What `_attempt` returns, from the state after the last step."""
    raise NotImplementedError

  def _nothing(self, images):
    """The result before the first attempt, worse than any attempt's.

    "result" [n, ...] and the entries of `info`.  With several attempts, the best one's entries are
    kept for each example, and scalars are averaged.
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
      return {
        name: value + best[name] if value.shape.rank == 0 else choose(better, value, best[name])
        for name, value in new.items()
      }

    if self.restarts == 1:
      state = attempt(0, distribution.fold(seed, 0))
    else:
      state = loops.repeat(self.restarts, body, self._nothing(images), name=RESTARTS)
    state = {
      name: tf.stop_gradient(value / self.restarts if value.shape.rank == 0 else value)
      for name, value in state.items()
    }
    return state.pop("result"), state


def check_floats(dtype, threat):
  """Raises `UserError` if a dtype of images is not a float."""
  if not tf.as_dtype(dtype).is_floating:
    raise errors.UserError(
      f"an attack needs float images in [{threat.lower:g}, {threat.upper:g}], got {dtype.name}: "
      "divide by 255"
    )


def check_pixels(images, threat, who):
  """Raises `UserError` if pixels are NaN, or beyond the bounds by more than rounding."""
  least, most = float(tf.reduce_min(images)), float(tf.reduce_max(images))
  if not (threat.lower - _ROUNDING <= least and most <= threat.upper + _ROUNDING):
    raise errors.UserError(
      f"{who}: pixels go from {least:g} to {most:g}, and the threat model's from "
      f"{threat.lower:g} to {threat.upper:g}: give both the same range"
    )


def assert_pixels(images, threat, values):
  """Values that go with images; a graph stops there if pixels are beyond the bounds, not at NaN.

  The bounds are the threat model's; 0 and 1 without one.  XLA drops assertions, so there the values
  become NaN, and their gradient 0.
  """
  lower, upper = (threat.lower, threat.upper) if threat else (0.0, 1.0)
  least, most = tf.reduce_min(images), tf.reduce_max(images)
  beyond = (least < lower - _ROUNDING) | (most > upper + _ROUNDING)
  said = f"UserError: pixels lie outside the bounds, {lower:g} to {upper:g}: rescale the images"
  with tf.control_dependencies([tf.debugging.Assert(~beyond, [said, least, most])]):
    return tf.where(beyond, float("nan"), values)


def values(objective, images):
  """The objective as float32 [batch]."""
  found = tf.convert_to_tensor(objective(images))
  if not found.shape.is_compatible_with(images.shape[:1]):
    raise errors.UserError(
      f"an attack's objective must return one value per image, of shape {images.shape[:1]}, but "
      f"returned shape {found.shape}"
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
    raise errors.UserError(
      "an attack's objective has no gradient: it must depend on the images differentiably"
    )
  return found, tf.cast(gradient, tf.float32)


def choose(mask, chosen, other):
  """For each example, `chosen` where the mask [n] is true, and `other` elsewhere."""
  # In rows: TensorFlow's `where` is four times faster there on a CPU than over four axes.
  found = tf.where(mask[:, None], rows_of(chosen), rows_of(other))
  return tf.reshape(found, shape_of(other))


def better_end(objective, images, best, highest):
  """What an attempt ends with that kept its best point: the best of that and the last one.

  Args:
    objective: images [n, ...] -> [n].
    images: float32 [n, ...], the last points, whose values are not known yet.
    best: float32 [n, ...], the best points before.
    highest: float32 [n], their values.

  Returns:
    {"result", "objective", "last"}.
  """
  found = values(objective, images)
  higher = found > highest
  return {
    "result": choose(higher, images, best),
    "objective": tf.where(higher, found, highest),
    "last": images,
  }


def zero_share(gradient):
  """The share of entries that are exactly zero."""
  return tf.reduce_mean(tf.cast(gradient == 0, tf.float32))


def lowest(images):
  """float32 [batch] of minus infinity."""
  filled = tf.fill([tf.shape(images)[0]], -float("inf"))
  return tf.ensure_shape(filled, images.shape[:1])
