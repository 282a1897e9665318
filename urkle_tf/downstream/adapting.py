"""`adapt`: from an exported encoder and labels to a predictor; the function behind `finetune`."""

import contextlib
import dataclasses
import json
import os
import pathlib

import keras

from urkle_tf import errors, export, spec
from urkle_tf.data import sources
from urkle_tf.downstream import _tasks
from urkle_tf.downstream.base import Protocol
from urkle_tf.output import files, tables
from urkle_tf.settings import Adapt, arguments
from urkle_tf.training import preemption, runs

FEATURES = ("loc", "pooled")


@arguments(Adapt)
def adapt(given):
  """Makes a classifier or a regressor from an exported encoder, in a run's folder.

  Writes `flags.cfg`, `metrics.jsonl`, `labels.json` if `labels` is given, and `classifier/`, or
  `regressor/` if the labels are numbers.  Called again with the same settings, a finished run
  trains nothing and returns the same.  A killed run resumes at its last epoch.  A killed `slf` run
  keeps the weight decays that it has measured, and trains the head again from the start.  SIGTERM
  and Ctrl-C finish the step and write a checkpoint, from which all protocols resume.  However often
  a run is interrupted, the result is identical in every bit.

  Returns:
    The row of metrics of the exported weights, a dict, with the folder of the export,
    `"classifier"` or `"regressor"`.  If the weight decay was chosen, also `"selection"`, as in
    metadata.json: {"select", "held_out", "images", "weight_decay", "candidates"}.

  Raises:
    UserError: for settings, data or folders that are wrong.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training.

  ```python
  row = urkle_tf.adapt("runs/digits/encoder", "runs/digits-slf", dataset="digits")
  classifier = urkle_tf.load_classifier(row["classifier"])
  ```
  """
  settings, method = dataclasses.asdict(given), _method(given)
  metadata = export.read_metadata(given.encoder, "encoder")
  unused = _tasks.settle(settings, method, metadata)
  errors.flags_at_least(1, settings, "epochs", "batch_size", "log_every", "samples")
  errors.flags_above(0, settings, "attack_step_size")
  errors.check_seed(given.seed)
  data = _tasks.labelled(given, metadata["image_size"])
  keras.utils.set_random_seed(given.seed)
  task = _tasks.make(settings, metadata, data, method)
  method.check(task)  # the last check, so that a mistake leaves no folder behind
  if unused:
    name = spec.parse(given.protocol)[0]
    print(f"{name} does not use {', '.join(unused)} with these settings")
  marks = data.source.fingerprint, metadata["fingerprint"]
  run = runs.open_run(given.output_dir, settings, *marks)
  with contextlib.closing(run):
    folder = run.path / ("classifier" if task.classifies else "regressor")
    if (folder / "metadata.json").exists():
      row = _finished(run, folder, task)
    else:
      # The examples whose labels are used; not those of a run that ended before its first epoch.
      (run.path / "labels.json").unlink(missing_ok=True)
      if given.labels is not None:
        chosen = json.dumps({"positions": task.chosen.tolist()})
        files.write(run.path / "labels.json", chosen + "\n")
      read = filter(None, (data.source, data.validation))
      with preemption.watch() as watch, sources.naming_unreadable(*read):
        row = method.fit(dataclasses.replace(task, watch=watch), run)
      _export(task, method, folder, settings, metadata, row)
  return {**row, folder.name: str(folder)}


def adapt_seeds(output_dir, seeds, seed=0, **settings):
  """Runs `adapt` with several seeds, and returns the mean and the spread of their figures.

  Writes `OUTPUT_DIR/seed-N/` for each seed N, and `OUTPUT_DIR/seeds.json`.  Finished seeds are not
  run again.  A seed decides which labels are drawn, the head's initial weights, the noise and the
  order of images; the encoder is the same.

  Args:
    output_dir: the folder that holds all of them.
    seeds: the number of seeds: seed, seed + 1, ...
    seed: the first seed.
    **settings: the settings of `adapt`.

  Returns:
    The content of `seeds.json`: {"seeds": [...], "runs": the results of `adapt`, without paths,
    "mean": {name: mean} of every figure that begins with "validation", "deviation": the sample
    standard deviations, and "interval": the 95% intervals of the means by Student's t}.  The last
    two are empty for one seed.

  Raises:
    UserError: as in `adapt`, or for fewer than one seed.
  """
  errors.at_least(1, None, seeds=seeds)
  if not output_dir:
    raise errors.UserError("give --output_dir=FOLDER, where the runs go")
  folder = pathlib.Path(os.path.expanduser(output_dir))
  numbers, rows = list(range(seed, seed + seeds)), []
  with preemption.watch() as watch:
    for number in numbers:
      watch.check()
      print(f"seed {number}: {folder}/seed-{number}", flush=True)
      row = adapt(output_dir=str(folder / f"seed-{number}"), seed=number, **settings)
      rows.append({k: v for k, v in row.items() if k not in ("classifier", "regressor")})
  names = [name for name in rows[0] if name.startswith("validation")]
  figures = {name: tables.seeds([row[name] for row in rows]) for name in names}
  result = {"seeds": numbers, "runs": rows}
  for place, key in enumerate(("mean", "deviation", "interval")):
    result[key] = {n: found[place] for n, found in figures.items() if found[place] is not None}
  files.write(folder / "seeds.json", json.dumps(result, indent=1) + "\n")
  return result


def _method(given):
  """The `Protocol` of settings."""
  name = spec.parse(given.protocol)[0]
  errors.one_of("protocol", name, spec.names("downstream"))
  method = spec.build("downstream", given.protocol, Protocol)
  if not given.encoder:
    raise errors.UserError("give --encoder=FOLDER: the export of a trained encoder, or preset:NAME")
  errors.one_of("choice of --features", given.features, FEATURES)
  if given.features != "loc" and not method.frozen:
    raise errors.UserError(
      f"--features={given.features} is for the head of a frozen encoder: use --protocol=slf or alf"
    )
  return method


def _finished(run, folder, task):
  """The row of metrics of an earlier export."""
  done = export.read_metadata(folder, folder.name)
  if done.get("encoder_fingerprint") != task.encoder.metadata["fingerprint"]:
    raise errors.UserError(
      f"{run.path} holds a {folder.name} made from another encoder than the one in {task.folder}: "
      "give another --output_dir"
    )
  print(f"{run.path} is finished: nothing to do")
  step, rows = done.get("selected", {}).get("step"), run.metrics()[::-1]
  row = next((row for row in rows if row["step"] == step), rows[0])  # of the last stage
  return {**row, "selection": done["selection"]} if "selection" in done else row


def _export(task, method, folder, settings, metadata, row):
  """Writes the task's model, whose weights belong to a row of metrics."""
  # The threat is that of the training: an attack that only chose the weight decay does not count.
  trained = settings if method.adversarial else metadata
  details = {
    **{key: trained[key] for key in ("norm", "epsilon") if key in trained},
    "dataset": export.settings_without_paths(settings)["dataset"],
    "settings": settings,
    "encoder_settings": metadata.get("settings", {}),
    "encoder_fingerprint": metadata["fingerprint"],
    "selected": {key: row[key] for key in ("step", "epoch")},
    "selection": row.get("selection"),
  }
  if task.classifies:
    export.export_classifier(task.model, folder, details)
  else:
    export.export_regressor(_tasks.in_units(task), folder, details)
