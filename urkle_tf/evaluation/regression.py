"""Measures a regressor: its error, clean and attacked."""

import math

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution
from urkle_tf.evaluation import adversaries, scoring

_CHUNK = 25  # samples of z that are in memory at once


def measure(context, attack):
  """Errors of a regressor, on clean images and on the worst that an attack finds.

  The attack maximises the squared error of the mean prediction over z, with fresh samples in each
  evaluation.  The sampled regressor and the one with z = mu are two regressors.  Each is attacked
  through its own gradients.  An image counts with its worst version, itself or an adversary of
  either, scored with samples that no attack knows.

  Args:
    context: a `Context` of a `Regressor`, with a `Source` whose labels are numbers.
    attack: an `attacks.PGD`.

  Returns:
    {"target", "spread", "examples", "clean", "attacks"}.  "spread" is the labels' standard
    deviation: the error of predicting their mean.  "clean" holds "mode" (the one that is served),
    "rmse", "mae" and "r2" (1 - rmse^2 / spread^2), and if z is sampled, "deterministic" with the
    same.  "attacks" has a row for each mode, with the attack's settings.
  """
  found = context.over_first(
    context.source.size, "regression", f"pgd({attack.steps})", _judge(context, attack)
  )
  labels = found["labels"].astype(np.float64)
  spread = float(labels.std())
  (served, *others), described = context.modes, attack.describe()
  names = ("name", "norm", "epsilon", "steps", "step_size", "restarts")
  return {
    "target": context.source.target,
    "spread": spread,
    "examples": len(labels),
    "clean": {
      "mode": served,
      **_scores(found[f"clean.{served}"], spread),
      **{mode: _scores(found[f"clean.{mode}"], spread) for mode in others},
    },
    "attacks": [
      {
        **{name: described[name] for name in names},
        "eot": context.eot if mode == "sampled" else 1,
        "mode": mode,
        **_scores(found[f"worst.{mode}"], spread),
      }
      for mode in context.modes
    ],
  }


def _judge(context, attack):
  """A function from a batch to {"labels", "clean.MODE", "worst.MODE"}: errors of each image."""
  regressor, modes = context.model, context.modes
  base, scoring_seed = (
    distribution.fold([context.seed, 0], stream)
    for stream in (scoring.ATTACK_STREAM, scoring.SCORE_STREAM)
  )
  score = _scorer(regressor, modes, context.samples, scoring_seed)
  plan = attacks.Plan(attack, _squared_error)
  find = {mode: adversaries.adversary(regressor, plan, mode, context.eot) for mode in modes}
  radius_and_step = plan.radius_and_step(context.epsilon)

  def compute(number, images, truth):
    padded = scoring.pad(images, context.batch_size)
    wanted = scoring.pad(truth.astype(np.float32), context.batch_size)
    clean = {mode: _error(found, truth) for mode, found in score(padded).items()}
    worst = dict(clean)
    for mode in modes:
      seed = distribution.fold(base, number, regressor.modes.index(mode))
      candidates, _ = find[mode](padded, wanted, seed, *radius_and_step)
      for candidate in candidates:  # the best iterate and, if z is sampled, the last one
        for judge, found in score(candidate).items():
          worst[judge] = np.maximum(worst[judge], _error(found, truth))
    found = {"labels": truth} | {f"clean.{mode}": error for mode, error in clean.items()}
    return found | {f"worst.{mode}": error for mode, error in worst.items()}

  return compute


def _squared_error(predictions, labels):
  return tf.reduce_sum(tf.square(predictions - labels[:, None]), -1)


def _error(found, truth):
  return np.abs(found[: len(truth), 0] - truth)


def _scores(error, spread):
  error = error.astype(np.float64)
  square = float(np.mean(error**2))
  found = {"rmse": math.sqrt(square), "mae": float(np.mean(error))}
  return found | ({"r2": 1 - square / spread**2} if spread > 0 else {})


def _scorer(regressor, modes, samples, seed):
  """A function of images to {mode: predictions, a NumPy array [n, outputs]}."""
  chunks = -(-samples // _CHUNK)
  each = -(-samples // chunks)

  @tf.function(autograph=False)
  def score(images):
    loc, scale = regressor.represent(images)
    scored = {}
    if "deterministic" in modes:
      scored["deterministic"] = regressor.head(loc, training=False)
    if "sampled" in modes:
      parts = [
        regressor.from_representation(loc, scale, distribution.fold(seed, chunk), each)
        for chunk in range(chunks)
      ]
      scored["sampled"] = tf.add_n(parts) / chunks
    return scored

  return lambda images: {mode: found.numpy() for mode, found in score(images).items()}
