"""`assess`: how good, how robust and how calibrated a classifier is; behind `evaluate`."""

import dataclasses
import functools
import shutil

import numpy as np

from urkle_tf import attacks as attackers
from urkle_tf import errors, export
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import (
  attacked,
  bound,
  clean,
  corrupted,
  foreign,
  recording,
  regression,
  report,
  representation,
  scoring,
)
from urkle_tf.evaluation import checks as checking
from urkle_tf.evaluation import plans as planning
from urkle_tf.evaluation import store as storing
from urkle_tf.networks.saved import foreign_models
from urkle_tf.output import files
from urkle_tf.settings import Assess, AssessRegressor, arguments, data_of
from urkle_tf.training import latent_map, runs

_EPSILON = 8 / 255


@arguments(Assess)
def assess(given):
  """Measures a classifier, clean and attacked, and its encoder; or an encoder or a regressor.

  Returns:
    What report.json holds, a dict.

  Raises:
    UserError: for settings, data or folders that do not fit.
  """
  settings = dataclasses.asdict(given)
  if given.regressor and not (given.classifier or given.encoder):
    return _of_regressor(settings)
  del settings["regressor"]
  for name in ("batch_size", "samples", "attack_steps", "restarts"):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  if given.eot is not None and given.eot < 1:
    raise errors.UserError(f"--eot must be at least 1, got {given.eot}")
  if given.noise not in ("fresh", "fixed"):
    raise errors.unknown("noise", given.noise, ("fresh", "fixed"))
  if given.representation_examples < 0:
    raise errors.UserError("--representation_examples must be at least 0")
  if bool(given.classifier) + bool(given.encoder) + bool(given.regressor) != 1:
    raise errors.UserError(
      "give --classifier=FOLDER, an exported classifier, --regressor=FOLDER, or --encoder=FOLDER "
      "for the part without labels" + (", one of them" if given.classifier or given.encoder else "")
    )
  if given.corruptions is not None and not given.classifier:
    raise errors.UserError("--corruptions need --classifier: an encoder alone predicts nothing")
  load = lambda: sources.load(**data_of(given))  # noqa: E731
  model, source = None, None
  if given.classifier and foreign_models.is_foreign(given.classifier):
    if given.loss_cap is not None:
      raise errors.UserError(
        "--loss_cap: Proposition 1 speaks of this package's classifiers: leave --loss_cap out"
      )
    source = load()
    model = foreign.look_at(given.classifier, source)
    metadata = model.metadata
  else:
    kind = "classifier" if given.classifier else "encoder"
    metadata = export.read_metadata(given.classifier or given.encoder, kind)
  if given.loss_cap is not None:
    bound.check(given.loss_cap, metadata)
  norm = given.norm or metadata.get("norm", "linf")
  trained = metadata.get("epsilon")
  epsilon = given.epsilon if given.epsilon is not None else trained or _EPSILON
  radii = list(given.epsilons or [epsilon])
  plans = planning.read(
    given.attacks,
    norm,
    radii,
    metadata["image_size"],
    given.attack_steps,
    given.attack_step_size,
    given.restarts,
    metadata.get("classes"),
  )
  if given.noise == "fixed":
    plans = [dataclasses.replace(plan, fixed_noise=True) for plan in plans]
  skipped = []
  if model is not None and not attacked.differentiable(model):
    skipped = list(dict.fromkeys(plan.name for plan in plans if plan.by_gradients))
    plans = [plan for plan in plans if not plan.by_gradients]
    if not plans:
      raise errors.UserError(
        f"{given.classifier} has no gradient that {', '.join(skipped)} could follow: give "
        "--attacks=square, which needs none"
      )
  source = source or load()
  compatibility.check_images(metadata["image_size"], source)
  if given.classifier:
    compatibility.check_labelled(source)
    compatibility.check_classes(metadata["classes"], metadata.get("class_names"), source)
  variants = corrupted.plan(
    *(given.corruptions, given.severities, source),
    *(given.data_dir, given.download, given.image_size, given.examples),
  )

  run = runs.open_run(given.output_dir, settings) if given.output_dir else None
  try:
    fingerprint = metadata["fingerprint"]
    if run and (
      done := report.finished(run.path, given.classifier or given.encoder, fingerprint, given.html)
    ):
      shutil.rmtree(run.path / storing.FOLDER, ignore_errors=True)
      return done
    owner = {"fingerprint": fingerprint, "source": source.name, "examples": source.size}
    store = storing.Store(run.path / storing.FOLDER if run else None, owner)
    stochastic = bool(metadata["stochastic"])
    eot = (given.eot or 20) if stochastic else 1
    batch_size = min(given.batch_size, source.size)
    result, pictures, arrays = {}, (), {}
    if given.classifier:
      network = None
      if model is None:
        model = export.load_classifier(given.classifier)
        network = model.network
      scorer = scoring.Scorer(model, batch_size, given.samples, given.seed)
      parts = _classifier_parts(
        *(model, source, plans, norm, radii, batch_size, eot, scorer),
        *(given.seed, given.standing, given.save_images),
        store,
      )
      result, recorder, arrays, robust = parts
      if given.checks:
        check = lambda: checking.measure(  # noqa: E731
          *(model, source, scorer, robust, norm, radii[0]),
          batch_size=batch_size,
          eot=eot,
          seed=given.seed,
        )
        result["checks"] = store.json("checks", check)
      if variants:
        result["corruptions"] = corrupted.measure(
          scorer, source, variants, batch_size, given.seed, store
        )
      pictures = recorder.pictures
    else:
      network = export.load_encoder(given.encoder).network
    if given.representation_examples and network is not None:
      result["representation"] = representation.measure(
        network,
        source,
        norm,
        radii[0],
        examples=given.representation_examples,
        batch_size=batch_size,
        seed=given.seed,
        loss_cap=None if given.classifier else given.loss_cap,
        arrays=arrays if given.save_images else None,
        store=store,
      )
      if run and stochastic:
        file = run.path / "figures" / "latent_map.png"
        _latent_map(file, network, source, norm, radii[0], metadata.get("settings", {}), given.seed)
    if given.loss_cap is not None and given.classifier:
      result["bound"] = bound.measure(
        model,
        source,
        norm,
        radii[0],
        given.loss_cap,
        samples=max(given.samples, 200),
        batch_size=batch_size,
        seed=given.seed,
        store=store,
      )
    if run and given.save_images:
      files.write(run.path / "images.npz", lambda file: np.savez(file, **arrays))
    result["config"] = {
      **export.settings_without_paths(settings),
      "norm": norm,
      "epsilon": radii[0],
      "epsilons": radii,
      "eot": eot,
      "stochastic": stochastic,
      "fingerprint": fingerprint,
      "model": _shown(metadata, model),
      **({"skipped_attacks": skipped} if skipped else {}),
    }
    result["versions"] = export.versions()
    if run:
      report.write(run.path, result, pictures, metadata.get("class_names"), given.html)
      shutil.rmtree(run.path / storing.FOLDER, ignore_errors=True)
  finally:
    if run:
      run.close()
  return result


def _of_regressor(settings):
  """Hands the settings to `assess_regressor`, and names those that it does not use."""
  used = {field.name for field in dataclasses.fields(AssessRegressor)}
  unused = [n for n, v in settings.items() if n not in used and v != getattr(Assess, n)]
  if unused:
    flags = ", ".join(f"--{name}" for name in unused)
    print(f"a regressor is attacked by PGD at one epsilon, and does not use {flags}")
  return regression.assess_regressor(**{n: v for n, v in settings.items() if n in used})


def _shown(metadata, model):
  """What a report says of the model itself."""
  if isinstance(model, foreign.Foreign):
    return {**metadata, "notes": model.notes}
  names = ("kind", "dataset", "latent_dim", "classes", "norm", "epsilon", "settings")
  return {name: metadata[name] for name in names if name in metadata}


def _latent_map(file, network, source, norm, epsilon, settings, seed):
  """Draws the first ten images' samples of z, and their unsupervised adversaries'."""
  _, images, _ = next(scoring.stream(source, min(10, source.size)))
  attack = attackers.PGD(attackers.from_norm(norm, epsilon), steps=50, keep="best")
  title = ", ".join(settings[name] for name in ("pretext", "robustness") if name in settings)
  latent_map.draw({title: network}, images, attack, file, seed=seed)


def _classifier_parts(
  model,
  source,
  plans,
  norm,
  radii,
  batch_size,
  eot,
  scorer,
  seed,
  standing,
  save_images,
  store=None,
):
  """The parts "clean" and "attacks", the recorder, per-image results, and what is robust."""
  store = store or storing.Store()
  scored, parts = [], []
  for number, (_, images, truth) in enumerate(scoring.stream(source, batch_size)):
    if truth.min() < 0 or truth.max() >= model.classes:
      raise errors.UserError(
        f"{source.name!r} has a label outside of the classifier's {model.classes} classes"
      )
    score = functools.partial(scorer.both, images)
    scored.append(store.arrays(f"clean-{number}", lambda score=score: score().arrays()))
    parts.append(truth)
  labels = np.concatenate(parts)
  on_clean = scoring.Scores.join(scored, scorer.modes)
  recorder = recording.Recorder(on_clean.values, labels, source.image_shape, save_images)
  rows, details = attacked.measure(
    model,
    source,
    labels,
    on_clean,
    scorer,
    plans,
    norm,
    radii,
    batch_size=batch_size,
    eot=eot,
    seed=seed,
    standing=standing,
    observe=recorder,
    store=store,
  )
  arrays = {"labels": labels}
  arrays |= {f"clean_{mode}": np.argmax(values, 1) for mode, values in on_clean.values.items()}
  for number, (right, of_label) in enumerate(details):
    arrays |= {f"right_{number}": right, f"log_probability_{number}": of_label}
    if number in recorder.adversaries:
      arrays[f"adversaries_{number}"] = recorder.adversaries[number]
  served = scorer.modes[0]
  robust = np.argmax(on_clean.values[served], 1) == labels
  for row, (right, _) in zip(rows, details, strict=True):
    if row["mode"] == served and row["epsilon"] <= radii[0]:
      robust &= right
  part = clean.measure(on_clean.values, labels, on_clean.votes, scorer.served)
  return {"clean": part, "attacks": rows}, recorder, arrays, robust
