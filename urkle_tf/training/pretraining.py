"""`pretrain`: from images to an exported encoder, without labels; the function behind `train`."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors, export, networks, pretexts, spec
from urkle_tf import robustness as schemes
from urkle_tf.data import augment as augmentation
from urkle_tf.data import compatibility, pipeline, service, sources
from urkle_tf.networks import presets
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.saved import foreign_models
from urkle_tf.output import files
from urkle_tf.settings import Pretrain, arguments
from urkle_tf.training import (
  alarms,
  attack_schedules,
  board,
  checkpoints,
  monitoring,
  optimizers,
  preemption,
  runs,
  trainer,
)


@arguments(Pretrain)
def pretrain(given):
  """Pre-trains an encoder into a run's folder, or resumes the folder's run.

  Returns:
    The last row of metrics, with `"encoder"`, and after supervised training `"classifier"`:
    the folders of the exports.

  Raises:
    UserError: for settings, data or folders that do not fit.
    distribution.WorkerLost: when another worker, or an input worker, has ended.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training: the
      checkpoint of its last step is written.
  """
  if not given.output_dir:
    raise errors.UserError("give --output_dir=FOLDER: where the run is written")
  asked = _with_an_end(dataclasses.asdict(given))
  with prepared(asked) as job:
    chief = distribution.is_chief(job.scope)
    run = runs.open_run(given.output_dir, asked) if chief else runs.scratch(asked)
    try:
      return _train(job, run)
    finally:
      run.close()


@dataclasses.dataclass(frozen=True)
class Job:
  """A training that is ready to start: what its settings name.

  Attributes:
    settings: those of `pretrain`, by name; `epochs` is a number unless `minutes` is.
    scope: the strategy.
    source: the training data.
    held_out: images that the schedule of the attack keeps from the training, or None.
    recipe: its augmentation.
    attack: what pictures and probe look at the encoder with, in cells without adversaries too: by
      the settings, but PGD where these leave the threat model.
    learner: the compiled `Trainer`.
    steps_per_epoch: steps of an epoch.
    steps: of the whole training; None by the clock.
  """

  settings: dict[str, Any]
  scope: tf.distribute.Strategy
  source: sources.Source
  held_out: sources.Source | None
  recipe: augmentation.Recipe
  attack: attacks.Attack
  learner: trainer.Trainer
  steps_per_epoch: int
  steps: int | None

  @property
  def state(self):
    """All variables, in the order that checkpoints hold them."""
    learner = self.learner
    return [*learner.variables, *learner.optimizer.variables, *learner.metrics_variables]

  def views(self, start=0):
    """The batches from a step on, as `fit` takes them."""
    learner, settings = self.learner, self.settings

    def make(share, turn=None):
      return pipeline.views(
        self.source,
        self.recipe,
        settings["batch_size"],
        settings["seed"],
        start_step=start,
        views=learner.pretext.views,
        labels=learner.pretext.needs_labels,
        on_device=settings["augment_on_device"],
        strength=learner.strength if learner.robustness.strength(0.0) is not None else None,
        part=pipeline.Part(share, turn),
      )

    if settings["data_service"]:
      found = service.addresses(settings["data_service"])
      served = lambda share: service.batches(lambda turn: make(share, turn), found, start)  # noqa: E731
      return pipeline.by_worker(self.scope, served)
    return pipeline.by_worker(self.scope, make)

  def distributed(self, start=0):
    """The same as a loop of one's own takes them: each replica its rows."""
    views = self.views(start)
    if distribution.several_workers(self.scope):
      return views
    return self.scope.experimental_distribute_dataset(views)


@contextlib.contextmanager
def prepared(settings):
  """Builds what settings name, and writes nothing.

  Args:
    settings: those of `pretrain` that are not the default, by name.

  Yields:
    A `Job`; within it the precision is that of the settings.

  Raises:
    UserError: for settings or data that do not fit.
  """
  settings = dataclasses.asdict(Pretrain(**{"output_dir": None, **settings}))
  settings = _of_preset(_with_an_end(settings))
  _check(settings)
  # Several workers join before TensorFlow does anything.
  scope = distribution.strategy(settings["strategy"])
  keras.mixed_precision.set_global_policy(settings["precision"])
  try:
    with distribution.joined(scope):
      yield _build(settings, scope)
  finally:
    keras.mixed_precision.set_global_policy("float32")


def _with_an_end(settings):
  """The settings, with 100 epochs where they do not say when the training ends."""
  if settings["epochs"] is None and settings["minutes"] is None:
    return {**settings, "epochs": 100}
  return settings


def _of_preset(settings):
  """The settings with what `--encoder=preset:NAME` stands for in its place."""
  named = settings["encoder"]
  if not presets.is_named(named):
    return settings
  if settings["init_from"]:
    raise errors.UserError(f"--encoder={named} starts from weights: leave --init_from out")
  network = presets.read(named)["network"]
  for name, value in network.items():
    if name != "encoder" and settings[name] not in (getattr(Pretrain, name), value):
      raise errors.UserError(
        f"--encoder={named} has --{name}={value}, not {settings[name]}: leave --{name} out"
      )
  return {**settings, **network, "init_from": named}


def _build(settings, scope):
  threat = attacks.from_norm(settings["norm"], settings["epsilon"])
  steps_and_size = settings["attack_steps"], settings["attack_step_size"]
  attack = attacks.from_spec(settings["attack"] or "pgd", threat, *steps_and_size)
  task = spec.build("pretexts", settings["pretext"], pretexts.Pretext)
  scheme = spec.build("robustness", settings["robustness"], schemes.Robustness)
  scheme.check(task)
  if settings["init_from"] and getattr(task, "start", False):
    raise errors.UserError("--init_from and distil(start=true) both say where to start: give one")
  recipe = augmentation.from_spec(settings["augment"])
  recipe.check(task.views)
  if scheme.strength(0.0) is not None:
    pipeline.check_strength(recipe)
  asked = ("dataset", "split", "data_dir", "download", "image_size", "examples")
  source = sources.load(**{name: settings[name] for name in asked})
  if settings["data_service"]:
    service.addresses(settings["data_service"])
    service.check(source)
  task.adopt(source)
  schedule = attack_schedules.from_spec(settings["attack_schedule"] or "constant")
  held_out = None
  if scheme.adversarial and (count := schedule.held_out(source.size)):
    source, held_out = source.hold_out(count)
  steps_per_epoch = pipeline.steps_per_epoch(source, settings["batch_size"])
  _check_steps(settings, steps_per_epoch, scope.num_replicas_in_sync)
  _check_augmentation(settings, recipe, scheme)
  steps = None if settings["minutes"] else steps_per_epoch * settings["epochs"]
  with scope.scope():
    keras.utils.set_random_seed(settings["seed"])
    cell = task, scheme, attack, recipe, schedule
    learner = _learner(settings, source, cell, steps, steps_per_epoch)
  if isinstance(attack, attacks.NFGSM):
    attack = attacks.PGD(threat, *steps_and_size)
  return Job(settings, scope, source, held_out, recipe, attack, learner, steps_per_epoch, steps)


def _learner(settings, source, cell, steps, steps_per_epoch):
  """The compiled `Trainer` of (pretext, scheme, attack, recipe, schedule of the attack)."""
  task, scheme, attack, recipe, schedule = cell
  minutes = settings["minutes"]

  def warmup(name):
    """In steps, or by the clock as a share of the training."""
    if minutes:
      return (settings[f"{name}_minutes"] or 0) / minutes
    return round(settings[f"{name}_epochs"] * steps_per_epoch)

  model = networks.GaussianEncoder(
    networks.backbone(settings["encoder"], source.image_shape),
    *(settings[name] for name in ("latent_dim", "min_scale", "max_scale")),
    loc=settings["loc"] or task.loc,
  )
  if settings["init_from"]:
    _initialise(model, settings["init_from"], source)
  learner = trainer.Trainer(
    model,
    task,
    scheme,
    attack,
    augment=recipe if settings["augment_on_device"] else None,
    seed=settings["seed"],
    epsilon_warmup=warmup("epsilon_warmup"),
    beta_warmup=warmup("beta_warmup"),
    clip_norm=settings["clip_norm"],
    steps=steps,
    schedule=schedule,
    attack_precision=settings["attack_precision"],
    ema=settings["ema"],
    by_clock=minutes is not None,
  )
  optimizer = optimizers.build(
    *(settings["optimizer"], settings["learning_rate"], steps, warmup("warmup")),
    *(settings["weight_decay"], learner.clock),
  )
  learner.compile(optimizer, steps_per_execution=settings["steps_per_execution"] or 1)
  return learner


def _check_steps(settings, steps_per_epoch, replicas):
  batch_size, at_once = settings["batch_size"], settings["steps_per_execution"] or 1
  if batch_size % replicas:
    raise errors.UserError(
      f"batch_size={batch_size} does not divide evenly among {replicas} replicas: give a multiple"
    )
  if at_once < 1 or steps_per_epoch % at_once:
    raise errors.UserError(
      f"--steps_per_execution={at_once} does not divide the {steps_per_epoch} steps of an epoch"
    )


def _check_augmentation(settings, recipe, scheme):
  on_device = settings["augment_on_device"]
  if on_device:
    pipeline.check_on_device(recipe)
  if settings["minutes"] and scheme.strength(0.0) is not None and not on_device:
    raise errors.UserError(
      "batches are made ahead of the clock, by which this robustness scheme weakens the "
      "augmentation: give --augment_on_device, or --epochs in place of --minutes"
    )


def _train(job, run):
  """Trains to the end and exports; returns what `pretrain` does."""
  learner, source, settings = job.learner, job.source, job.settings
  state = checkpoints.Checkpoints(run.path / "checkpoints", job.state, job.scope)
  with job.scope.scope():
    done = state.restore()
  agree = distribution.agreement(job.scope)
  try:
    with preemption.watch(agree) as watch:
      row = _fit(job, run, state, done, watch)
  except tf.errors.OpError as error:
    if settings["data_service"] and service.lost(error):
      raise distribution.WorkerLost("an input worker has ended") from error
    if unreadable := sources.find_unreadable(source):
      raise unreadable from error
    raise
  if not distribution.is_chief(job.scope):
    agree(0)  # the chief still exports: who leaves earlier looks as if it had died
    return row
  model, task = learner.encoder, learner.pretext
  metadata = describe(settings, task, learner.robustness)
  with learner.averaged():
    if not (run.path / "tensorboard" / "projector_config.pbtxt").exists():
      board.embeddings(model, job.attack, source, run.path / "tensorboard", settings["seed"])
    export.export_encoder(model, run.path / "encoder", metadata)
    result = {"encoder": str(run.path / "encoder")}
    if task.head is not None:
      classifier = Classifier(model.network, task.head, metadata["stochastic"])
      classifier.class_names = list(source.class_names)
      export.export_classifier(classifier, run.path / "classifier", metadata)
      result["classifier"] = str(run.path / "classifier")
  agree(0)
  return {**row, **result}


def describe(settings, task, scheme):
  """What the metadata of an encoder says of its training.

  Args:
    settings: those of `pretrain`, by name.
    task: the `Pretext`, or its class.
    scheme: the `Robustness`, likewise.
  """
  dataset = settings["dataset"]
  return {
    "norm": settings["norm"],
    "epsilon": settings["epsilon"],
    "dataset": dataset if not dataset.startswith("folder:") else "folder",
    "loc": settings["loc"] or task.loc,
    "stochastic": bool(task.stochastic or scheme.stochastic),
    "settings": settings,
  }


def _check(settings):
  minutes = settings["minutes"]
  if minutes is not None:
    if settings["epochs"] is not None:
      raise errors.UserError(
        f"--minutes={minutes} and --epochs={settings['epochs']} each say when the training ends: "
        "give one of them"
      )
    if not minutes > 0:
      raise errors.UserError(f"--minutes must be above 0, got {minutes}")
  for name in (
    *(("epochs",) if minutes is None else ()),
    *("batch_size", "log_every", "checkpoint_every", "max_bad_steps"),
  ):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  for name in ("warmup_epochs", "weight_decay", "epsilon_warmup_epochs", "beta_warmup_epochs"):
    if not settings[name] >= 0:
      raise errors.UserError(f"--{name} must be at least 0, got {settings[name]}")
  ours, other = ("epochs", "minutes") if minutes is None else ("minutes", "epochs")
  for name in ("warmup", "epsilon_warmup", "beta_warmup"):
    if settings[f"{name}_{other}"]:
      raise errors.UserError(
        f"--{name}_{other} goes with --{other}: give --{name}_{ours} in this training by {ours}"
      )
    taken = settings[f"{name}_minutes"] or 0
    if minutes is not None and not 0 <= taken < minutes:
      raise errors.UserError(
        f"--{name}_minutes must be at least 0 and below --minutes={minutes}, got {taken}"
      )
  if settings["batch_size"] < 2:
    raise errors.UserError("--batch_size must be at least 2: one image has no negatives")
  for name, value in (
    ("precision", settings["precision"]),
    ("attack_precision", settings["attack_precision"] or "float32"),
  ):
    if value not in ("float32", "mixed_bfloat16"):
      raise errors.unknown(name, value, ("float32", "mixed_bfloat16"))


def _initialise(model, init_from, source):
  """Starts from the encoder of another run (its folder, or its encoder folder) or a preset."""
  folder = pathlib.Path(init_from)
  if presets.is_named(init_from):
    preset = networks.GaussianEncoder.from_preset(init_from)
    compatibility.check_images(preset.image_shape, source, init_from)
    earlier = preset.network
  else:
    for file in (folder / "encoder" / "network.keras", folder / "network.keras"):
      if file.exists():
        break
    else:
      raise errors.UserError(
        f"--init_from={init_from} holds no encoder: give a finished run's folder"
      )
    load = lambda: keras.models.load_model(file, compile=False)  # noqa: E731
    earlier = foreign_models.outside_strategies(load)
  model.start_from(earlier, f"the encoder of --init_from={init_from}")


def _fit(job, run, state, done, watch):
  """Trains from step `done` to the end; returns the last row of metrics."""
  learner, settings = job.learner, job.settings
  steps, steps_per_epoch = job.steps, job.steps_per_epoch
  seconds, limit = run.rewind_metrics(done), None
  behind = done / steps if steps else float(distribution.plain(learner.clock))
  if steps is None:
    limit = 60 * settings["minutes"]
    seconds = behind * limit  # rows do not hold those since the last of them
  if behind >= 1:
    return (run.metrics() or [{}])[-1]
  writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
  board.settings(writer, settings)
  metrics = monitoring.Metrics(
    run,
    writer,
    state,
    steps,
    steps_per_epoch,
    settings["batch_size"],
    settings["log_every"],
    settings["checkpoint_every"],
    seconds,
    watch,
    job.scope,
    settings["max_bad_steps"],
    alarms.Alarms(learner, run.metrics()),
    limit,
  )
  batch = _batch(job, 0)
  callbacks = []
  if job.held_out is not None:
    agree = distribution.agreement(job.scope)
    unseen = _unseen(job)
    callbacks.append(attack_schedules.Control(learner.schedule, unseen, metrics, agree))
  if distribution.is_chief(job.scope):
    callbacks += _pictures(job, run, writer, metrics, batch)
  callbacks.append(metrics)
  try:
    learner.fit_from(job.views, done, steps, steps_per_epoch, callbacks)
  except monitoring.NotFinite as error:
    raise errors.UserError(f"{error}; {_evidence(job, run, state, error.first)}") from error
  return metrics.rows[-1]


def _batch(job, step):
  """The batch of a step, whole and in this process."""
  here = {"scope": tf.distribute.get_strategy(), "settings": {**job.settings, "data_service": None}}
  return next(iter(dataclasses.replace(job, **here).views(step)))


def _unseen(job):
  """All images that are held out, as a batch of the pipeline, whole and in this process."""
  settings = {**job.settings, "batch_size": job.held_out.size}
  return _batch(dataclasses.replace(job, source=job.held_out, settings=settings), 0)


def _evidence(job, run, state, step):
  """Saves the batch of a step that is not finite; says where, and which checkpoint is good."""
  views, batch = job.learner.views(_batch(job, step), step)
  arrays = {"views": views, **batch, "step": step, "seed": job.settings["seed"]}
  arrays = {name: np.asarray(value) for name, value in arrays.items()}
  file = run.path / "bad_batch.npz"
  files.write(file, lambda stream: np.savez(stream, **arrays))
  good = state.last_good()
  said = f"the last good checkpoint is {good}" if good else "no checkpoint holds finite weights"
  return f"{said}, and {file} holds the batch of step {step + 1}"


def _pictures(job, run, writer, metrics, batch):
  """What looks at the encoder once an epoch."""
  settings = job.settings
  title = f"{settings['pretext']}, {settings['robustness']}"
  found = [monitoring.Pictures(batch, writer, metrics, run.path / "figures", job.attack, title)]
  if settings["probe_split"]:
    held_out = sources.load(
      settings["dataset"],
      settings["probe_split"],
      settings["data_dir"],
      False,
      settings["image_size"],
    )
    attack = job.attack if job.learner.attack else None
    found.append(_probe(held_out, settings["probe_examples"], metrics, attack))
  return found


def _probe(source, examples, metrics, attack):
  if source.class_names is None:
    raise errors.UserError(f"--probe_split needs classes, and {source.name!r} has none")
  images, labels = [], []
  for batch in pipeline.batches(source, 500):
    images.append(batch["image"].numpy())
    labels.append(batch["label"].numpy())
    if sum(map(len, labels)) >= examples:
      break
  held, known = np.concatenate(images)[:examples], np.concatenate(labels)[:examples]
  order = np.random.default_rng(0).permutation(len(known))  # a split may be sorted by class
  return monitoring.NearestNeighbours(held[order], known[order], metrics, attack=attack)
