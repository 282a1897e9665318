"""Builds a training, ready to start, from the settings of `pretrain`."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import keras
import tensorflow as tf

import urkle_tf.regulariser  # noqa: F401  (a .keras file may hold its layer)
from urkle_tf import attacks, distribution, errors, networks, pretexts, spec
from urkle_tf import robustness as schemes
from urkle_tf.data import augment as augmentation
from urkle_tf.data import compatibility, pipeline, service, sources
from urkle_tf.networks import blocks, pixels, presets, recomputing
from urkle_tf.networks.saved import foreign_models
from urkle_tf.settings import Pretrain, data_of, typed
from urkle_tf.training import attack_schedules, checkpoints, optimizers, trainer

_PRECISIONS = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Job:
  """A training that is ready to start.

  Attributes:
    settings: the settings of `pretrain`, by name; either `epochs` or `minutes` is a number.
    scope: the strategy.
    source: the training data.
    held_out: images that the attack's schedule holds out of the training, or None.
    recipe: its augmentation.
    attack: the attack of pictures and probe, also in cells without adversaries: that of the
      settings, or PGD if that leaves the threat model.
    learner: the compiled `Trainer`.
    steps_per_epoch: steps per epoch.
    steps: the steps of the whole training; None for a training by the clock.
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
    """All variables, in their order in checkpoints."""
    return checkpoints.state(self.learner)

  def views(self, start=0):
    """The batches from a step on, for `fit`."""
    learner, settings = self.learner, self.settings
    pretext, weakens = learner.pretext, learner.robustness.strength(0.0) is not None

    def make(share, turn=None):
      return pipeline.views(
        self.source,
        self.recipe,
        settings["batch_size"],
        settings["seed"],
        start_step=start,
        views=pretext.views,
        labels=pretext.needs_labels,
        on_device=settings["augment_on_device"],
        strength=learner.strength if weakens else None,
        part=pipeline.Part(share, turn),
      )

    if settings["data_service"]:
      found = service.addresses(settings["data_service"])
      served = lambda share: service.batches(lambda turn: make(share, turn), found, start)  # noqa: E731
      return pipeline.by_worker(self.scope, served)
    return pipeline.by_worker(self.scope, make)

  def distributed(self, start=0):
    """The same for a custom loop, in which each replica gets its rows."""
    views = self.views(start)
    if distribution.several_workers(self.scope):
      return views
    return self.scope.experimental_distribute_dataset(views)


@contextlib.contextmanager
def prepared(settings):
  """Builds a training from settings, and writes nothing.

  Args:
    settings: the settings of `pretrain` that differ from the defaults, by name.

  Yields:
    A `Job`; within the context the precision is that of the settings.

  Raises:
    UserError: for settings or data that are wrong.
  """
  settings = dataclasses.asdict(typed(Pretrain(**{"output_dir": None, **settings})))
  settings = _of_preset(completed(settings))
  _check(settings)
  # Several workers join before TensorFlow does anything.
  scope = distribution.strategy(settings["strategy"])
  policy = keras.config.dtype_policy()
  keras.mixed_precision.set_global_policy(settings["precision"])
  try:
    with distribution.joined(scope):
      yield _build(settings, scope)
  finally:
    keras.mixed_precision.set_global_policy(policy)


def completed(settings):
  """The settings, with 100 epochs if they set no end, and the optimizer's usual learning rate."""
  usual = {}
  if settings["epochs"] is None and settings["minutes"] is None:
    usual["epochs"] = 100
  if settings["learning_rate"] is None:
    usual["learning_rate"] = optimizers.usual_rate(settings["optimizer"])
  return {**settings, **usual}


def _of_preset(settings):
  """The settings, with `--encoder=preset:NAME` replaced by the settings of that preset."""
  named = settings["encoder"]
  if not presets.is_named(named):
    return settings
  if settings["init_from"]:
    raise errors.UserError(f"--encoder={named} already has weights: leave --init_from out")
  network = presets.read(named)["network"]
  for name, value in network.items():
    if name != "encoder" and settings[name] not in (getattr(Pretrain, name), value):
      raise errors.UserError(
        f"--encoder={named} has --{name}={value}, not {settings[name]}: leave --{name} out"
      )
  return {**settings, **network, "init_from": named}


def _check(settings):
  """Raises `UserError` for settings that are wrong for any data."""
  _check_end(settings)
  counts = "log_every", "checkpoint_every", "max_bad_steps", "steps_per_execution", "accumulate"
  errors.flags_at_least(1, settings, *counts)
  rises = ("warmup_epochs", "epsilon_warmup_epochs", "beta_warmup_epochs")
  errors.flags_at_least(0, settings, *rises)
  _check_warmups(settings)
  if settings["batch_size"] < 2:
    raise errors.UserError(
      f"--batch_size must be at least 2, got {settings['batch_size']}: one image has no negatives"
    )
  if settings["clip_norm"] is not None:
    errors.above(0, None, clip_norm=settings["clip_norm"])
  errors.check_seed(settings["seed"])
  errors.one_of("precision", settings["precision"], _PRECISIONS)
  errors.one_of("attack_precision", settings["attack_precision"] or "float32", _PRECISIONS)


def _check_end(settings):
  epochs, minutes = settings["epochs"], settings["minutes"]
  if minutes is None:
    errors.at_least(1, None, epochs=epochs)
    return
  if epochs is not None:
    raise errors.UserError(
      f"--minutes={minutes} and --epochs={epochs} both set the end of the training: give one of "
      "them (--epochs= clears that of a flagfile)"
    )
  errors.above(0, None, minutes=minutes)


def _check_warmups(settings):
  minutes = settings["minutes"]
  ours, other = ("epochs", "minutes") if minutes is None else ("minutes", "epochs")
  for name in ("warmup", "epsilon_warmup", "beta_warmup"):
    if settings[f"{name}_{other}"]:
      raise errors.UserError(
        f"--{name}_{other} needs --{other}: give --{name}_{ours} in this training by {ours} "
        f"(--{name}_{other}= clears that of a flagfile)"
      )
    taken = settings[f"{name}_minutes"] or 0
    if minutes is not None and not 0 <= taken < minutes:
      raise errors.UserError(
        f"--{name}_minutes must be at least 0 and below --minutes={minutes}, got {taken}"
      )


@dataclasses.dataclass(frozen=True)
class _Method:
  """The cell of the grid, its attack and its augmentation."""

  pretext: pretexts.Pretext
  scheme: schemes.Robustness
  attack: attacks.Attack
  schedule: attack_schedules.Constant
  recipe: augmentation.Recipe


def _build(settings, scope):
  method = _method(settings, scope)
  source, held_out = _data(settings, method)
  steps_per_epoch, steps = _length(settings, source, scope)
  with scope.scope():
    keras.utils.set_random_seed(settings["seed"])
    encoder = _encoder(settings, method, source)
    learner = _trainer(settings, method, encoder, steps_per_epoch, steps)
  attack = method.attack
  if "evaluation" in attack.refused:
    threat = attacks.from_norm(settings["norm"], settings["epsilon"])
    attack = attacks.PGD(threat, settings["attack_steps"], settings["attack_step_size"])
  return Job(
    settings, scope, source, held_out, method.recipe, attack, learner, steps_per_epoch, steps
  )


def _method(settings, scope):
  threat = attacks.from_norm(settings["norm"], settings["epsilon"])
  if settings["epsilon"] == Pretrain.epsilon:
    compatibility.check_norm(settings["norm"], settings["epsilon"])
  steps_and_size = settings["attack_steps"], settings["attack_step_size"]
  attack = attacks.from_spec(settings["attack"] or "pgd", threat, *steps_and_size)
  task = spec.build("pretexts", settings["pretext"], pretexts.Pretext)
  scheme = spec.build("robustness", settings["robustness"], schemes.Robustness)
  scheme.check(task)
  if settings["init_from"] and task.start:
    raise errors.UserError(
      f"--init_from and {task.name}(start=true) both set the start: give one of them"
    )
  recipe = augmentation.from_spec(settings["augment"])
  recipe.check(task.views)
  if settings["augment_on_device"]:
    pipeline.check_on_device(recipe)
  if scheme.strength(0.0) is not None:
    pipeline.check_strength(recipe)
    if settings["minutes"] and not settings["augment_on_device"]:
      raise errors.UserError(
        "this robustness scheme weakens the augmentation by the clock, but batches are made in "
        "advance: give --augment_on_device, or --epochs instead of --minutes"
      )
  with scope.scope():  # its variables are part of the learner's
    schedule = attack_schedules.from_spec(settings["attack_schedule"] or "constant")
  return _Method(task, scheme, attack, schedule, recipe)


def _data(settings, method):
  """(the training data, the images that the attack's schedule holds out or None)."""
  source = sources.load(**data_of(Pretrain(**settings)))
  if settings["data_service"]:
    service.addresses(settings["data_service"])
    service.check(source)
  with sources.naming_unreadable(source):
    method.pretext.adopt(source)
    if method.scheme.adversarial and (count := method.schedule.held_out(source.size)):
      return source.hold_out(count)
  return source, None


def _length(settings, source, scope):
  """(steps of an epoch, steps of the whole training; None for a training by the clock)."""
  replicas = scope.num_replicas_in_sync
  batch_size, at_once = settings["batch_size"], settings["steps_per_execution"] or 1
  steps = pipeline.steps_per_epoch(source, batch_size)
  if batch_size % replicas:
    raise errors.UserError(
      f"--batch_size={batch_size} does not divide evenly among {replicas} replicas: give a "
      f"multiple of {replicas}"
    )
  parts = settings["accumulate"] or 1
  if batch_size % (replicas * parts):
    raise errors.UserError(
      f"--batch_size={batch_size} does not divide into --accumulate={parts} equal parts on each of "
      f"{replicas} replicas: give a multiple of {replicas * parts}"
    )
  if steps % at_once:
    raise errors.UserError(
      f"--steps_per_execution={at_once} does not divide the {steps} steps of an epoch: give a "
      "divisor"
    )
  on_cpus = not tf.config.list_logical_devices("GPU")
  if at_once > 1 and on_cpus and distribution.several_workers(scope):
    raise errors.UserError(
      f"--steps_per_execution={at_once} needs GPUs on several workers, because TensorFlow's "
      "collectives of CPUs fail in it: leave it out"
    )
  return steps, None if settings["minutes"] else steps * settings["epochs"]


def _encoder(settings, method, source):
  file, statistics = settings["encoder"].endswith(".keras"), settings["batch_statistics"]
  inference = file if statistics is None else not statistics
  if settings["remat"] and not inference:
    raise errors.UserError(
      "--remat computes activations twice, so batch statistics would be updated twice: give "
      "--batch_statistics=false"
    )
  backbone = networks.backbone(settings["encoder"], source.image_shape)
  encoder = networks.GaussianEncoder(
    backbone,
    *(settings[name] for name in ("latent_dim", "min_scale", "max_scale")),
    loc=settings["loc"] or method.pretext.loc,
    inference=inference,
  )
  if settings["remat"]:
    recomputing.recompute(backbone)
  if file:
    some = next(iter(pipeline.batches(source, 64)))["image"].numpy()
    pixels.check(encoder.network, some, settings["encoder"])
  if settings["init_from"]:
    _initialise(encoder, settings["init_from"], source)
  return encoder


def _trainer(settings, method, encoder, steps_per_epoch, steps):
  """The compiled `Trainer`."""
  minutes = settings["minutes"]

  def warmup(name):
    """A warm-up in steps; by the clock, as a share of the training."""
    if minutes:
      return (settings[f"{name}_minutes"] or 0) / minutes
    return round(settings[f"{name}_epochs"] * steps_per_epoch)

  learner = trainer.Trainer(
    encoder,
    method.pretext,
    method.scheme,
    method.attack,
    augment=method.recipe if settings["augment_on_device"] else None,
    epsilon_warmup=warmup("epsilon_warmup"),
    beta_warmup=warmup("beta_warmup"),
    steps=steps,
    schedule=method.schedule,
    by_clock=minutes is not None,
    **{name: settings[name] for name in ("seed", "clip_norm", "attack_precision", "ema")},
  )
  parts = (layer for layer in encoder.network.layers if isinstance(layer, keras.Model))
  rows = [block for part in parts for block in blocks.blocks(part)]
  optimizer = optimizers.build(
    settings["optimizer"],
    settings["learning_rate"],
    steps,
    warmup("warmup"),
    settings["weight_decay"],
    learner.clock,
    [[v for layer in block.layers for v in layer.variables] for block in rows],
  )
  learner.compile(
    optimizer,
    accumulate=settings["accumulate"] or 1,
    steps_per_execution=settings["steps_per_execution"] or 1,
  )
  return learner


def _initialise(model, init_from, source):
  """Starts from a preset, or from the encoder of another run: its folder, or its encoder folder."""
  if presets.is_named(init_from):
    preset = networks.GaussianEncoder.from_preset(init_from)
    compatibility.check_images(preset.image_shape, source, init_from)
    earlier = preset.network
  else:
    files = (pathlib.Path(init_from, *inner, "network.keras") for inner in (["encoder"], []))
    file = next((file for file in files if file.exists()), None)
    if file is None:
      raise errors.UserError(
        f"--init_from={init_from} holds no encoder: give a finished run's folder"
      )
    earlier = foreign_models.outside_strategies(foreign_models.read_keras, file, "")
  model.start_from(earlier, f"the encoder of --init_from={init_from}")
