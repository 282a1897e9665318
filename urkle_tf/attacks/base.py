"""What every attack shares: the seam, the checks of an objective, the choice among restarts."""

import numbers

import tensorflow as tf

from urkle_tf import distribution, errors


class Attack:
  """Maximises an objective per example inside a threat model.

  A subclass writes one attempt, `_attempt`; restarts are attempts with different seeds, of
  which the best is kept per example.

  Call an attack outside of a gradient tape, or in a `tf.function`: an eager tape around it
  would record every forward pass.

  Attributes:
    threat: the `ThreatModel`.
    restarts: how many attempts are made.
    name: what logs and reports call the attack.
  """

  def __init__(self, threat, restarts, name):
    self.threat = threat
    self.restarts = count("restarts", restarts)
    self.name = name

  def __repr__(self):
    known = ("name", "norm", "epsilon")  # from the class and the threat model
    settings = [f"{k}={v!r}" for k, v in self.describe().items() if k not in known]
    return f"{type(self).__name__}({self.threat!r}, {', '.join(settings)})"

  def describe(self):
    """The settings as plain values, for logs and metadata."""
    return {
      "name": self.name,
      "norm": self.threat.norm,
      "epsilon": float(self.threat.epsilon),
      "restarts": self.restarts,
    }

  def __call__(self, objective, images, seed=None):
    """Looks for the images of the threat model that maximise the objective.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2] of everything random; None draws one (a different one on each
        replica).

    Returns:
      float32 [n, ...], without a gradient.
    """
    return self.run(objective, images, seed)[0]

  def run(self, objective, images, seed=None):
    """As calling, and also says what the attack saw.

    Args:
      objective: images [n, ...] -> [n]: maximised for each image on its own.
      images: float [n, ...] within the pixel bounds.
      seed: int32 [2], or None.

    Returns:
      `(adversaries, info)`: float32 [n, ...] without a gradient, and a dict: `objective`
      float32 [n], its value at the adversaries; for attacks by gradients `zero_gradients`,
      the share of input-gradient entries that were exactly zero; what else the class says.
    """
    images, seed = self._prepare(self.threat, images, seed)
    return self._repeat(
      lambda restart, seed: self._attempt(objective, images, restart, seed), images, seed
    )

  def _prepare(self, threat, images, seed):
    """The images as float32 constants, checked; and a seed."""
    images = tf.convert_to_tensor(images)
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
    raise NotImplementedError

  def _nothing(self, images):
    """What an attempt returns, before there was one: the worst of all.

    "result" [n, ...] and the entries of `info`: of several attempts those of the best are
    kept per example, and scalars are averaged.
    """
    return {"result": images, "objective": lowest(images)}

  def _merit(self, state):
    """What the attempts are compared by, float32 [n]."""
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
  """The objective and its gradient in the images only: no weight is watched."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(images)
    found = values(objective, images)
    total = tf.reduce_sum(found)
  gradient = tape.gradient(total, images)
  if gradient is None:
    raise errors.UserError("an attack's objective must depend on the images, differentiably")
  return found, tf.cast(gradient, tf.float32)


def choose(mask, chosen, other):
  """Per example `chosen` where the mask [n] says so, else `other`."""
  return tf.where(per_example(mask, chosen), chosen, other)


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
