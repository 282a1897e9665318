"""Chooses the weight decay of a head on held-out images."""

import json

import numpy as np

from urkle_tf import errors
from urkle_tf.data import compatibility, splits
from urkle_tf.downstream import _labels, _training
from urkle_tf.output import files

WEIGHT_DECAYS = (1e-4, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
_SHARE = 0.1  # the share of the labelled images that is held out if there are no others


def check(task):
  """Raises `UserError` if no weight decay can be chosen with the task's labels and settings."""
  if not _decays(task):
    raise errors.UserError(
      f"--learning_rate={task.learning_rate:g} is too high for every weight decay: lower it"
    )
  if _chooses(task.validation):
    hold_out(task)
    return
  if task.validation is not None:
    compatibility.check_held_out(task.validation, task.source, task.chosen)
  if len(task.labels) < 2 * _classes(task):
    raise errors.UserError(
      f"{len(task.labels)} labels are too few to hold some out and choose the weight decay: give "
      "--weight_decay, or a --validation_split"
    )


def hold_out(task):
  """Divides the images between training the candidates and choosing one.

  The choice is made on the task's validation images, and candidates are trained on the labelled
  images that are not among them.  A tenth of the labelled images is held out instead if there are
  no validation images, or if they are test images, on which nothing may be chosen.  It is drawn
  from every class in proportion (for numbers, from their deciles) by the task's seed, with at least
  one image of each class.

  Args:
    task: a `Task`.

  Returns:
    (rest, held), bool [m]: the labelled images on which candidates are trained, and those on which
    the choice is made (None for the validation images).

  Raises:
    UserError: if the validation images include all labelled ones.
  """
  if not _chooses(task.validation):
    count = max(round(_SHARE * len(task.labels)), _classes(task))
    held = np.zeros(len(task.labels), bool)
    held[_labels.choose(task.labels.reshape(-1), count, task.seed)] = True
    return ~held, held
  rest = ~compatibility.shared(task.source, task.validation)[task.chosen]
  if not rest.any():
    raise errors.UserError(
      f"--validation_split={task.validation.split} leaves no image of --split={task.source.split} "
      "to train on: hold out a part of it"
    )
  return rest, None


def choose(task, run, held, train, score):
  """Trains the head with each weight decay, and chooses the best one on held-out images.

  Results from before an interruption are read from the run's `weight_decay.json`.

  Args:
    task: a `Task` with `select`; its head does not change.
    run: a `runs.Run`.
    held: as `hold_out` returns it.
    train: a function of a weight decay that trains the head.
    score: a function that measures the task's model on all held-out images, without an attack.

  Returns:
    {"select": the criterion, "held_out": which images, "images": how many, "weight_decay": the best
    one, "candidates": [{"weight_decay", "validation_accuracy"}, ...]}.  A robust choice adds
    "validation_robust_accuracy" on the first 1,000 images; of several that are equal there, the
    best on clean images is chosen.  Of equal ones, the largest is.  For numbers, errors replace the
    accuracies.
  """
  if held is None:
    images, where = task.validation.size, task.validation.split
  else:
    images, where = int(held.sum()), f"a part of {task.source.split}"
  names = task.measures if task.select == "robust" else task.measures[:1]
  file = run.path / "weight_decay.json"
  fingerprint = task.encoder.metadata.get("fingerprint")
  rows: list[dict] = []
  if file.exists():
    earlier = json.loads(file.read_text())
    rows = earlier["candidates"] if earlier["encoder_fingerprint"] == fingerprint else []
  scorer, start = None, task.head.get_weights()
  for decay in _decays(task)[len(rows) :]:
    train(decay)
    row = {"weight_decay": decay}
    if task.select == "robust":
      scorer = scorer or _training.Scorer(task, _attacked(task, held))
      row |= scorer()
    rows.append(row | {names[0]: score()})
    task.head.set_weights(start)
    known = {"encoder_fingerprint": fingerprint, "candidates": rows}
    files.write(file, json.dumps(known, indent=1) + "\n")
    task.watch.check()
  best = _best(rows, names, task)
  what = "clean and robust" if len(names) == 2 else "clean"
  print(f"weight decay, {what} {task.measure} on {images} images, {where}:")
  form = "{:.2%}" if task.classifies else "{:.4g}"
  for row in rows:
    figures = "".join(f"{form.format(row[name]):>10}" for name in names)
    print(f"{row['weight_decay']:>8g}{figures}{'  chosen' * (row is best)}", flush=True)
  if len(names) == 2 and len({row[names[1]] for row in rows}) == 1:
    print("all are equal under attack, so clean images decided", flush=True)
  found = {"select": task.select, "held_out": where, "images": images}
  return {**found, "weight_decay": best["weight_decay"], "candidates": rows}


def _decays(task):
  """The candidates: a decoupled decay of 1 / learning rate would set a weight to 0."""
  return [decay for decay in WEIGHT_DECAYS if decay * task.learning_rate < 1]


def _best(rows, names, task):
  """The candidate that is best under attack; of equal ones, on clean images; then the last one."""
  sign = 1 if task.classifies else -1
  return max(reversed(rows), key=lambda row: [sign * row[name] for name in reversed(names)])


def _chooses(validation):
  """Whether a choice may be made on validation images: there are some, and none is a test image."""
  return validation is not None and not splits.holds_test_images(validation.split)


def _attacked(task, held):
  """The held-out images as a `Source`, at least as many as are attacked."""
  if held is None:
    return task.validation
  return _training.subset(task.source, task.chosen[held][: _training.VALIDATION_EXAMPLES])


def _classes(task):
  return len(np.unique(task.labels)) if task.classifies else 1
