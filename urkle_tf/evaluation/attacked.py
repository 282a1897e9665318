"""What a classifier does on the worst images that an attack finds.

The sampled classifier and the one of z = loc are two classifiers.  Each is attacked by its
own gradients, and each is also scored on what was found against the other: an adversary is
an adversary, whoever found it.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors, progress, spec
from urkle_tf.evaluation import clean, scoring


@dataclasses.dataclass(frozen=True)
class Plan:
  """An attack without its radius.

  Attributes:
    name: what the report calls it.
    steps: gradient steps a run.
    restarts: runs.
    step_size: epsilon -> the step's norm in pixel units.
    make: (threat model, step size) -> attack.
  """

  name: str
  steps: int
  restarts: int
  step_size: Callable
  make: Callable


def _pgd(defaults, steps=None, step_size=None, restarts=None, start=1.0):
  steps = defaults["steps"] if steps is None else steps
  step_size = defaults["step_size"] if step_size is None else step_size
  restarts = defaults["restarts"] if restarts is None else restarts
  if not isinstance(steps, int) or steps < 1:  # before the step size is computed from it
    raise errors.UserError(f"attack steps must be an integer >= 1, but is {steps!r}")
  return Plan(
    "pgd",
    steps,
    restarts,
    lambda epsilon: 2.5 * epsilon / steps if step_size is None else step_size,
    lambda threat, size: attacks.PGD(threat, steps, size, start, restarts, keep="best"),
  )


def _fgsm(defaults, start=1e-3):
  del defaults
  return Plan(
    "fgsm", 1, 1, lambda epsilon: epsilon, lambda threat, size: attacks.FGSM(threat, start)
  )


def _rs_fgsm(defaults):
  del defaults
  return Plan(
    "rs_fgsm", 1, 1, lambda epsilon: 1.25 * epsilon, lambda threat, size: attacks.RSFGSM(threat)
  )


ATTACKS = {"fgsm": _fgsm, "pgd": _pgd, "rs_fgsm": _rs_fgsm}


def plans(texts, norm, epsilons, image_shape, steps=20, step_size=None, restarts=1):
  """Reads and checks specs of attacks, before any work is done.

  Args:
    texts: specs, such as `"fgsm"` or `"pgd(steps=100, restarts=2)"`: a list, or one string
      with commas in between.
    norm: "linf", "l2" or "l1".
    epsilons: radii in pixel units.
    image_shape: (height, width, channels).
    steps: of an attack whose spec names none.
    step_size: likewise; None for 2.5 epsilon / steps.
    restarts: likewise.

  Returns:
    A list of `Plan`.

  Raises:
    UserError: for an unknown attack, or an option or a radius out of its range.
  """
  texts = _split(texts) if isinstance(texts, str) else list(texts)
  if not texts:
    raise errors.UserError("give --attacks: pgd, fgsm or rs_fgsm, with commas in between")
  defaults = {"steps": steps, "step_size": step_size, "restarts": restarts}
  found = [spec.call(ATTACKS, text, "attack", defaults=defaults) for text in texts]
  for epsilon in epsilons:
    threat = attacks.from_norm(norm, epsilon)
    threat.check(tf.zeros([1, *image_shape]))
    for plan in found:
      plan.make(threat, plan.step_size(epsilon))
  return found


def _split(text):
  """Splits at the commas that are not inside parentheses."""
  parts, depth = [""], 0
  for character in text:
    depth += (character == "(") - (character == ")")
    if character == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return [part.strip() for part in parts if part.strip()]


def adversary(classifier, plan, norm, mode, eot=20):
  """Compiles an attack on one mode of a classifier.

  The objective is -log p(y).  In the sampled mode p(y) is the mean over `eot` samples of z
  (expectation over transformation), drawn afresh at every evaluation: a counter in a variable
  tells the evaluations apart, since the attack hands its objective nothing but images.

  Args:
    classifier: a `Classifier`.
    plan: a `Plan`.
    norm: of the threat model.
    mode: "sampled" or "deterministic".
    eot: samples of z an evaluation.

  Returns:
    A function (images float32 [n, h, w, c], labels int [n], seed int32 [2], epsilon, step
    size) -> (adversaries, share of zero gradients).
  """
  evaluations = tf.Variable(0, trainable=False, dtype=tf.int64)  # GPUs add no int32

  @tf.function
  def find(images, labels, seed, epsilon, step_size):
    attack = plan.make(attacks.from_norm(norm, epsilon), step_size)
    noise = distribution.fold(seed, 1)
    frozen = classifier.frozen()
    evaluations.assign(0)

    def objective(neighbours):
      loc, scale = frozen.represent(neighbours)
      if mode == "deterministic":
        values = tf.nn.log_softmax(frozen.head(loc))
      else:
        fresh = distribution.fold(noise, evaluations.assign_add(1))
        values = frozen.from_representation(loc, scale, fresh, eot)
      return -tf.gather(values, labels, batch_dims=1)

    found, info = attack.run(objective, images, distribution.fold(seed, 0))
    return found, info["zero_gradients"]

  return find


class Worst:
  """Of each image the candidate that hurts a classifier most.

  That is one that is misclassified, and of several such or none such the one of the lowest
  log p(y).

  Args:
    log_probabilities: float32 [n, classes] of the first candidates, the clean images.
    labels: int [n].
  """

  def __init__(self, log_probabilities, labels):
    self.log_probabilities = log_probabilities.copy()
    self._labels = labels

  @property
  def right(self):
    """Which images no candidate broke, bool [n]."""
    return np.argmax(self.log_probabilities, 1) == self._labels

  @property
  def of_label(self):
    """The worst candidates' log p(y), float32 [n]."""
    return self.log_probabilities[np.arange(len(self._labels)), self._labels]

  def update(self, positions, log_probabilities):
    """Offers candidates for the images at `positions`; returns bool: which were taken."""
    labels = self._labels[positions]
    taken = _hurt(log_probabilities, labels) > _hurt(self.log_probabilities[positions], labels)
    self.log_probabilities[positions[taken]] = log_probabilities[taken]
    return taken

  def merge(self, other):
    """Offers another's candidates."""
    self.update(np.arange(len(self._labels)), other.log_probabilities)


def _hurt(log_probabilities, labels):
  rows = np.arange(len(labels))
  wrong = np.argmax(log_probabilities, 1) != labels
  return wrong * 1e6 - log_probabilities[rows, labels]


def radius(epsilon):
  """A radius as people write it: 0.1, 8/255 or a short decimal."""
  steps = epsilon * 255
  if abs(float(f"{epsilon:.2g}") - epsilon) > 1e-9 and abs(steps - round(steps)) < 1e-6:
    return f"{round(steps)}/255"
  return f"{epsilon:.4g}"


def measure(
  classifier,
  source,
  labels,
  log_probabilities,
  scorer,
  found,
  norm,
  epsilons,
  batch_size=250,
  eot=20,
  seed=0,
  standing=False,
  observe=None,
):
  """The report's part "attacks": a row for each attack, radius and mode.

  A row's "accuracy" is the share of images that are classified rightly as they are, on the
  adversary found against the mode itself, and on that found against the other mode, scored
  with draws that no attack knows; its NLL, ECE and Brier score are those of the candidate
  that hurts most.  "own_accuracy" is that on the images as they are and the mode's own
  adversaries alone.

  Args:
    classifier: a `Classifier`.
    source: a labelled `Source`.
    labels: int [n].
    log_probabilities: {mode: float32 [n, classes]} of the clean images.
    scorer: a `Scorer` for `batch_size`.
    found: `Plan`s.
    norm: of the threat model.
    epsilons: radii in pixel units.
    batch_size: images that are attacked together.
    eot: samples of z in each evaluation of the sampled mode's objective.
    seed: of starts and noise.
    standing: attack only the images that no earlier row of the same or a smaller radius broke
      in every mode, and count what those rows found.  Much faster; a row then tells of all
      attacks so far, and only the first has an "own_accuracy".
    observe: called as observe(row number, mode, positions, images, adversaries, taken,
      log_probabilities) with every batch: `taken` says which candidates hurt most so far.

  Returns:
    (rows, list of bool and float32 pairs): the rows, and for each of them whether each image
    was classified rightly throughout and the log p(y) of its worst candidate.
  """
  modes = tuple(log_probabilities)
  seed = distribution.fold([seed, 0], scoring.ATTACK_STREAM)
  rows: list[dict] = []
  earlier: list[tuple[float, dict]] = []
  details, total = [], len(labels)
  for number, plan in enumerate(found):
    compiled = {mode: adversary(classifier, plan, norm, mode, eot) for mode in modes}
    for epsilon in epsilons:
      started, attacked = time.perf_counter(), 0
      worst = {mode: Worst(log_probabilities[mode], labels) for mode in modes}
      own = {mode: worst[mode].right for mode in modes}
      zeros = dict.fromkeys(modes, 0.0)
      mask = None
      alone = not any(before <= epsilon for before, _ in earlier)
      if standing:
        for before, state in earlier:
          if before <= epsilon:
            for mode in modes:
              worst[mode].merge(state[mode])
        mask = np.any([worst[mode].right for mode in modes], axis=0)
      count = total if mask is None else int(mask.sum())
      bar = progress.Progress(f"{plan.name}({plan.steps}) {norm} {radius(epsilon)}", count)
      for part, (positions, images, truth) in enumerate(scoring.stream(source, batch_size, mask)):
        size = len(positions)
        padded = tf.constant(scoring.pad(images, batch_size))
        padded_truth = tf.constant(scoring.pad(truth, batch_size))
        for mode in modes:
          key = distribution.fold(seed, number, part, modes.index(mode))
          candidates, zero = compiled[mode](
            padded,
            padded_truth,
            key,
            tf.constant(epsilon, tf.float32),
            tf.constant(plan.step_size(epsilon), tf.float32),
          )
          candidates = candidates.numpy()[:size]
          zeros[mode] += float(zero) * size
          for judge, values in scorer(candidates).items():
            taken = worst[judge].update(positions, values)
            if judge == mode:
              own[mode][positions] &= np.argmax(values, 1) == truth
            if observe is not None:
              row_number = len(rows) + modes.index(judge)
              observe(row_number, judge, positions, images, candidates, taken, values)
        attacked += size
        so_far = "  ".join(f"{mode} {100 * worst[mode].right.mean():.1f}%" for mode in modes)
        bar.add(size, so_far)
      if standing:
        earlier.append((epsilon, worst))
      for mode in modes:
        row = {
          "name": plan.name,
          "norm": norm,
          "epsilon": float(epsilon),
          "steps": plan.steps,
          "restarts": plan.restarts,
          "eot": eot if mode == "sampled" else 1,
          "mode": mode,
          **clean.scores(worst[mode].log_probabilities, labels),
          "step_size": float(plan.step_size(epsilon)),
          "examples": total,
          "attacked": attacked,
          "zero_gradients": zeros[mode] / max(attacked, 1),
          "seconds": round(time.perf_counter() - started, 2),
        }
        if alone:
          row["own_accuracy"] = float(own[mode].mean())
          row["own_interval"] = clean.wilson(int(own[mode].sum()), total)
        rows.append(row)
        details.append((worst[mode].right, worst[mode].of_label))
  return rows, details
