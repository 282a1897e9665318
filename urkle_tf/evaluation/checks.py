"""Checks whether robustness figures can be trusted: the report's part "checks".

Masked gradients make weak attacks look like a strong defence (Athalye et al., 2018, Obfuscated
gradients give a false sense of security).  Each check looks for one sign of that on a few images,
and passes or fails with its numbers.  A failed check does not say by how much the figures are
wrong.  It says that they may rest on masked gradients, or on too little effort.
"""

import contextlib
import math

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution
from urkle_tf.attacks import losses
from urkle_tf.attacks.plan import Plan
from urkle_tf.attacks.threat.base import axes
from urkle_tf.evaluation import adversaries, scoring
from urkle_tf.evaluation.calibration import of_label
from urkle_tf.output import progress, tables

_TOLERANCE = 0.02  # of the images: what chance decides
_STEPS, _MORE_STEPS, _MORE_RESTARTS, _QUERIES, _DRAWS = 20, 100, 2, 500, 10
_SHARE = 0.1  # of images that may have no gradient, or saturate
_GAP = 0.05  # of the images: what noise, or the far end of one step, may cost an attack
_FAR = 0.2  # of the images: how much stronger many steps may be than one
_ONE = -6e-8  # the log of a probability that is 1 in float32
_STREAM = 6  # of a seed


def measure(context, examples=200):
  """The report's part "checks", of the served mode.

  White box means PGD with 20 steps on the cross-entropy and then, on the images left, with 100
  steps and 2 restarts on the margin.  Black box means Square with 500 queries.

  Args:
    context: a `Context` of a classifier, after its attacks.
    examples: how many images are checked, the first ones.

  Returns:
    A list of dicts: "name", "passed", "detail" (a sentence) and numbers; accuracies are fractions
    of the checked images.
  """
  checks, total = _Checks(context, examples), 8 if context.modes[0] == "sampled" else 7
  bar = progress.Progress(context.title("checks"), total, "checks")
  found = []
  for check in checks.all(context.robust):
    found.append(check)
    bar.add(1, f"{check['name']} {'passed' if check['passed'] else 'failed'}")
  return found


class _Checks:
  """What the checks share: the images, and one compiled attack of each kind."""

  def __init__(self, context, examples):
    source = context.source
    self._classifier, self._scorer = context.model, context.scorer
    self._modes, self._mode = context.modes, context.modes[0]
    self._norm, self._epsilon, self._eot = context.norm, float(context.epsilon), context.eot
    self._threat = attacks.from_norm(self._norm, self._epsilon)
    self._count = min(examples, source.size)
    self._batch_size = min(context.batch_size, self._count)
    self._seed = distribution.fold([context.seed, 0], _STREAM)
    _, self._images, self._labels = next(scoring.stream(source, self._count, self._count))
    self._clean = self._score(self._images)
    self._right = np.argmax(self._clean, 1) == self._labels
    self._tolerance = max(round(_TOLERANCE * self._count), 1)

  def _score(self, images):
    """Log-probabilities [n, classes] of the served mode, by draws that no attack knows."""
    return self._scorer(images)[self._mode]

  def _batches(self, mask):
    """(positions, images, labels) in batches of one size, the last one padded."""
    positions = np.flatnonzero(mask)
    for start in range(0, len(positions), self._batch_size):
      part = positions[start : start + self._batch_size]
      full = scoring.pad(part, self._batch_size)
      yield part, tf.constant(self._images[full]), tf.constant(self._labels[full])

  def _broken(self, find, plan, epsilon, mask, stream):
    """Which images in `mask` an attack breaks, bool, and log p(y) at its results."""
    broken, values = np.zeros(self._count, bool), of_label(self._clean, self._labels)
    for number, (positions, images, labels) in enumerate(self._batches(mask)):
      seed = distribution.fold(self._seed, stream, number)
      candidates, _ = find(images, labels, seed, *plan.radius_and_step(epsilon))
      for found in np.asarray(candidates)[:, : len(positions)]:
        scores = self._score(found)
        truth = self._labels[positions]
        broken[positions] |= np.argmax(scores, 1) != truth
        values[positions] = np.minimum(values[positions], of_label(scores, truth))
    return broken, values

  def _pgd(self, loss, steps, restarts=1):
    return Plan(attacks.PGD(self._threat, steps, restarts=restarts, keep="best"), loss)

  def _compile(self, plan, mode=None, eot=None):
    mode = mode or self._mode
    return adversaries.adversary(self._classifier, plan, mode, eot or self._eot)

  def all(self, reported):
    """Runs the checks, one after the other."""
    epsilon, right = self._epsilon, self._right
    many = self._pgd(losses.cross_entropy, _STEPS)
    find = self._compile(many)
    broken, values = self._broken(find, many, epsilon, right, 0)
    zeros, points = self._gradients()
    yield self._check_gradients(zeros)
    yield self._check_one_step(points, right & ~broken, values)
    yield self._check_epsilon(find, many, right & ~broken)

    more = self._pgd(losses.margin, _MORE_STEPS, _MORE_RESTARTS)
    better, _ = self._broken(self._compile(more), more, epsilon, right & ~broken, 1)
    standing = right & ~broken & ~better
    yield self._check_effort(reported[: self._count], standing)
    yield self._check_black_box(standing)
    yield self._check_random_noise(standing)
    if self._mode == "sampled":
      yield self._check_noise(many, broken, standing)
    yield self._check_saturation()

  def _gradients(self):
    """([n] share of zeros in the cross-entropy's own gradient, [4, n, ...] one-step points)."""
    attacked_zeros, points = self._one_step(self._classifier.frozen())
    own = getattr(self._classifier, "own_gradients", None)
    return attacked_zeros if own is None else self._one_step(own())[0], points

  def _one_step(self, model):
    """The share of zeros in the gradients, and points along one step of size epsilon."""
    threat = self._threat

    @tf.function(autograph=False)
    def step(images, labels, seed):
      start = threat.random_start(images, seed, 1e-3)
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(start)
        scores = self._scores(model, start, seed)
        total = tf.reduce_sum(losses.cross_entropy(scores, labels))
      gradient = tape.gradient(total, start)
      if gradient is None:
        gradient = tf.zeros_like(start)
      dead = tf.cast((gradient == 0) | ~tf.math.is_finite(gradient), tf.float32)
      gradient = tf.where(tf.math.is_finite(gradient), gradient, 0.0)
      end = threat.step(start, gradient, images, threat.epsilon)
      points = tf.stack([images + share * (end - images) for share in (0.25, 0.5, 0.75, 1.0)])
      return tf.reduce_mean(dead, axes(images)), points

    zeros, points = np.ones(self._count), np.stack([self._images] * 4)
    with contextlib.suppress(LookupError, TypeError, ValueError):  # operations without gradient
      for number, (positions, images, labels) in enumerate(self._batches(self._right)):
        shares, ends = step(images, labels, distribution.fold(self._seed, 2, number))
        zeros[positions] = shares.numpy()[: len(positions)]
        points[:, positions] = ends.numpy()[:, : len(positions)]
    return zeros, points

  def _scores(self, model, images, seed):
    loc, scale = model.represent(images)
    if self._mode == "deterministic":
      return tf.nn.log_softmax(model.head(loc))
    return model.from_representation(loc, scale, distribution.fold(seed, 1), self._eot)

  def _check_gradients(self, zeros):
    dead = _share(zeros[self._right] >= 0.99) if self._right.any() else 0.0
    mean = float(zeros[self._right].mean()) if self._right.any() else 0.0
    found = self._classifier.metadata.get("gradients", {})
    crossed = ", ".join(found.get("bridged", ()))
    detail = (
      f"{dead:.1%} of the images have no gradient of the cross-entropy (at least 99% of its "
      f"entries are 0); {mean:.1%} of all entries are 0"
    )
    if crossed:
      detail += f"; attacks cross {crossed} by straight-through gradients"
    return _check("gradients", dead <= _SHARE, detail, images_without=dead, zero=mean)

  def _check_one_step(self, points, many, values):
    scores = [self._score(part) for part in points]
    right = [self._right & (np.argmax(part, 1) == self._labels) for part in scores]
    one, several = _share(right[-1]), _share(many)
    within = one - _share(np.all(right, 0))
    detail = (
      f"accuracy {one:.1%} after one step, {several:.1%} after {_STEPS}; "
      f"{within:.1%} of the images break only part of the way along the one step "
      "(catastrophic overfitting: a loss that falls again before its end)"
    )
    passed = not (one - several > _FAR and within > _GAP)
    numbers = {"accuracy_one": one, "accuracy_many": several}
    of_one = of_label(scores[-1], self._labels)
    for name, logs in (("loss_one", of_one), ("loss_many", values)):
      numbers[name] = -float(np.mean(logs, dtype=np.float64))
    return _check("one_step", passed, detail, **numbers, broken_within=within)

  def _check_epsilon(self, find, plan, standing):
    pixels = math.prod(self._images.shape[1:])
    full = 0.5 * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[self._norm]
    radii, shares = [self._epsilon], [_share(standing)]
    larger = sorted({2 * self._epsilon, math.sqrt(2 * self._epsilon * full), full})
    for number, epsilon in enumerate(size for size in larger if self._epsilon < size <= full):
      broken, _ = self._broken(find, plan, epsilon, standing, 10 + number)
      standing = standing & ~broken
      radii.append(epsilon)
      shares.append(_share(standing))
    most = min(0.1, 1 / self._classifier.classes)
    steps = ", ".join(
      f"{share:.1%} at {tables.radius(size, self._norm)}"
      for size, share in zip(radii, shares, strict=True)
    )
    detail = (
      f"accuracy under PGD: {steps}; at the last, which turns any image grey, at most "
      f"{most:.1%} may be left"
    )
    return _check("epsilon", shares[-1] <= most, detail, epsilons=radii, accuracies=shares)

  def _check_effort(self, reported, standing):
    before, after = _share(reported), _share(reported & standing)
    detail = (
      f"reported accuracy on these images {before:.1%}; {after:.1%} with PGD of "
      f"{_MORE_STEPS} steps and {_MORE_RESTARTS} restarts on the margin as well"
    )
    passed = int(np.sum(reported & ~standing)) <= self._tolerance
    return _check("effort", passed, detail, accuracy=before, accuracy_more=after)

  def _check_black_box(self, standing):
    (plan,) = attacks.Square(self._threat, _QUERIES).plans()
    broken, _ = self._broken(self._compile(plan), plan, self._epsilon, standing, 3)
    before, after = _share(standing), _share(standing & ~broken)
    detail = (
      f"accuracy {before:.1%} under PGD; Square with {_QUERIES} queries and no gradient "
      f"breaks {int(broken.sum())} images of what that leaves"
    )
    passed = before - after <= _GAP  # random search has other luck than gradients
    return _check("black_box", passed, detail, accuracy=before, accuracy_square=after)

  def _check_random_noise(self, standing):
    right, images = self._right.copy(), tf.constant(self._images)
    for draw in range(_DRAWS):
      seed = distribution.fold(self._seed, 4, draw)
      noise = tf.random.stateless_normal(self._images.shape, seed)
      moved = self._threat.step(images, noise, images, self._epsilon).numpy()
      right &= np.argmax(self._score(moved), 1) == self._labels
    lucky, noisy, left = int(np.sum(standing & ~right)), _share(right), _share(standing)
    detail = (
      f"accuracy {noisy:.1%} under {_DRAWS} draws of random noise of the same radius, "
      f"{left:.1%} under PGD; noise breaks {lucky} images that PGD does not"
    )
    passed = lucky <= self._tolerance
    return _check("random_noise", passed, detail, accuracy_noise=noisy, accuracy=left)

  def _check_noise(self, plan, broken, standing):
    served = [self._served(distribution.fold(self._seed, 7, call)) for call in range(2)]
    flips = _share(served[0] != served[1])
    single, _ = self._broken(self._compile(plan, eot=1), plan, self._epsilon, self._right, 5)
    one, several = _share(self._right & ~single), _share(self._right & ~broken)
    detail = (
      f"two served predictions differ for {flips:.1%} of the images; accuracy "
      f"{one:.1%} under PGD with one draw a step, {several:.1%} with {self._eot}"
    )
    passed = flips <= _GAP and one - several <= _GAP
    numbers = {"flips": flips, "accuracy_one_draw": one, "accuracy_draws": several}
    if "deterministic" in self._modes:
      find = self._compile(plan, mode="deterministic")
      other, _ = self._broken(find, plan, self._epsilon, standing, 6)
      numbers["broken_by_mean"] = _share(other)
      detail += f"; adversaries of z = mu break {int(other.sum())} images of what PGD leaves"
      passed = passed and int(other.sum()) <= self._tolerance
    return _check("noise", passed, detail, **numbers)

  def _served(self, seed):
    """The predictions [n] of one served call, with its own number of samples."""
    model = self._classifier

    @tf.function(autograph=False)
    def call(images, seed):
      return tf.argmax(model.from_representation(*model.represent(images), seed, model.samples), 1)

    found = np.zeros(self._count, np.int64)
    for number, (positions, images, _) in enumerate(self._batches(self._labels >= 0)):
      predictions = call(images, distribution.fold(seed, number)).numpy()
      found[positions] = predictions[: len(positions)]
    return found

  def _check_saturation(self):
    share = _share(self._clean.max(1) > _ONE)
    detail = (
      f"{share:.1%} of the images have a probability that is 1 in float32, where the "
      "cross-entropy has no gradient"
    )
    return _check("saturation", share <= _SHARE, detail, saturated=share)


def _share(right):
  return float(np.mean(right))


def _check(name, passed, detail, **numbers):
  return {"name": name, "passed": bool(passed), "detail": detail, **numbers}
