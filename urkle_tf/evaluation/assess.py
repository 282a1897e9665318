"""`assess`: the loop over the measurements of a model; behind `evaluate`."""

import dataclasses
import shutil

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, errors, export
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import foreign, measurements, report, retrieval, topped
from urkle_tf.evaluation import store as storing
from urkle_tf.evaluation.context import Context
from urkle_tf.networks.saved import foreign_models
from urkle_tf.output import files
from urkle_tf.settings import OF_REGRESSORS, Assess, arguments, data_of
from urkle_tf.training import runs

_EPSILON = 8 / 255
_MODELS = ("classifier", "encoder", "regressor")


@arguments(Assess)
def assess(given):
  """Measures a classifier, clean and attacked, and its encoder; or an encoder, or a regressor.

  Returns:
    The content of report.json, a dict; accuracies are fractions with a 95% interval.

  Raises:
    UserError: for settings, data or folders that do not fit.

  ```python
  report = urkle_tf.assess(classifier="runs/digits-slf/classifier", dataset="digits", attacks="pgd")
  clean = report["clean"]["accuracy"]  # a fraction
  row = report["attacks"][0]  # {"name": "pgd", "accuracy": ..., "interval": [low, high], ...}
  ```
  """
  settings = dataclasses.asdict(given)
  if given.regressor and not (given.classifier or given.encoder):
    unused = [n for n, v in settings.items() if n not in OF_REGRESSORS and v != getattr(Assess, n)]
    if unused:
      flags = ", ".join(f"--{name}" for name in unused)
      print(f"a regressor is attacked by PGD at one epsilon, and does not use {flags}")
    given = dataclasses.replace(given, **{name: getattr(Assess, name) for name in unused})
    return _assess(given, {n: settings[n] for n in OF_REGRESSORS}, "regressor", given.regressor)
  models = [name for name in _MODELS if settings[name]]
  if len(models) != 1:
    raise errors.UserError(
      "give --classifier=FOLDER, --regressor=FOLDER, or --encoder=FOLDER for what needs no labels"
      + (": only one of them" if models else "")
    )
  del settings["regressor"]
  top = given.prototypes or given.head
  if top and not given.encoder:
    raise errors.UserError("--prototypes and --head need an encoder: give --encoder")
  path, made_here = given.encoder or given.classifier, "encoder" if given.encoder else "classifier"
  made_elsewhere = "foreign_encoder" if given.encoder and not top else "foreign"
  kind = made_elsewhere if top or foreign_models.is_foreign(path) else made_here
  return _assess(given, settings, kind, path)


def _assess(given, settings, kind, path):
  """The loop; `settings` are those in the report."""
  errors.flags_at_least(1, settings, "batch_size", "samples", "attack_steps", "restarts", "eot")
  if given.abstains and kind != "foreign":
    raise errors.UserError("--abstains is only for classifiers made elsewhere: leave it out")
  errors.flags_above(0, settings, "minutes", "attack_step_size")
  chosen = measurements.chosen(given, kind)
  if not chosen:
    raise errors.UserError(
      "nothing is measured: leave --representation_examples out, or name something by --measure"
    )
  context = _context(given, kind, path)
  source = context.source
  for one in chosen:
    context.prepared[one.name] = one.prepare(context)
  with runs.opened(given.output_dir, settings, source.fingerprint) as run:
    if run:
      context.folder, partial = run.path, run.path / storing.FOLDER
      if done := report.finished(run.path, path, context.metadata["fingerprint"], given.html):
        shutil.rmtree(partial, ignore_errors=True)
        return done
      report.clear(run.path)
      owner = {"fingerprint": context.metadata["fingerprint"], "source": source.name}
      context.store = storing.Store(partial, {**owner, "examples": source.size})
    if "encoder" not in kind and given.examples is None and source.labels is not None:
      compatibility.warn_of_missing_classes(source, source.labels)
    _load(context, path)
    for one in chosen:
      context.report[one.name] = one.measure(context)
    if run and context.save_images:
      files.write(run.path / "images.npz", lambda file: np.savez(file, **context.arrays))
    config = _config(context, settings, chosen)
    result = {**context.report, "config": config, "versions": export.versions()}
    if run:
      report.write(run.path, result, given.html)
      shutil.rmtree(partial, ignore_errors=True)
  return result


def _context(given, kind, path):
  """The `Context`, before the model is loaded; checks that model, data and threat fit."""
  model = embedder = None
  if "foreign" not in kind:
    metadata = export.read_metadata(path, kind)
  source = sources.load(**data_of(given))
  if "encoder" not in kind:
    compatibility.check_labelled(source)
  if kind == "foreign":
    loaded = topped.classifier(given, source) if given.encoder else foreign_models.load(path)
    model = foreign.look_at(loaded, source, given.abstains)
    metadata = model.metadata
  elif kind == "foreign_encoder":
    embedder, metadata = retrieval.look_at(path, source)
  else:
    compatibility.check_images(metadata["image_size"], source)
  if kind == "classifier":
    compatibility.check_classes(metadata["classes"], metadata.get("class_names"), source)
  trained = metadata.get("norm", "linf")
  norm = given.norm or trained
  epsilon = (metadata.get("epsilon") or _EPSILON) if given.epsilon is None else given.epsilon
  if given.epsilon is None and not given.epsilons:
    compatibility.check_norm(norm, epsilon, trained)
  epsilons = list(dict.fromkeys(given.epsilons or [epsilon]))
  for radius in epsilons:
    attacks.from_norm(norm, radius).check(tf.zeros([1, *metadata["image_size"]]))
  names = ("data_dir", "download", "image_size", "examples")
  return Context(
    source=source,
    norm=norm,
    epsilons=epsilons,
    model=model,
    embedder=embedder,
    kind=kind,
    metadata=metadata,
    where={name: getattr(given, name) for name in names},
    modes=_modes(given.modes, metadata, model),
    batch_size=given.batch_size,
    eot=(given.eot or 20) if metadata["stochastic"] else 1,
    samples=given.samples,
    seed=given.seed,
    save_images=given.save_images,
  )


def _modes(text, metadata, model):
  """The readings of z to measure, from `--modes`."""
  known = ("sampled", "deterministic") if metadata["stochastic"] else ("deterministic",)
  known = known if model is None else model.modes
  asked = [mode.strip() for mode in text.split(",")] if text else known
  for mode in asked:
    errors.one_of("mode of this model", mode, known)
  return tuple(mode for mode in known if mode in asked)


def _load(context, path):
  """Loads the model, unless it was made elsewhere and is loaded already."""
  if "foreign" not in context.kind:
    loaded = getattr(export, f"load_{context.kind}")(path)
    context.model = None if context.kind == "encoder" else loaded
    context.network = loaded.network


def _config(context, settings, chosen):
  """The report's part "config"."""
  metadata, used = context.metadata, dict(settings)
  for one in chosen:  # the options' values, rather than the flags'
    for name, flag in one.aliases().items():
      if getattr(one, name) != settings[flag]:
        used[flag] = getattr(one, name)
  shown = export.settings_without_paths(used)
  # Left out unless set, so that reports without them stay the same.
  for name in ("measure", "certify", "modes", "head", "minutes", "abstains"):
    if not shown.get(name):
      shown.pop(name, None)
  config = {**shown, "norm": context.norm, "epsilon": context.epsilon}
  whose = {"stochastic": bool(metadata["stochastic"]), "fingerprint": metadata["fingerprint"]}
  if context.kind == "regressor":
    return config | whose
  names = ("kind", "dataset", "latent_dim", "classes", "norm", "epsilon", "settings")
  model = {name: metadata[name] for name in names if name in metadata}
  if context.kind == "foreign":
    model = {**metadata, "notes": context.model.notes}
  config |= {"epsilons": context.epsilons, "eot": context.eot, **whose, "model": model}
  return config | context.notes
