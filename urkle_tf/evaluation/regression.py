"""How good and how robust a regressor is: its error, clean and attacked."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors, export
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import report, scoring
from urkle_tf.output import progress, tables
from urkle_tf.settings import AssessRegressor, arguments, data_of
from urkle_tf.training import runs

_CHUNK = 25  # samples of z that are in memory at once


@arguments(AssessRegressor)
def assess_regressor(given):
  """Measures an exported regressor, clean and attacked.

  Returns:
    What report.json holds: {"regression": see `measure`, "config", "versions"}.

  Raises:
    UserError: for settings, data or folders that do not fit.
  """
  settings = dataclasses.asdict(given)
  for name in ("batch_size", "samples"):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  if given.eot is not None and given.eot < 1:
    raise errors.UserError(f"--eot must be at least 1, got {given.eot}")
  metadata = export.read_metadata(given.regressor, "regressor")
  norm = given.norm or metadata.get("norm", "linf")
  epsilon = metadata.get("epsilon", 8 / 255) if given.epsilon is None else given.epsilon
  attack = attacks.PGD(
    attacks.from_norm(norm, epsilon),
    steps=given.attack_steps,
    step_size=given.attack_step_size,
    restarts=given.restarts,
    keep="best",
  )
  attack.threat.check(tf.zeros([1, *metadata["image_size"]]))
  source = sources.load(**data_of(given))
  compatibility.check_images(metadata["image_size"], source)
  compatibility.check_labelled(source)
  if source.target is None:
    raise errors.UserError(
      f"the regressor predicts numbers, but the labels of {source.name!r} are classes: give the "
      "data it was made for, such as mnist:number"
    )
  run = runs.open_run(given.output_dir, settings) if given.output_dir else None
  try:
    if run and (
      done := report.finished(run.path, given.regressor, metadata["fingerprint"], given.html)
    ):
      return done
    model = export.load_regressor(given.regressor)
    stochastic = model.stochastic
    part = measure(
      *(model, source, attack, (given.eot or 20) if stochastic else 1),
      *(given.samples, given.batch_size, given.seed),
    )
    result = {
      "regression": part,
      "config": {
        **export.settings_without_paths(settings),
        "norm": norm,
        "epsilon": epsilon,
        "stochastic": stochastic,
        "fingerprint": metadata["fingerprint"],
      },
      "versions": export.versions(),
    }
    if run:
      report.write(run.path, result, html=given.html)
  finally:
    if run:
      run.close()
  return result


def measure(regressor, source, attack, eot=20, samples=200, batch_size=250, seed=0):
  """Errors of a regressor, on the images as they are and on the worst that an attack finds.

  The attack maximises the squared error of the mean prediction over z, with fresh samples in
  each of its evaluations.  The sampled regressor and z = mu are two: each is attacked by its
  own gradients, and an image counts with the worst of itself and both adversaries, scored with
  samples that no attack knows.

  Args:
    regressor: a `Regressor`.
    source: a `Source` whose labels are numbers.
    attack: an `attacks.PGD`.
    eot: samples of z in each evaluation of the sampled regressor's objective.
    samples: of z, that the sampled regressor is scored with.
    batch_size: images that are attacked together.
    seed: of starts and noise.

  Returns:
    {"target", "spread", "examples", "clean", "attacks"}.  "spread" is the labels' standard
    deviation: the error of their mean.  "clean" holds "mode" (the one that is served), "rmse",
    "mae" and "r2" (1 - rmse^2 / spread^2), and "deterministic" with the same where z is
    sampled; "attacks" has a row for each mode, with the attack's settings.
  """
  modes = ("sampled", "deterministic") if regressor.stochastic else ("deterministic",)
  batch_size = min(batch_size, source.size)
  base = distribution.fold([seed, 0], scoring.ATTACK_STREAM)
  score = _scorer(regressor, samples, distribution.fold([seed, 0], scoring.SCORE_STREAM))
  find = {mode: _adversary(regressor, attack, mode, eot) for mode in modes}
  labels: list[np.ndarray] = []
  clean: dict[str, list] = {mode: [] for mode in modes}
  worst: dict[str, list] = {mode: [] for mode in modes}
  norm, epsilon = attack.threat.norm, float(attack.threat.epsilon)
  bar = progress.Progress(f"pgd({attack.steps}) {norm} {tables.radius(epsilon, norm)}", source.size)
  for number, (_, images, truth) in enumerate(scoring.stream(source, batch_size)):
    size = len(images)
    padded = scoring.pad(images, batch_size)
    wanted = scoring.pad(truth.astype(np.float32), batch_size)
    before = {mode: np.abs(found[:size, 0] - truth) for mode, found in score(padded).items()}
    largest = dict(before)
    for position, mode in enumerate(modes):
      candidates = find[mode](padded, wanted, distribution.fold(base, number, position))
      for judge, found in score(candidates).items():
        largest[judge] = np.maximum(largest[judge], np.abs(found[:size, 0] - truth))
    labels.append(truth)
    for mode in modes:
      clean[mode].append(before[mode])
      worst[mode].append(largest[mode])
    bar.add(size)
  truth = np.concatenate(labels).astype(np.float64)
  spread = float(truth.std())
  scores = lambda parts: _scores(np.concatenate(parts), spread)  # noqa: E731
  served, *others = modes
  return {
    "target": source.target,
    "spread": spread,
    "examples": len(truth),
    "clean": {
      "mode": served,
      **scores(clean[served]),
      **{mode: scores(clean[mode]) for mode in others},
    },
    "attacks": [
      {
        "name": attack.name,
        "norm": norm,
        "epsilon": epsilon,
        "steps": attack.steps,
        "step_size": float(attack.step_size),
        "restarts": attack.restarts,
        "eot": eot if mode == "sampled" else 1,
        "mode": mode,
        **scores(worst[mode]),
      }
      for mode in modes
    ],
  }


def _scores(error, spread):
  error = error.astype(np.float64)
  square = float(np.mean(error**2))
  if not math.isfinite(square):
    raise errors.UserError("the regressor returns NaN or infinite values: it cannot be evaluated")
  found = {"rmse": math.sqrt(square), "mae": float(np.mean(error))}
  return found | ({"r2": 1 - square / spread**2} if spread > 0 else {})


def _scorer(regressor, samples, seed):
  """A function of images to {mode: predictions, a NumPy array [n, outputs]}."""
  chunks = -(-samples // _CHUNK)
  each = -(-samples // chunks)

  @tf.function
  def score(images):
    loc, scale = regressor.represent(images)
    scored = {"deterministic": regressor.head(loc, training=False)}
    if regressor.stochastic:
      parts = [
        regressor.from_representation(loc, scale, distribution.fold(seed, chunk), each)
        for chunk in range(chunks)
      ]
      scored["sampled"] = tf.add_n(parts) / chunks
    return scored

  return lambda images: {mode: found.numpy() for mode, found in score(images).items()}


def _adversary(regressor, attack, mode, eot):
  """A function (images, labels, seed) -> adversaries of one mode of a regressor."""
  evaluations = tf.Variable(0, trainable=False, dtype=tf.int64)  # GPUs add no int32

  @tf.function
  def find(images, labels, seed):
    frozen, noise = regressor.frozen(), distribution.fold(seed, 1)
    evaluations.assign(0)

    def objective(neighbours):
      loc, scale = frozen.represent(neighbours)
      if mode == "deterministic":
        predictions = frozen.head(loc)
      else:
        fresh = distribution.fold(noise, evaluations.assign_add(1))
        predictions = frozen.from_representation(loc, scale, fresh, eot)
      return tf.reduce_sum(tf.square(predictions - labels[:, None]), -1)

    return attack(objective, images, distribution.fold(seed, 0))

  return find
