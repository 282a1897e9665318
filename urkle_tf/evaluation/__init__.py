"""`assess`: how good, how robust and how calibrated a classifier is; behind `evaluate`."""

import dataclasses
import functools
import inspect
import shutil

import numpy as np

from urkle_tf import attacks as attackers
from urkle_tf import errors, export, figures, files, foreign_models, runs
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

_EPSILON = 8 / 255


def assess(
  classifier=None,
  encoder=None,
  output_dir=None,
  dataset="digits",
  data_dir=None,
  download=False,
  split="test",
  examples=None,
  image_size=None,
  attacks="pgd,fgsm",
  norm=None,
  epsilon=None,
  epsilons=None,
  attack_steps=20,
  attack_step_size=None,
  restarts=1,
  eot=None,
  noise="fresh",
  samples=200,
  standing=False,
  checks=True,
  corruptions=None,
  severities=None,
  representation_examples=1000,
  loss_cap=None,
  save_images=False,
  html=False,
  batch_size=250,
  seed=0,
  regressor=None,
):
  """Measures a classifier, clean and attacked, and its encoder; or an encoder or a regressor.

  Args:
    classifier: the exported classifier's folder, or `"preset:NAME"`; or anybody's: a
      SavedModel's folder or a `.keras` file, see `urkle_tf.foreign_models`.
    encoder: instead of it an exported encoder's folder, or `"preset:NAME"`, for the part without
      labels.
    output_dir: where report.json, report.md and figures go; None writes nothing.
    dataset: a TFDS name, `"digits"` or `"folder:PATH"`.
    data_dir: where prepared TFDS data lies; None for TFDS's own folder.
    download: whether TFDS may download.
    split: the split, with slices.
    examples: use the first so many examples of the split.
    image_size: resize to squares; None for the images' own size.
    attacks: specs, in a list or with commas in between: `"pgd(steps=100, restarts=2),fgsm"`;
      also rs_fgsm, apgd_ce, apgd_dlr, apgd_t, fab_t, square, and autoattack, all of them.
    norm: `"linf"`, `"l2"` or `"l1"`; None for that of the export's training, else linf.
    epsilon: radius in pixel units of [0, 1]; None for that of the training, else 8/255.
    epsilons: several radii instead; the first is that of the representation and the bound.
    attack_steps: of PGD where its spec names none.
    attack_step_size: likewise; None for 2.5 epsilon / steps.
    restarts: likewise.
    eot: samples of z in each step against the sampled classifier; None for 20; 50 for claims.
    noise: `"fresh"` samples of z at every step, or `"fixed"` ones throughout an attack.
    samples: samples of z that the sampled classifier is scored with, at least; as many others
      choose which adversaries are scored.
    standing: attack only images that earlier rows left standing: fast; see `attacked.measure`.
    checks: whether signs of masked gradients are looked for, on the first 200 images: see
      `urkle_tf.evaluation.checks`.
    corruptions: `"all"` for the 15 standard types, names of them with commas in between, or
      `"tfds"` for the corrupted images that TFDS has prepared; None for none.
    severities: of the corruptions, numbers from 1 to 5; None for all.
    representation_examples: how many images the representation's part is measured on; 0 for
      none.
    loss_cap: M of Proposition 1 in nats, above ln of the number of classes: the bound is
      measured on the first 1,000 images; None for no such part.
    save_images: whether adversarial images and per-image results are saved (images.npz).
    html: whether report.html is written too: the report as one file for a browser.
    batch_size: images that are attacked together.
    seed: everything random is a function of it.
    regressor: instead of a classifier an exported regressor's folder, attacked by PGD; what it
      does not use is named: see `regression.assess_regressor`.

  Returns:
    What report.json holds, a dict.

  Raises:
    UserError: for settings, data or folders that do not fit.
  """
  settings = dict(locals())
  if regressor and not (classifier or encoder):
    return _of_regressor(settings)
  del settings["regressor"]
  for name in ("batch_size", "samples", "attack_steps", "restarts"):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  if eot is not None and eot < 1:
    raise errors.UserError(f"--eot must be at least 1, got {eot}")
  if noise not in ("fresh", "fixed"):
    raise errors.unknown("noise", noise, ("fresh", "fixed"))
  if representation_examples < 0:
    raise errors.UserError("--representation_examples must be at least 0")
  if bool(classifier) + bool(encoder) + bool(regressor) != 1:
    raise errors.UserError(
      "give --classifier=FOLDER, an exported classifier, --regressor=FOLDER, or --encoder=FOLDER "
      "for the part without labels" + (", one of them" if classifier or encoder else "")
    )
  if corruptions is not None and not classifier:
    raise errors.UserError("--corruptions need --classifier: an encoder alone predicts nothing")
  load = lambda: sources.load(dataset, split, data_dir, download, image_size, examples)  # noqa: E731
  model, source = None, None
  if classifier and foreign_models.is_foreign(classifier):
    if loss_cap is not None:
      raise errors.UserError(
        "--loss_cap: Proposition 1 speaks of this package's classifiers: leave --loss_cap out"
      )
    source = load()
    model = foreign.look_at(classifier, source)
    metadata = model.metadata
  else:
    kind = "classifier" if classifier else "encoder"
    metadata = export.read_metadata(classifier or encoder, kind)
  if loss_cap is not None:
    bound.check(loss_cap, metadata)
  norm = norm or metadata.get("norm", "linf")
  trained = metadata.get("epsilon")
  radii = list(epsilons or [epsilon if epsilon is not None else trained or _EPSILON])
  plans = planning.read(
    attacks,
    norm,
    radii,
    metadata["image_size"],
    attack_steps,
    attack_step_size,
    restarts,
    metadata.get("classes"),
  )
  if noise == "fixed":
    plans = [dataclasses.replace(plan, fixed_noise=True) for plan in plans]
  skipped = []
  if model is not None and not attacked.differentiable(model):
    skipped = list(dict.fromkeys(plan.name for plan in plans if plan.by_gradients))
    plans = [plan for plan in plans if not plan.by_gradients]
    if not plans:
      raise errors.UserError(
        f"{classifier} has no gradient that {', '.join(skipped)} could follow: give "
        "--attacks=square, which needs none"
      )
  source = source or load()
  compatibility.check_images(metadata["image_size"], source)
  if classifier:
    compatibility.check_labelled(source)
    compatibility.check_classes(metadata["classes"], metadata.get("class_names"), source)
  variants = corrupted.plan(
    corruptions, severities, source, data_dir, download, image_size, examples
  )

  run = runs.open_run(output_dir, settings) if output_dir else None
  try:
    fingerprint = metadata["fingerprint"]
    if run and (done := report.finished(run.path, classifier or encoder, fingerprint, html)):
      shutil.rmtree(run.path / storing.FOLDER, ignore_errors=True)
      return done
    owner = {"fingerprint": fingerprint, "source": source.name, "examples": source.size}
    store = storing.Store(run.path / storing.FOLDER if run else None, owner)
    stochastic = bool(metadata["stochastic"])
    eot = (eot or 20) if stochastic else 1
    batch_size = min(batch_size, source.size)
    result, pictures, arrays = {}, (), {}
    if classifier:
      network = None
      if model is None:
        model = export.load_classifier(classifier)
        network = model.network
      scorer = scoring.Scorer(model, batch_size, samples, seed)
      parts = _classifier_parts(
        *(model, source, plans, norm, radii, batch_size, eot, scorer, seed, standing, save_images),
        store,
      )
      result, recorder, arrays, robust = parts
      if checks:
        check = lambda: checking.measure(  # noqa: E731
          model, source, scorer, robust, norm, radii[0], batch_size=batch_size, eot=eot, seed=seed
        )
        result["checks"] = store.json("checks", check)
      if variants:
        result["corruptions"] = corrupted.measure(scorer, source, variants, batch_size, seed, store)
      pictures = recorder.pictures
    else:
      network = export.load_encoder(encoder).network
    if representation_examples and network is not None:
      result["representation"] = representation.measure(
        network,
        source,
        norm,
        radii[0],
        examples=representation_examples,
        batch_size=batch_size,
        seed=seed,
        loss_cap=None if classifier else loss_cap,
        arrays=arrays if save_images else None,
        store=store,
      )
      if run and stochastic:
        file = run.path / "figures" / "latent_map.png"
        _latent_map(file, network, source, norm, radii[0], metadata.get("settings", {}), seed)
    if loss_cap is not None and classifier:
      result["bound"] = bound.measure(
        model,
        source,
        norm,
        radii[0],
        loss_cap,
        samples=max(samples, 200),
        batch_size=batch_size,
        seed=seed,
        store=store,
      )
    if run and save_images:
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
      report.write(run.path, result, pictures, metadata.get("class_names"), html)
      shutil.rmtree(run.path / storing.FOLDER, ignore_errors=True)
  finally:
    if run:
      run.close()
  return result


def _of_regressor(settings):
  """Hands the settings to `assess_regressor`, and names those that it does not use."""
  used = inspect.signature(regression.assess_regressor).parameters
  usual = {name: value.default for name, value in inspect.signature(assess).parameters.items()}
  unused = [n for n, value in settings.items() if n not in used and value != usual[n]]
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
  figures.latent_map({title: network}, images, attack, file, seed=seed)


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
