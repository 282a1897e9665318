"""AutoAttack (Croce and Hein, 2020, Reliable evaluation): an ensemble of attacks.

Each stage attacks only the images that the stages before it did not break.
"""

import dataclasses
import time
from typing import ClassVar

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.attacks import base, losses
from urkle_tf.attacks.apgd_ce import APGDCE
from urkle_tf.attacks.apgd_dlr import APGDDLR
from urkle_tf.attacks.apgd_t import APGDT
from urkle_tf.attacks.fab_t import FAB
from urkle_tf.attacks.square import Square

VERSIONS: dict[str, tuple[type[base.Attack], ...]] = {
  "standard": (APGDCE, APGDT, FAB, Square),
  "rand": (APGDCE, APGDDLR, Square),
}


class AutoAttack(base.Attack):
  """The stages of a version of the ensemble, for an evaluation.

  "rand" is the published version for noisy classifiers (APGD-CE, APGD-DLR), and Square in addition.

  Attributes:
    stages: the attacks, in their order.
  """

  refused: ClassVar = {"training": "runs several attacks on a classifier: use pgd"}

  def __init__(self, threat, version="standard", steps=100, targets=9, queries=5000, restarts=1):
    """Builds the stages.

    Args:
      threat: a `ThreatModel`.
      version: "standard", or "rand" for noisy classifiers, whose scores are then means over samples
        of the noise.
      steps: gradient steps of APGD and FAB.
      targets: how many wrong classes the targeted stages aim at, at most.
      queries: forward passes of Square.
      restarts: runs of each stage.

    Raises:
      UserError: for an unknown version, or a budget below 1.
    """
    errors.one_of("version of autoattack", version, VERSIONS)
    super().__init__(threat, restarts)
    budget = {"steps": steps, "targets": targets, "queries": queries, "restarts": restarts}
    self.stages = [stage(threat, **stage.accepted(budget)) for stage in VERSIONS[version]]

  def run(self, *arguments, **options):
    """Raises `UserError`: an ensemble has no single objective; see `autoattack`."""
    raise errors.UserError(
      "AutoAttack has several losses: call attacks.autoattack(scores, images, labels, threat)"
    )

  def plans(self, classes=None):
    found = [plan for stage in self.stages for plan in stage.plans(classes)]
    return [dataclasses.replace(plan, ensemble=self.name) for plan in found]


def autoattack(
  scores, images, labels, threat, seed=(0, 0), version="standard", batch_size=250, **budgets
):
  """Attacks a classifier with the whole ensemble, and keeps the worst case for each image.

  Args:
    scores: images float32 [m, h, w, c] -> logits or log-probabilities [m, classes], in TensorFlow
      and differentiable.  A noisy classifier should average over its noise.  Each "broken" then
      rests on one evaluation, so score the adversaries again with fresh noise.
    images: float [n, h, w, c] within the pixel bounds.
    labels: int [n].
    threat: a `ThreatModel`.
    seed: int32 [2].
    version: "standard" or "rand".
    batch_size: how many images are attacked together.
    **budgets: `steps`, `targets`, `queries`, `restarts`: see `AutoAttack`.

  Returns:
    `(adversaries, broken, stages)`.  The adversaries are float32 [n, h, w, c]; an image that was
    not broken has the candidate that came nearest (largest margin).  `broken` is bool [n], also
    true if the clean image is misclassified.  `stages` has a dict for each stage: "name",
    "attacked" (images not broken before), "broken" (how many of them), "accuracy" (afterwards),
    "seconds", "note".

  Raises:
    UserError: for images, labels or scores that cannot be attacked.

  ```python
  threat = urkle_tf.attacks.Linf(epsilon=8 / 255)
  budget = {"steps": 2, "targets": 2, "queries": 10}  # leave it out for AutoAttack's own
  adversaries, broken, stages = urkle_tf.attacks.autoattack(
    logits, images, labels, threat, **budget
  )
  robust_accuracy = 1 - broken.mean()
  ```
  """
  errors.whole(1, "autoattack", batch_size=batch_size)
  attack = AutoAttack(threat, version, **budgets)
  images, labels = _checked(images, labels, threat)
  classification = _Classification(scores, images, labels, batch_size)
  plans = attack.plans(classification.classes)
  rows = [classification.attack(plan, number, seed) for number, plan in enumerate(plans)]
  return classification.adversaries, classification.broken, rows


def _checked(images, labels, threat):
  """The images as float32, and the labels."""
  images, labels = np.asarray(images), np.asarray(labels)
  base.check_floats(images.dtype, threat)
  if not images.size:
    raise errors.UserError("autoattack needs at least one image")
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise errors.UserError(
      f"{len(images)} images need {len(images)} integer labels, got {labels.dtype.name} of shape "
      f"{labels.shape}"
    )
  base.check_pixels(images, threat, "autoattack")
  return images.astype(np.float32), labels


def _tensor(found):
  """What `scores` returned; raises `UserError` for several outputs."""
  if isinstance(found, dict | list | tuple):
    raise errors.UserError(
      "the scores must be one tensor [n, classes], and these are several: give a function that "
      "returns one of them"
    )
  return found


class _Classification:
  """The images, and the worst adversary found for each so far."""

  def __init__(self, scores, images, labels, batch_size):
    self._images, self._labels = images, labels
    self._batch_size = min(batch_size, len(images))
    self._score = tf.function(lambda x: tf.cast(_tensor(scores(x)), tf.float32), autograph=False)
    parts = self._batches(np.arange(len(images)))
    self._clean = np.concatenate([self._scored(images[rows])[: len(part)] for part, rows in parts])
    self.classes = self._clean.shape[1]
    if labels.min() < 0 or labels.max() >= self.classes:
      raise errors.UserError(
        f"labels must be from 0 to {self.classes - 1}, the classes of the scores, got "
        f"{labels.min()} to {labels.max()}"
      )
    self.adversaries = images.copy()
    self.broken = np.argmax(self._clean, 1) != labels
    self._worst = losses.margin(self._clean, labels).numpy()

  def _batches(self, positions):
    """Parts of the positions, and indices of one static length that begin with each."""
    for start in range(0, len(positions), self._batch_size):
      part = positions[start : start + self._batch_size]
      yield part, np.resize(part, self._batch_size)

  def _scored(self, inputs):
    found = self._score(tf.constant(inputs)).numpy()
    if found.ndim != 2 or len(found) != len(inputs):
      raise errors.UserError(
        f"the scores of {len(inputs)} images must be [{len(inputs)}, classes], got shape "
        f"{found.shape}"
      )
    if not np.all(np.isfinite(found)):
      raise errors.UserError(
        "the scores are NaN or infinite: check the model, and the range of its pixels"
      )
    return found

  def attack(self, plan, number, seed):
    """Runs a plan on the images not broken yet; returns the stage's row."""
    started, attacked = time.perf_counter(), int(np.sum(~self.broken))

    @tf.function(autograph=False)
    def find(inputs, truth, targets, seed):
      return plan.attack(plan.objective(self._score, truth, targets), inputs, seed)

    for target in range(plan.rounds):
      targets = losses.wrong_class(self._clean, self._labels, target).numpy()
      for batch, (part, rows) in enumerate(self._batches(np.flatnonzero(~self.broken))):
        key = distribution.fold(seed, number, target, batch)
        inputs = (tf.constant(array[rows]) for array in (self._images, self._labels, targets))
        self._take(part, find(*inputs, key).numpy())
    standing = int(np.sum(~self.broken))
    return {
      "name": plan.name,
      "attacked": attacked,
      "broken": attacked - standing,
      "accuracy": standing / len(self._images),
      "seconds": round(time.perf_counter() - started, 2),
      "note": plan.note,
    }

  def _take(self, part, candidates):
    """Keeps candidates that break their image, or come nearer to breaking it than any before."""
    attained, labels = self._scored(candidates)[: len(part)], self._labels[part]
    wrong = np.argmax(attained, 1) != labels
    margins = losses.margin(attained, labels).numpy()
    taken = wrong | (margins > self._worst[part])
    self.adversaries[part[taken]] = candidates[: len(part)][taken]
    self._worst[part[taken]], self.broken[part] = margins[taken], wrong
