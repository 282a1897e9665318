"""Certificates by randomised smoothing, in l2 (Cohen, Rosenfeld and Kolter, 2019).

The smoothed classifier returns the class that a classifier f returns most often around an image,

    g(x) = argmax_c P(f(x + d) = c),  d ~ N(0, noise^2 I)

and if the probability of its class is at least p > 1/2, no perturbation shorter than noise
Phi^-1(p) changes it.  p is a lower bound that holds with probability 1 - alpha over the draws.  A
classifier that samples z draws a fresh one for every d, unless only z = mu is measured.  That is
allowed: f is then a random function, and P is over both.  A random classifier made elsewhere gets
each copy in a call of its own, since it may use one draw for all images of a call.

An encoder has no classes.  For unit embeddings f, a direction u and s a lower bound of
E<u, f(x + d)>, this mean cosine to u is, everywhere within r of x, at least

    2 Phi(Phi^-1((1 + s) / 2) - r / noise) - 1

since (1 + <u, f>) / 2 lies in [0, 1] (the same lemma).  Where that is not negative, the cosine of u
and the smoothed embedding E f is at least as large, since E f is no longer than 1.
"""

import functools

import numpy as np
import tensorflow as tf
from scipy import stats

from urkle_tf import distribution, errors
from urkle_tf.evaluation import calibration, scoring
from urkle_tf.output import progress

_STREAM = 8  # of a seed, besides those of `scoring`


def lower_bound(successes, samples, alpha):
  """Clopper and Pearson's lower bound of a probability, with confidence 1 - alpha.

  Args:
    successes: int [...].
    samples: the number of trials.
    alpha: the chance that the bound is wrong, in (0, 1).

  Returns:
    float64 [...].
  """
  successes = np.asarray(successes, np.float64)
  found = stats.beta.ppf(alpha, np.maximum(successes, 1), samples - successes + 1)
  return np.where(successes > 0, found, 0.0)


def radius(probability, noise):
  """The certified l2 radius of a class with at least this probability; 0 up to 1/2."""
  return noise * stats.norm.ppf(np.maximum(np.asarray(probability, np.float64), 0.5))


def mean_bound(values_mean, samples, alpha):
  """Hoeffding's lower bound of the mean of values in [-1, 1], with confidence 1 - alpha."""
  return np.asarray(values_mean, np.float64) - np.sqrt(2 * np.log(1 / alpha) / samples)


def cosine(bound, distance, noise):
  """The least mean cosine to u within a distance; see above.

  Args:
    bound: s, float [n].
    distance: r >= 0, a number or an array that goes with `bound`.
    noise: the standard deviation of d.
  """
  centre = stats.norm.ppf((1 + np.clip(np.asarray(bound, np.float64), -1, 1)) / 2)
  return 2 * stats.norm.cdf(centre - np.asarray(distance) / noise) - 1


class Noisy:
  """Sums a function over many noisy copies of one image, in compiled batches.

  Args:
    function: (images float32 [m, h, w, c], seed int32 [2]) -> float32 [m, k], which is summed over
      the copies: one-hot classes, or unit embeddings.
    noise: the standard deviation.
    batch_size: copies that are computed together.
  """

  def __init__(self, function, noise, batch_size=500):
    self.noise, self.batch_size = noise, batch_size

    @tf.function(autograph=False)
    def total(image, seed, count):
      shape = [batch_size, *image.shape]
      noisy = image + noise * tf.random.stateless_normal(shape, distribution.fold(seed, 0))
      values = function(noisy, distribution.fold(seed, 1))
      return tf.reduce_sum(values * tf.cast(tf.range(batch_size) < count, tf.float32)[:, None], 0)

    self._total = total

  def sum(self, image, samples, seed):
    """The sum over `samples` copies of an image float32 [h, w, c], float64 [k]."""
    parts = []
    for number, start in enumerate(range(0, samples, self.batch_size)):
      left = tf.constant(min(self.batch_size, samples - start))
      part = self._total(tf.convert_to_tensor(image), distribution.fold(seed, number), left)
      parts.append(part.numpy().astype(np.float64))
    return np.sum(parts, 0)


def certify_class(noisy, image, samples, alpha, seed, guess=100):
  """The class of the smoothed classifier at an image, and its certified radius.

  Args:
    noisy: a `Noisy` of one-hot classes.
    image: float32 [h, w, c].
    samples: draws of the estimate.
    alpha: the chance that the certificate is wrong.
    seed: int32 [2].
    guess: the number of separate draws that choose the class.

  Returns:
    (class, radius); (-1, 0.0) if it abstains.
  """
  chosen = int(np.argmax(noisy.sum(image, guess, distribution.fold(seed, 0))))
  count = noisy.sum(image, samples, distribution.fold(seed, 1))[chosen]
  found = float(radius(lower_bound(count, samples, alpha), noisy.noise))
  return (chosen, found) if found > 0 else (-1, 0.0)


def certify_direction(noisy, image, samples, alpha, seed, guess=100):
  """s, the lower bound of E<u, f(x + d)>, with u the direction of the mean of separate draws.

  Args:
    noisy: a `Noisy` of unit embeddings.
    image: float32 [h, w, c].
    samples: draws of the estimate.
    alpha: the chance that s is too large.
    seed: int32 [2].
    guess: the number of separate draws that choose u.
  """
  u = noisy.sum(image, guess, distribution.fold(seed, 0))
  u /= max(np.linalg.norm(u), 1e-12)  # an encoder may return 0, which has no direction
  mean = noisy.sum(image, samples, distribution.fold(seed, 1)) @ u / samples
  return float(mean_bound(mean, samples, alpha))


def measure(context, options):
  """The report's part "smoothing".

  Args:
    context: a `Context` of any classifier, or of an encoder.
    options: a `measurements.smoothing.Smoothing`.

  Returns:
    {"noise", "samples", "alpha", "examples"}.  For a classifier also "certified", for each radius
    {"radius", "accuracy", "interval"}: the share of images that the smoothed classifier is
    certified to get right within it; and "abstained", the share of images without a class.  For an
    encoder also "cosines", {"radius", "mean"}: the least mean cosine to u.
  """
  total = min(options.examples, context.source.size)
  noisy = Noisy(_function(context), options.noise, min(context.batch_size, options.samples))
  bar = progress.Progress(f"smoothing, noise {options.noise:g}", total)
  found = []
  for positions, images, labels in scoring.stream(context.source, context.batch_size, total):
    for row, position in enumerate(positions.tolist()):
      label = None if labels is None else int(labels[row])
      one = functools.partial(_one, context, options, noisy, position, images[row], label)
      found.append(context.store.json(f"smoothing-{position}", one))
      bar.add(1)
  part = {name: getattr(options, name) for name in ("noise", "samples", "alpha")}
  part["examples"] = total
  if context.kind == "encoder":
    bounds = np.array(found)
    errors.check_finite(bounds, "the encoder")
    means = [float(np.mean(cosine(bounds, radius, options.noise))) for radius in options.radii]
    return part | {"cosines": [{"radius": r, "mean": m} for r, m in zip(options.radii, means)]}
  right, radii = np.array([row[0] for row in found]), np.array([row[1] for row in found])
  rows = []
  for limit in options.radii:
    certain = int(np.sum(right & (radii >= limit)))
    interval = calibration.wilson(certain, total)
    rows.append({"radius": limit, "accuracy": certain / total, "interval": interval})
  return part | {"certified": rows, "abstained": float(np.mean(radii == 0))}


def _one(context, options, noisy, position, image, label):
  """For a classifier [whether the class is right, its radius], for an encoder s."""
  seed = distribution.fold([context.seed, position], _STREAM)
  asked = noisy, image, options.samples, options.alpha, seed, options.guess
  if context.kind == "encoder":
    return certify_direction(*asked)
  found, certified = certify_class(*asked)
  return [found == label, certified]


def _function(context):
  """The function that is summed over noisy copies: one-hot classes, or unit embeddings."""
  if context.kind == "encoder":
    network = context.network
    return lambda images, seed: tf.math.l2_normalize(network(images, training=False)["loc"], -1)
  model, sampled = context.model, context.modes[0] == "sampled"
  # Of a classifier made elsewhere its outputs, not the scores that attacks climb.
  model = getattr(model, "own_gradients", model.frozen)()

  def classes(images, seed):
    loc, scale = model.represent(images)
    # One draw of z for each copy: the smoothed classifier averages over both.
    values = model.from_representation(loc, scale, seed, 1) if sampled else model.head(loc)
    return tf.one_hot(tf.argmax(values, -1), context.model.classes)

  return alone(classes) if sampled and context.kind == "foreign" else classes


def alone(function):
  """A function of a `Noisy` that passes each copy through another function in a call of its own.

  For classifiers that may use one draw of their noise for all images of a call: copies that share a
  draw are not independent, and the bounds hold for independent ones.
  """

  def each(images, seed):
    one = lambda row: function(row[0][None], distribution.fold(seed, row[1]))[0]  # noqa: E731
    rows = images, tf.range(tf.shape(images)[0])
    return tf.map_fn(one, rows, fn_output_signature=tf.float32, parallel_iterations=1)

  return each
