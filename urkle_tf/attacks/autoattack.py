"""AutoAttack (Croce and Hein, 2020, Reliable evaluation): an ensemble of attacks, as data.

A `Stage` is an attack without its threat model and the loss that it climbs; a version of the
ensemble is a list of stages, each run on the images that those before it left standing.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.attacks import base, losses
from urkle_tf.attacks.apgd import APGD
from urkle_tf.attacks.fab import FAB
from urkle_tf.attacks.square import Square


@dataclasses.dataclass(frozen=True)
class Stage:
  """An attack on a classification, but for the threat model.

  Attributes:
    name: what reports call it.
    loss: of `losses`: (scores, labels) -> [n], or (scores, labels, targets) -> [n].
    make: threat model -> attack.
    steps: gradient steps, or queries, of a run.
    restarts: runs.
    targets: how many wrong classes are aimed at, one after the other, the most likely first; 0
      for a loss without targets.
    fixed_noise: whether the attack compares values between evaluations, so that an objective
      with noise must use the same at each (FAB, Square); else fresh noise serves it better.
    note: what is not as the name says, or "".
  """

  name: str
  loss: Callable
  make: Callable
  steps: int
  restarts: int
  targets: int = 0
  fixed_noise: bool = False
  note: str = ""

  @property
  def rounds(self):
    """How many times the attack is run: for each target, or once."""
    return max(self.targets, 1)

  def objective(self, scores, labels, targets=None):
    """What the attack maximises: images -> float32 [n].

    Args:
      scores: images -> float32 [n, classes].
      labels: int [n].
      targets: int [n]; only for a loss with targets.
    """
    goal = (labels, targets) if self.targets else (labels,)
    return lambda images: self.loss(scores(images), *goal)

  def fit(self, classes):
    """The stage for so many classes.

    Raises:
      UserError: if the loss needs more of them.
    """
    stage = dataclasses.replace(self, targets=min(self.targets, classes - 1))
    if self.loss is losses.dlr and classes < 3:
      raise errors.UserError(
        f"{self.name}: the DLR loss needs at least 3 classes, but there are {classes}: use apgd_ce"
      )
    if self.loss is losses.targeted_dlr and classes < 4:
      note = f"the targeted margin: {classes} classes are too few for the targeted DLR loss"
      stage = dataclasses.replace(stage, loss=losses.targeted_margin, note=note)
    return stage


def apgd_ce(steps=100, restarts=1):
  """APGD on the cross-entropy."""
  return _apgd("apgd_ce", losses.cross_entropy, steps, restarts)


def apgd_dlr(steps=100, restarts=1):
  """APGD on the difference of logits ratio."""
  return _apgd("apgd_dlr", losses.dlr, steps, restarts)


def apgd_t(steps=100, restarts=1, targets=9):
  """APGD on the targeted difference of logits ratio, target by target."""
  return _apgd("apgd_t", losses.targeted_dlr, steps, restarts, base.count("targets", targets))


def fab_t(steps=100, restarts=1, targets=9):
  """FAB at the boundary to one class after the other."""
  return Stage(
    "fab_t",
    losses.targeted_margin,
    lambda threat: FAB(threat, steps, restarts),
    base.count("steps", steps),
    base.count("restarts", restarts),
    base.count("targets", targets),
    fixed_noise=True,
  )


def square(queries=5000, restarts=1):
  """Square on the margin."""
  return Stage(
    "square",
    losses.margin,
    lambda threat: Square(threat, queries, restarts),
    base.count("queries", queries),
    base.count("restarts", restarts),
    fixed_noise=True,
  )


def _apgd(name, loss, steps, restarts, targets=0):
  return Stage(
    name,
    loss,
    lambda threat: APGD(threat, steps, restarts),
    base.count("steps", steps),
    base.count("restarts", restarts),
    targets,
  )


STAGES = {stage.__name__: stage for stage in (apgd_ce, apgd_dlr, apgd_t, fab_t, square)}

VERSIONS = {
  "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
  "rand": ("apgd_ce", "apgd_dlr", "square"),
}


def stages(version="standard", steps=100, targets=9, queries=5000, restarts=1):
  """The stages of a version of the ensemble.

  Args:
    version: "standard", or "rand" for classifiers with noise of their own, whose scores are
      then means over samples of it.
    steps: gradient steps of APGD and FAB.
    targets: of the targeted stages, at most.
    queries: of Square.
    restarts: of each stage.

  Returns:
    A list of `Stage`.

  Raises:
    UserError: for an unknown version, or a budget below 1.
  """
  if version not in VERSIONS:
    raise errors.unknown("version of autoattack", version, VERSIONS)
  budgets = {
    "apgd_ce": {"steps": steps},
    "apgd_dlr": {"steps": steps},
    "apgd_t": {"steps": steps, "targets": targets},
    "fab_t": {"steps": steps, "targets": targets},
    "square": {"queries": queries},
  }
  return [STAGES[name](restarts=restarts, **budgets[name]) for name in VERSIONS[version]]


def autoattack(
  scores, images, labels, threat, seed=(0, 0), version="standard", batch_size=250, **budgets
):
  """Attacks a classification with the whole ensemble; the worst case per image.

      adversaries, broken, stages = autoattack(model, images, labels, Linf(8 / 255))
      robust_accuracy = 1 - broken.mean()

  Args:
    scores: images float32 [m, h, w, c] -> logits or log-probabilities [m, classes], in
      TensorFlow and differentiable.  One with noise of its own should average over it (and
      "broken" is then by one evaluation each: score again with fresh noise).
    images: float [n, h, w, c] within the pixel bounds.
    labels: int [n].
    threat: a `ThreatModel`.
    seed: int32 [2].
    version: "standard" or "rand".
    batch_size: images that are attacked together.
    **budgets: `steps`, `targets`, `queries`, `restarts`: see `stages`.

  Returns:
    `(adversaries, broken, stages)`: float32 [n, h, w, c], of an image that was not broken the
    candidate that came nearest (largest margin); bool [n], true also where the image is
    misclassified as it is; and a dict for each stage: "name", "attacked" (images that still
    stood), "broken" (of them), "accuracy" (what then stands), "seconds", "note".

  Raises:
    UserError: for images, labels or scores that cannot be attacked.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if not np.issubdtype(images.dtype, np.floating):
    raise errors.UserError(
      f"an attack needs float images in [{threat.lower:g}, {threat.upper:g}], "
      f"but was given {images.dtype.name}: divide by 255"
    )
  images = images.astype(np.float32)
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise errors.UserError(
      f"{len(images)} images need as many labels, integers, but got {labels.dtype.name} of shape "
      f"{labels.shape}"
    )
  batch_size = min(batch_size, len(images))

  def batches(positions):
    """Parts of the positions, and indices of one static length that begin with each."""
    for start in range(0, len(positions), batch_size):
      part = positions[start : start + batch_size]
      yield part, np.resize(part, batch_size)

  @tf.function(autograph=False)
  def score(inputs):
    return tf.cast(scores(inputs), tf.float32)

  def checked(inputs):
    found = score(tf.constant(inputs)).numpy()
    if not np.all(np.isfinite(found)):
      raise errors.UserError("the scores are NaN or infinite: they cannot be attacked")
    return found

  everything = np.arange(len(images))
  clean = np.concatenate([checked(images[rows])[: len(part)] for part, rows in batches(everything)])
  classes = clean.shape[1]
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.UserError(f"labels must be in 0 to {classes - 1}, the classes of the scores")
  found = [stage.fit(classes) for stage in stages(version, **budgets)]
  adversaries, worst = images.copy(), losses.margin(clean, labels).numpy()
  broken = np.argmax(clean, 1) != labels
  numbers = []
  for number, stage in enumerate(found):
    started, attacked = time.perf_counter(), int(np.sum(~broken))

    @tf.function(autograph=False)
    def find(inputs, truth, targets, seed, stage=stage):
      return stage.make(threat)(stage.objective(score, truth, targets), inputs, seed)

    for target in range(stage.rounds):
      targets = losses.wrong_class(clean, labels, target).numpy()
      for batch, (part, rows) in enumerate(batches(np.flatnonzero(~broken))):
        key = distribution.fold(seed, number, target, batch)
        inputs = (tf.constant(array[rows]) for array in (images, labels, targets))
        candidates = find(*inputs, key).numpy()
        attained = checked(candidates)[: len(part)]
        wrong = np.argmax(attained, 1) != labels[part]
        margins = losses.margin(attained, labels[part]).numpy()
        taken = wrong | (margins > worst[part])
        adversaries[part[taken]] = candidates[: len(part)][taken]
        worst[part[taken]], broken[part] = margins[taken], wrong
    standing = int(np.sum(~broken))
    numbers.append(
      {
        "name": stage.name,
        "attacked": attacked,
        "broken": attacked - standing,
        "accuracy": standing / len(images),
        "seconds": round(time.perf_counter() - started, 2),
        "note": stage.note,
      }
    )
  return adversaries, broken, numbers
