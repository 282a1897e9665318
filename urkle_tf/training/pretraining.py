"""`pretrain`: from images to an exported encoder, without labels; the function behind `train`."""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors, export
from urkle_tf.data import compatibility, service, sources
from urkle_tf.networks.classifier import Classifier
from urkle_tf.output import files
from urkle_tf.settings import Pretrain, arguments
from urkle_tf.training import (
  alarms,
  attack_schedules,
  board,
  checkpoints,
  jobs,
  metrics,
  pictures,
  preemption,
  probe,
  recorder,
  runs,
)


@arguments(Pretrain)
def pretrain(given):
  """Pre-trains an encoder into a run's folder, or resumes the folder's run.

  Returns:
    The last row of metrics, a dict, with the folders of the exports: `"encoder"`, and after
    supervised training `"classifier"`.

  Raises:
    UserError: for settings, data or folders that are wrong.
    distribution.WorkerLost: when another worker, or an input worker, has ended.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training, after
      a checkpoint of its last step.

  ```python
  row = urkle_tf.pretrain(
    "runs/digits", dataset="digits", encoder="convnet(width=32, layers=3)", epochs=60
  )
  encoder = urkle_tf.load_encoder(row["encoder"])
  ```
  """
  if not given.output_dir:
    raise errors.UserError("give --output_dir=FOLDER, where the run goes")
  asked = jobs.completed(dataclasses.asdict(given))
  with jobs.prepared(asked) as job:  # data, encoder and trainer
    chief = distribution.is_chief(job.scope)
    if chief:
      marks = job.source.fingerprint, job.learner.pretext.fingerprint
      run = runs.open_run(given.output_dir, asked, *marks)
    else:
      run = runs.scratch(asked)
    with contextlib.closing(run):
      state = checkpoints.Checkpoints(run.path / "checkpoints", job.state, job.scope)
      with job.scope.scope():
        done = state.restore()
      row = _fit(job, run, state, done)
      return {**row, **_export(job, run)}


def _fit(job, run, state, done):
  """Trains from step `done` to the end; returns the last row of metrics."""
  settings, seconds, limit = job.settings, run.rewind_metrics(done), None
  if job.steps:
    behind = done / job.steps
  else:
    behind, limit = float(distribution.plain(job.learner.clock)), 60 * settings["minutes"]
    seconds = behind * limit  # the rows lack the seconds after the last of them
  if behind >= 1:
    return (run.metrics() or [{}])[-1]
  course = recorder.Course(job.steps, job.steps_per_epoch, settings["batch_size"], limit)
  warnings = alarms.Alarms(job.learner, run.metrics())
  record = recorder.Recorder(run, course, seconds, alarms=warnings, scope=job.scope)
  board.settings(record.writer, settings)
  with preemption.watch(distribution.agreement(job.scope)) as watch, _lost_data(job):
    callbacks = _callbacks(job, run, record)
    every = {name: settings[name] for name in ("log_every", "checkpoint_every", "max_bad_steps")}
    callbacks.append(metrics.Metrics(record, state, watch=watch, scope=job.scope, **every))
    try:
      job.learner.fit_from(job.views, done, job.steps, job.steps_per_epoch, callbacks)
    except metrics.NotFinite as error:
      raise errors.UserError(f"{error}; {_evidence(job, run, state, error.first)}") from error
  return record.rows[-1]


@contextlib.contextmanager
def _lost_data(job):
  """A context in which errors about data name the cause: an input worker, or a file."""
  with sources.naming_unreadable(job.source):
    try:
      yield
    except tf.errors.OpError as error:
      if job.settings["data_service"] and service.lost(error):
        raise distribution.WorkerLost("an input worker has ended") from error
      raise


def _callbacks(job, run, record):
  """The callbacks of the training, in order."""
  settings, found = job.settings, []
  if job.held_out is not None:
    agree = distribution.agreement(job.scope)
    unseen = _batch(job, 0, source=job.held_out, batch_size=job.held_out.size)
    found.append(attack_schedules.Control(job.learner.schedule, unseen, record, agree))
  if not distribution.is_chief(job.scope):
    return found
  watched = []
  if settings["probe_split"]:  # the first callback made, because there may be no such split
    place = settings["data_dir"], False, settings["image_size"]
    held_out = sources.load(settings["dataset"], settings["probe_split"], *place)
    attack = job.attack if job.learner.attack else None
    examples = settings["probe_examples"]
    compatibility.warn_of_seen(held_out, job.source, "--probe_split", examples)
    with sources.naming_unreadable(held_out):
      watched.append(probe.of(held_out, examples, record, attack))
  title = f"{settings['pretext']}, {settings['robustness']}"
  folder = run.path / "figures"
  drawn = pictures.Pictures(_batch(job, 0), record, folder, job.attack, title)
  return [*found, drawn, *watched]


def _batch(job, step, source=None, **settings):
  """The whole batch of a step, made in this process; from another source if one is given."""
  settings = {**job.settings, "data_service": None, **settings}
  here = {"scope": tf.distribute.get_strategy(), "settings": settings}
  return next(iter(dataclasses.replace(job, **here, source=source or job.source).views(step)))


def _evidence(job, run, state, step):
  """Saves the batch of a step that is not finite; returns a text about it and the checkpoints."""
  views, batch = job.learner.views(_batch(job, step), step)
  arrays = {"views": views, **batch, "step": step, "seed": job.settings["seed"]}
  arrays = {name: np.asarray(value) for name, value in arrays.items()}
  file = run.path / "bad_batch.npz"
  files.write(file, lambda stream: np.savez(stream, **arrays))
  good = state.last_good()
  said = f"the last good checkpoint is {good}" if good else "no checkpoint holds finite weights"
  return f"{said}, and {file} holds the batch of step {step + 1}"


def _export(job, run):
  """Writes the exports; returns {kind: folder}.  Other workers wait for the chief.

  A worker that ends before the chief would look as if it had died.
  """
  agree = distribution.agreement(job.scope)
  result = {}
  if distribution.is_chief(job.scope):
    learner, settings = job.learner, job.settings
    model, task = learner.encoder, learner.pretext
    metadata = describe(settings, task, learner.robustness)
    with learner.averaged():
      if not (run.path / "tensorboard" / "projector_config.pbtxt").exists():
        folder = run.path / "tensorboard"
        board.embeddings(model, job.attack, job.source, folder, settings["seed"])
      result["encoder"] = str(run.path / "encoder")
      export.export_encoder(model, run.path / "encoder", metadata)
      if task.head is not None:
        classifier = Classifier(model.network, task.head, metadata["stochastic"])
        classifier.class_names = list(job.source.class_names)
        result["classifier"] = str(run.path / "classifier")
        export.export_classifier(classifier, run.path / "classifier", metadata)
  agree(0)
  return result


def describe(settings, task, scheme):
  """The entries of an encoder's metadata about its training.

  Args:
    settings: the settings of `pretrain`, by name.
    task: the `Pretext`, or its class.
    scheme: the `Robustness`, or its class.
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
