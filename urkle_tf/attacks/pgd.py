"""Projected gradient ascent, and the single-step attacks as cases of it."""

import numbers

import tensorflow as tf

from urkle_tf import distribution, errors

_KEEP = ("last", "best")


def _count(name, value):
  """`value` as an int >= 1."""
  if not isinstance(value, numbers.Integral) or int(value) < 1:
    raise errors.UserError(f"attack {name} must be an integer >= 1, but is {value!r}")
  return int(value)


def _values(objective, images):
  """The objective as float32 [batch]."""
  values = tf.convert_to_tensor(objective(images))
  if not values.shape.is_compatible_with(images.shape[:1]):
    raise errors.UserError(
      "an attack's objective must return one value per image, of shape "
      f"{images.shape[:1]}, but returned shape {values.shape}"
    )
  return tf.cast(values, tf.float32)


def _values_and_gradient(objective, images):
  """The objective and its gradient in the images only: no weight is watched."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(images)
    values = _values(objective, images)
    total = tf.reduce_sum(values)
  gradient = tape.gradient(total, images)
  if gradient is None:
    raise errors.UserError("an attack's objective must depend on the images, differentiably")
  return values, tf.cast(gradient, tf.float32)


def _better(values, images, best_values, best):
  """Per example the images of the higher value."""
  higher = values > best_values
  mask = tf.reshape(higher, [-1] + [1] * (images.shape.rank - 1))
  return tf.where(higher, values, best_values), tf.where(mask, images, best)


class PGD:
  """Projected gradient descent (Madry et al., 2018), here as ascent.

      x_0 ~ random point of the ball of radius start * epsilon
      x_{t+1} = project(x_t + step_size * normalise(grad objective(x_t)))

  The attack never starts at the clean image, where the divergence between clean
  and adversarial representations has no gradient.  A gradient that is exactly
  zero moves nothing; `run` reports the share of such entries.

  Call it outside of a gradient tape, or in a `tf.function`: an eager tape around
  it would record every forward pass.
  """

  def __init__(
    self, threat, steps=10, step_size=None, start=1.0, restarts=1, keep="last", name="pgd"
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

    Raises:
      UserError: if an argument is out of its range.
    """
    if not isinstance(start, numbers.Real) or not 0 < float(start) <= 1:
      raise errors.UserError(
        f"attack start must be in (0, 1], a share of epsilon (at the clean image there may be no "
        f"gradient), but is {start!r}"
      )
    if step_size is None:
      step_size = 2.5 * threat.epsilon / _count("steps", steps)
    elif not tf.is_tensor(step_size) and not (
      isinstance(step_size, numbers.Real) and 0 <= float(step_size) < float("inf")
    ):
      raise errors.UserError(f"attack step size must be a number >= 0, but is {step_size!r}")
    if keep not in _KEEP:
      raise errors.unknown("choice of keep", keep, _KEEP)
    self.threat = threat
    self.steps = _count("steps", steps)
    self.step_size = step_size
    self.start = float(start)
    self.restarts = _count("restarts", restarts)
    self.keep = "best" if self.restarts > 1 else keep
    self.name = name

  def __repr__(self):
    return (
      f"{type(self).__name__}({self.threat!r}, steps={self.steps}, step_size={self.step_size}, "
      f"start={self.start}, restarts={self.restarts}, keep={self.keep!r})"
    )

  def describe(self):
    """The settings as plain values, for logs and metadata."""
    return {
      "name": self.name,
      "norm": self.threat.norm,
      "epsilon": float(self.threat.epsilon),
      "steps": self.steps,
      "step_size": float(self.step_size),
      "start": self.start,
      "restarts": self.restarts,
      "keep": self.keep,
    }

  def __call__(self, objective, images, seed=None):
    """Looks for the images of the threat model that maximise the objective.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2] of the random start; None draws one (a different one on each
        replica).

    Returns:
      float32 [n, ...], without a gradient.
    """
    return self.run(objective, images, seed)[0]

  def run(self, objective, images, seed=None, epsilon=None):
    """As calling, and also says what the attack saw.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2], or None.
      epsilon: a scalar (tensor) that stands in for the threat model's radius; the
        step size is scaled with it.  For the warm-up of epsilon in training.

    Returns:
      `(adversaries, info)`: float32 [n, ...] without a gradient, and a dict:
      `objective` float32 [n]: with `keep="best"` its value at the adversaries,
      with "last" that at the last gradient evaluation, one step earlier (no
      forward pass is spent on it); `zero_gradients`: the share of input-gradient
      entries that were exactly zero, over all steps.
    """
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
      raise errors.UserError(
        f"an attack needs float images in [{self.threat.lower:g}, {self.threat.upper:g}], "
        f"but was given {images.dtype.name}: divide by 255"
      )
    images = tf.stop_gradient(tf.cast(images, tf.float32))
    threat, size = self.threat, self.step_size
    if epsilon is not None:
      threat = self.threat.with_epsilon(epsilon)
      # At a radius of 0 the ratio is lost; then the default one holds.
      known = tf.is_tensor(self.threat.epsilon) or self.threat.epsilon > 0
      ratio = self.step_size / self.threat.epsilon if known else 2.5 / self.steps
      size = ratio * threat.epsilon
    threat.check(images)
    if seed is None:
      seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    seed = tf.cast(seed, tf.int32)

    if self.restarts == 1:
      state = self._ascend(objective, images, threat, size, distribution.fold(seed, 0))
    else:
      state = self._restart(objective, images, threat, size, seed)
    zeros = state["zeros"] / (self.restarts * self.steps)
    info = {"objective": tf.stop_gradient(state["objective"]), "zero_gradients": zeros}
    return tf.stop_gradient(state["result"]), info

  def _restart(self, objective, images, threat, size, seed):
    """Runs from several random starts; the best result per example."""

    def body(restart, state):
      new = self._ascend(objective, images, threat, size, distribution.fold(seed, restart))
      values, result = _better(new["objective"], new["result"], state["objective"], state["result"])
      zeros = state["zeros"] + new["zeros"]
      return restart + 1, {"result": result, "objective": values, "zeros": zeros}

    state = {"result": images, "objective": _lowest(images), "zeros": tf.zeros([])}
    return tf.while_loop(
      lambda restart, _: restart < self.restarts,
      body,
      (tf.constant(0), state),
      parallel_iterations=1,
    )[1]

  def _ascend(self, objective, images, threat, size, seed):
    """One run.  The loop carries the iterate, and the best one if it is kept."""
    best = self.keep == "best"
    start = threat.random_start(images, seed, self.start)
    state = {"iterate": start, "objective": _lowest(images), "zeros": tf.zeros([])}
    if best:
      state["result"] = start

    def body(step, state):
      iterate = state["iterate"]
      values, gradient = _values_and_gradient(objective, iterate)
      new = {
        "iterate": threat.step(iterate, gradient, images, size),
        "objective": values,
        "zeros": state["zeros"] + tf.reduce_mean(tf.cast(gradient == 0, tf.float32)),
      }
      if best:
        new["objective"], new["result"] = _better(
          values, iterate, state["objective"], state["result"]
        )
      return step + 1, new

    _, state = tf.while_loop(
      lambda step, _: step < self.steps, body, (tf.constant(0), state), parallel_iterations=1
    )
    iterate = state.pop("iterate")
    if not best:
      return {**state, "result": iterate}
    values, result = _better(
      _values(objective, iterate), iterate, state["objective"], state["result"]
    )
    return {"result": result, "objective": values, "zeros": state["zeros"]}


def _lowest(images):
  """float32 [batch] of minus infinity."""
  values = tf.fill([tf.shape(images)[0]], -float("inf"))
  return tf.ensure_shape(values, images.shape[:1])


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

  def __init__(self, threat):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
    """
    step_size = 1.25 * threat.epsilon
    super().__init__(threat, steps=1, step_size=step_size, start=1.0, name="rs-fgsm")
