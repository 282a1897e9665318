"""`pretrain`: from images to an exported encoder, without labels; the function behind `train`."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import (
  attacks,
  checkpoints,
  distribution,
  errors,
  export,
  monitoring,
  networks,
  optimizers,
  preemption,
  pretexts,
  runs,
  spec,
  trainer,
)
from urkle_tf import robustness as schemes
from urkle_tf.data import augment as augmentation
from urkle_tf.data import pipeline, sources
from urkle_tf.networks.classifier import Classifier


def pretrain(
  output_dir,
  pretext="simclr",
  robustness="urkle(beta=0.1)",
  dataset="digits",
  data_dir=None,
  download=False,
  split="train",
  examples=None,
  image_size=None,
  augment="simclr",
  augment_on_device=False,
  encoder="resnet18",
  latent_dim=128,
  min_scale=0.1,
  max_scale=0.5,
  norm="linf",
  epsilon=8 / 255,
  attack_steps=5,
  attack_step_size=None,
  optimizer="sgd",
  learning_rate=0.1,
  warmup_epochs=0.0,
  weight_decay=1e-4,
  clip_norm=None,
  epsilon_warmup_epochs=0.0,
  beta_warmup_epochs=0.0,
  batch_size=256,
  epochs=100,
  seed=0,
  precision="float32",
  strategy="auto",
  log_every=50,
  checkpoint_every=500,
  init_from=None,
  probe_split=None,
  probe_examples=2000,
):
  """Pre-trains an encoder into a run's folder, or goes on where the folder's run stopped.

  Args:
    output_dir: the run's folder.
    pretext: spec of what is learnt: `"simclr(temperature=0.5)"`, `"byol"`, `"simsiam"`,
      `"barlow_twins"`, `"vicreg"`, `"distil(teacher=PATH)"`, `"vae"`, `"ae"`, `"supervised"`.
    robustness: spec of the robustness scheme: `"none"`, `"urkle(beta=0.1)"`,
      `"trades(beta=6)"`, `"adversarial_training"`, `"rocl"`, `"acl(form=ds)"`.
    dataset: a TFDS name, `"digits"` or `"folder:PATH"`.
    data_dir: where prepared TFDS data lies; None for TFDS's own folder.
    download: whether TFDS may download.
    split: the split, with slices.
    examples: use the first so many examples of the split.
    image_size: resize to squares; None for the images' own size.
    augment: spec of the recipe that makes the views, `"simclr(strength=0.5)"`; or a list with
      one for each view, `"simclr, augmix(base=simclr)"`.
    augment_on_device: whether the recipe runs inside the compiled step.
    encoder: spec of the backbone: `"resnet18(width=64)"`.
    latent_dim: d_z.
    min_scale: floor of sigma, in units of the spread of mu.
    max_scale: cap of sigma, likewise.
    norm: `"linf"`, `"l2"` or `"l1"`.
    epsilon: radius of the threat model in pixel units of [0, 1].
    attack_steps: PGD steps of the inner maximisation.
    attack_step_size: their size; None for 2.5 epsilon / steps.
    optimizer: spec: `"sgd"` or `"adamw"`.
    learning_rate: its highest value; cosine to 0 per step.
    warmup_epochs: epochs of linear rise before it.
    weight_decay: decoupled; batch norms and biases are left out.
    clip_norm: largest global norm of the gradient; None for no clipping.
    epsilon_warmup_epochs: epochs over which epsilon rises linearly.
    beta_warmup_epochs: epochs over which the weight of the KL term does.
    batch_size: images a step over all replicas.
    epochs: passes over the data.
    seed: everything random is a function of it.
    precision: `"float32"` or `"mixed_bfloat16"`.
    strategy: `"auto"`, `"one"`, `"mirrored"`, `"multi_worker"` or `"tpu"`.
    log_every: steps between rows of metrics.
    checkpoint_every: steps between checkpoints.
    init_from: another run's folder, whose encoder's weights are the start.
    probe_split: held-out labelled images for the online k-nearest-neighbour accuracy; None
      for no probe.  Labels are read by the probe alone.
    probe_examples: how many of them.

  Returns:
    The last row of metrics, with `"encoder"`, and after supervised training `"classifier"`:
    the folders of the exports.

  Raises:
    UserError: for settings, data or folders that do not fit.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training: the
      checkpoint of its last step is written.
  """
  settings = dict(locals())
  _check(settings)
  threat = attacks.from_norm(norm, epsilon)
  attack = attacks.PGD(threat, steps=attack_steps, step_size=attack_step_size)
  task = spec.build("pretexts", pretext, pretexts.Pretext)
  scheme = spec.build("robustness", robustness, schemes.Robustness)
  scheme.check(task)
  recipe = augmentation.from_spec(augment)
  recipe.check(task.views)
  if scheme.strength(0.0) is not None:
    pipeline.check_strength(recipe)
  source = sources.load(dataset, split, data_dir, download, image_size, examples)
  task.adopt(source)
  steps_per_epoch = pipeline.steps_per_epoch(source, batch_size)
  steps = steps_per_epoch * epochs
  scope = distribution.strategy(strategy)
  if batch_size % scope.num_replicas_in_sync:
    raise errors.UserError(
      f"batch_size={batch_size} does not divide evenly among {scope.num_replicas_in_sync} replicas"
    )
  keras.mixed_precision.set_global_policy(precision)
  run = runs.open_run(output_dir, settings)
  try:
    with scope.scope():
      keras.utils.set_random_seed(seed)
      model = networks.GaussianEncoder(
        networks.backbone(encoder, source.image_shape), latent_dim, min_scale, max_scale
      )
      if init_from:
        _initialise(model, init_from)
      learner = trainer.Trainer(
        model,
        task,
        scheme,
        attack,
        augment=recipe if augment_on_device else None,
        seed=seed,
        epsilon_warmup=round(epsilon_warmup_epochs * steps_per_epoch),
        beta_warmup=round(beta_warmup_epochs * steps_per_epoch),
        clip_norm=clip_norm,
        steps=steps,
      )
      learner.compile(
        optimizers.build(
          optimizer, learning_rate, steps, round(warmup_epochs * steps_per_epoch), weight_decay
        )
      )
      state = checkpoints.Checkpoints(
        run.path / "checkpoints",
        [*learner.variables, *learner.optimizer.variables, *learner.metrics_variables],
      )
      done = state.restore()
    try:
      with preemption.watch() as watch:
        row = _fit(
          *(learner, run, state, source, recipe, attack, done, steps, steps_per_epoch, settings),
          watch,
        )
    except tf.errors.OpError as error:
      if unreadable := sources.find_unreadable(source):
        raise unreadable from error
      raise
    metadata = {
      "norm": norm,
      "epsilon": epsilon,
      "dataset": dataset if not dataset.startswith("folder:") else "folder",
      "stochastic": bool(task.stochastic or scheme.stochastic),
      "settings": settings,
    }
    with learner.averaged():
      export.export_encoder(model, run.path / "encoder", metadata)
    result = {"encoder": str(run.path / "encoder")}
    if task.head is not None:
      classifier = Classifier(model.network, task.head, metadata["stochastic"])
      classifier.class_names = list(source.class_names)
      export.export_classifier(classifier, run.path / "classifier", metadata)
      result["classifier"] = str(run.path / "classifier")
  finally:
    run.close()
    keras.mixed_precision.set_global_policy("float32")
  return {**row, **result}


def _check(settings):
  if not settings["output_dir"]:
    raise errors.UserError("give --output_dir=FOLDER: where the run is written")
  for name in ("epochs", "batch_size", "log_every", "checkpoint_every", "latent_dim"):
    if settings[name] < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {settings[name]}")
  for name in ("warmup_epochs", "weight_decay", "epsilon_warmup_epochs", "beta_warmup_epochs"):
    if not settings[name] >= 0:
      raise errors.UserError(f"--{name} must be at least 0, got {settings[name]}")
  if settings["batch_size"] < 2:
    raise errors.UserError("--batch_size must be at least 2: one image has no negatives")
  if settings["precision"] not in ("float32", "mixed_bfloat16"):
    raise errors.unknown("precision", settings["precision"], ("float32", "mixed_bfloat16"))


def _initialise(model, init_from):
  """Starts from the encoder of another run (its folder, or its encoder folder)."""
  folder = pathlib.Path(init_from)
  for file in (folder / "encoder" / "network.keras", folder / "network.keras"):
    if file.exists():
      break
  else:
    raise errors.UserError(
      f"--init_from={init_from} holds no encoder: give a finished run's folder"
    )
  earlier = keras.models.load_model(file, compile=False)
  shapes = lambda network: [tuple(v.shape) for v in network.variables]  # noqa: E731
  if shapes(earlier) != shapes(model.network):
    raise errors.UserError(
      f"the encoder of --init_from={init_from} has other layers than this run's: give the same "
      "--encoder, --latent_dim and image size"
    )
  for variable, value in zip(model.network.variables, earlier.variables, strict=True):
    variable.assign(value)


def _fit(
  learner, run, state, source, recipe, attack, done, steps, steps_per_epoch, settings, watch
):
  """Trains from step `done` to the end; returns the last row of metrics."""
  seconds = run.rewind_metrics(done)
  if done >= steps:
    return run.metrics()[-1]
  batch_size = settings["batch_size"]

  def views(start):
    return pipeline.views(
      source,
      recipe,
      batch_size,
      settings["seed"],
      start_step=start,
      views=learner.pretext.views,
      labels=learner.pretext.needs_labels,
      on_device=settings["augment_on_device"],
      strength=learner.strength if learner.robustness.strength(0.0) is not None else None,
    )

  writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
  metrics = monitoring.Metrics(
    run,
    writer,
    state,
    steps,
    steps_per_epoch,
    batch_size,
    settings["log_every"],
    settings["checkpoint_every"],
    seconds,
    watch,
  )
  title = f"{settings['pretext']}, {settings['robustness']}"
  callbacks = [
    monitoring.Pictures(next(iter(views(0))), writer, metrics, run.path / "figures", attack, title)
  ]
  if settings["probe_split"]:
    held_out = sources.load(
      settings["dataset"],
      settings["probe_split"],
      settings["data_dir"],
      False,
      settings["image_size"],
    )
    callbacks.append(_probe(held_out, settings["probe_examples"], metrics))
  callbacks.append(metrics)
  data, epoch = views(done), done // steps_per_epoch
  if partial := done % steps_per_epoch:  # finish the epoch that was interrupted
    options = {"initial_epoch": epoch, "epochs": epoch + 1}
    learner.fit(
      data,
      steps_per_epoch=steps_per_epoch - partial,
      callbacks=callbacks,
      verbose=0,
      shuffle=False,
      **options,
    )
    epoch += 1
    data = views(epoch * steps_per_epoch)
  if epoch * steps_per_epoch < steps:
    learner.fit(
      data,
      initial_epoch=epoch,
      epochs=steps // steps_per_epoch,
      steps_per_epoch=steps_per_epoch,
      callbacks=callbacks,
      verbose=0,
      shuffle=False,
    )
  return metrics.rows[-1]


def _probe(source, examples, metrics):
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
  return monitoring.NearestNeighbours(held[order], known[order], metrics)
