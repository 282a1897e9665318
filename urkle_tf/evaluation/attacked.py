"""Measures a classifier on the worst images that attacks find.

The sampled classifier and the one with z = loc are two classifiers.  Each is attacked through its
own gradients, and each is also scored on the adversaries found against the other: an adversary
counts, however it was found.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.attacks import losses
from urkle_tf.attacks.plan import Plan
from urkle_tf.evaluation import calibration, falling, scoring
from urkle_tf.evaluation.adversaries import adversary
from urkle_tf.evaluation.candidates import Worst, choose
from urkle_tf.output import progress, tables


def _attack(runs, scorer, states, positions, images, labels, shown):
  """Attacks a batch in every mode, and scores the most harmful candidates.

  Args:
    runs: {mode: () -> (candidates [k, at least n, h, w, c], share of zero gradients)}.
    scorer: a `Scorer`.
    states: {("worst" or "own", mode): `Worst`} so far: "own" counts the mode's own adversaries.
    positions: int [n], the images' places in `states`.
    images: float32 [n, h, w, c].
    labels: int [n].
    shown: modes whose chosen adversaries are wanted.

  Returns:
    {name: array}, what `_take` reads, "zero.MODE", "seconds" and "cpu" (seconds of all threads).
  """
  started = time.perf_counter(), time.process_time()
  record: dict[str, object] = {}
  candidates = []
  for mode, run in runs.items():
    adversaries, zero = run()
    record[f"zero.{mode}"] = float(zero)
    for one in np.asarray(adversaries)[:, : len(positions)]:
      candidates.append((mode, one, scorer.choosing(one)))
  for (kind, mode), state in states.items():
    offered = [
      (one, values[mode])
      for attacker, one, values in candidates
      if kind == "worst" or attacker == mode
    ]
    name, before = f"{kind}.{mode}", state.choice[positions]
    choice, chosen, changed = choose(before, labels, images, offered)
    record |= {f"{name}.choice": choice, f"{name}.changed": changed}
    if mode == "sampled":
      scored, record[f"{name}.votes"] = scorer.with_votes(chosen)
      record[f"{name}.scored"] = scored[mode]
    if kind == "worst" and mode in shown:
      record[f"{name}.images"] = chosen
  spent = {"seconds": time.perf_counter() - started[0], "cpu": time.process_time() - started[1]}
  return record | spent


def _take(state, record, name, positions):
  """Offers what `_attack` chose to a `Worst`: (taken, images or None, log-probabilities)."""
  changed, taken = record[f"{name}.changed"], np.zeros(len(positions), bool)
  choice = record[f"{name}.choice"]
  scored, votes = record.get(f"{name}.scored", choice), record.get(f"{name}.votes")
  offer = (array if array is None else array[changed] for array in (choice, scored, votes))
  taken[changed] = state.update(positions[changed], *offer)
  return taken, record.get(f"{name}.images"), scored


def measure(context, plans, standing=False, observe=None, minutes=None):
  """The report's part "attacks": a row for each attack, radius and mode.

  A row's "accuracy" is the share of images that are classified correctly clean, on the adversary
  found against the mode itself, and on that found against the other mode.  Against the sampled mode
  there are many candidates for an image.  The worst one of each batch is chosen with draws of z
  that no attack knows, and scored with further draws.  NLL, ECE and Brier score, and the figures of
  `calibration.served`, are those of the most harmful candidate.  "own_accuracy" counts only the
  clean images and the mode's own adversaries.

  Attacks with targets run once for each target, on the images that no earlier target broke in every
  mode.  They do not make broken images worse, so their NLL is no worst case.  The stages of an
  ensemble also skip, and count, the images that earlier stages of the same or a smaller radius
  broke; after the last stage comes a row with the ensemble's name.  Plans that are `last` do so
  with all plans before them.

  Args:
    context: a `Context` of a classifier.
    plans: `Plan`s.
    standing: attack only the images that no earlier row of the same or a smaller radius broke in
      every mode, and count what those rows found.  It is much faster; a row then covers all attacks
      so far, and only the first has an "own_accuracy".
    observe: called as observe(row number, mode, positions, images, adversaries, taken,
      log_probabilities) with every batch of a row if observe.wants(row number).  `taken` says which
      adversaries are the most harmful so far.
    minutes: time limit.  After it no further batch is attacked, if there is a first row.
      Unfinished attacks and their ensembles have no row, and are listed in
      `context.notes["left_out"]`.

  Returns:
    (rows, list of (bool [n], float32 [n]) pairs): the rows, and for each row whether each image was
    always classified correctly, and the log p(y) of its worst candidate.
  """
  search, left = _Search(context, plans, standing, observe, minutes), []
  alone = None
  if len(context.modes) == 1:
    alone = falling.Mode(context.model, context.modes[0], context.eot, context.batch_size)
  for number, plan in enumerate(plans):
    find = {
      mode: adversary(context.model, plan, mode, context.eot, alone) for mode in context.modes
    }
    for place, epsilon in enumerate(context.epsilons):
      if not search.run(number, place, find):
        left.append((plan, f"{plan.name} {tables.radius(epsilon, context.norm)}"))
    stages = [other for other in plans[number + 1 :] if _same_ensemble(plan, other)]
    whole = not any(_same_ensemble(plan, other) for other, _ in left)
    if plan.ensemble and not stages and whole:
      search.close(plan)
  if left:
    context.notes["left_out"] = [name for _, name in left]
  return search.rows, search.details


@dataclasses.dataclass
class _Pass:
  """One plan at one radius.

  Attributes:
    plan: the `Plan`.
    place: numbers of the plan and of the radius.
    epsilon: the radius.
    find: {mode: the compiled attack}.
    worst: {mode: `Worst`}.
    own: the same, only for the mode's own adversaries; empty if earlier finds count.
    zeros: {mode: sum over images of the share of zero gradients}.
    attacked: the number of attacked images.
    runs: attacks per image, with targets.
    seconds: their duration.
    cpu: CPU seconds on all cores.
    parts: numbers of its batches.
  """

  plan: Plan
  place: tuple[int, int]
  epsilon: float
  find: dict
  worst: dict
  own: dict
  zeros: dict
  attacked: int = 0
  runs: int = 0
  seconds: float = 0.0
  cpu: float = 0.0
  parts: Iterator[int] = dataclasses.field(default_factory=itertools.count)


class _Search:
  """The loop of `measure`, whose arguments these are."""

  def __init__(self, context, plans, standing, observe, minutes):
    self.rows: list[dict] = []
    self.details: list[tuple] = []
    self._context, self._plans = context, plans
    self._standing, self._observe = standing, observe
    self._end = time.monotonic() + 60 * minutes if minutes else math.inf
    self._seed = distribution.fold([context.seed, 0], scoring.ATTACK_STREAM)
    self._earlier: list[_Pass] = []
    self._staged: dict[tuple, list[dict]] = {}  # the rows of an ensemble's stages

  def run(self, number, place, find):
    """Attacks with one plan at one radius, given by their numbers; adds a row per mode.

    Returns:
      Whether there was time.
    """
    if self._late:
      return False
    plan, epsilon = self._plans[number], self._context.epsilons[place]
    before = [
      other.worst
      for other in self._earlier
      if other.epsilon <= epsilon
      and (self._standing or plan.last or _same_ensemble(plan, other.plan))
    ]
    worst, own = self._of_clean(), {} if before else self._of_clean()
    for state in before:
      for mode, of_mode in worst.items():
        of_mode.merge(state[mode])
    zeros = dict.fromkeys(worst, 0.0)
    current = _Pass(plan, (number, place), epsilon, find, worst, own, zeros)
    target = 0
    while target < plan.rounds:
      aimed = self._aim(current, target)
      if not aimed:
        return False
      target += aimed
    self._earlier.append(current)
    for mode in worst:
      self._add(current, mode)
    return True

  @property
  def _late(self):
    return bool(self.rows) and time.monotonic() > self._end

  def close(self, plan):
    """Adds the rows of an ensemble after its last stage, whose rows count all finds."""
    places = list(itertools.product(self._context.epsilons, self._context.modes))
    last = self.details[-len(places) :]
    for (epsilon, mode), detail in zip(places, last, strict=True):
      self.rows.append(_of_ensemble(self._staged[plan.group, epsilon, mode]))
      self.details.append(detail)

  def _of_clean(self):
    on_clean, labels = self._context.on_clean, self._context.labels
    votes = {"sampled": on_clean.votes}
    return {
      mode: Worst(on_clean.choice[mode], labels, on_clean.values[mode], votes.get(mode))
      for mode in self._context.modes
    }

  def _aim(self, current, target):
    """Attacks all images, or those not broken, towards a target, or several from it on.

    Returns:
      How many targets; 0 if there was no time.
    """
    context, plan = self._context, current.plan
    find, batch_size, together = current.find[context.modes[0]], context.batch_size, 1
    mask = None
    if self._standing or plan.on_standing:
      # If rows also report their own finds, an image that only the other mode's adversary
      # broke still has to be attacked.
      mask = np.any([state.right for state in (current.own or current.worst).values()], axis=0)
    count = context.source.size if mask is None else int(mask.sum())
    current.attacked = count if target == 0 else current.attacked
    if isinstance(find, falling.Falling):
      together = min(find.at_once(count), plan.rounds - target)
      batch_size *= falling.BATCHES
    aims: dict[str, tuple] = dict.fromkeys(context.modes, ())
    radius = tables.radius(current.epsilon, context.norm)
    title = f"{plan.name}({plan.steps}) {context.norm} {radius}"
    if plan.targets:
      aimed = range(target, target + together)
      title += f" target {target + together}/{plan.targets}"
      for mode, choice in context.on_clean.choice.items():
        ranks = [losses.wrong_class(choice, context.labels, rank).numpy() for rank in aimed]
        aims[mode] = (ranks,)
    bar = progress.Progress(title, count)
    for positions, images, truth in scoring.stream(context.source, batch_size, mask):
      if self._late:
        return 0
      self._attack(current, aims, positions, images, truth)
      # Of the images up to here: those that were not attacked again are broken already.
      shares = {m: state.right[: positions[-1] + 1].mean() for m, state in current.worst.items()}
      bar.add(len(positions), "  ".join(f"{m} {100 * share:.1f}%" for m, share in shares.items()))
    return together

  def _attack(self, current, aims, positions, images, truth):
    """Attacks a batch, or reads its stored result, and counts it."""
    context, part, modes = self._context, next(current.parts), self._context.modes
    any_size = isinstance(current.find[modes[0]], falling.Falling)
    size = len(images) if any_size else scoring.padded(len(images), context.batch_size)
    padded = lambda array: tf.constant(scoring.pad(array, size))  # noqa: E731
    states = {("worst", mode): state for mode, state in current.worst.items()}
    states |= {("own", mode): state for mode, state in current.own.items()}
    rows = {mode: len(self.rows) + number for number, mode in enumerate(modes)}
    observe = self._observe
    shown = [mode for mode in modes if observe is not None and observe.wants(rows[mode])]
    runs = {
      mode: functools.partial(
        current.find[mode],
        padded(images),
        padded(truth),
        # As if all modes were measured: fewer of them change no figure of the others' attacks.
        distribution.fold(self._seed, current.place[0], part, context.model.modes.index(mode)),
        *current.plan.radius_and_step(current.epsilon),
        *(tf.stack([padded(target[positions]) for target in aim]) for aim in aims[mode]),
      )
      for mode in modes
    }
    compute = functools.partial(
      _attack, runs, context.scorer, states, positions, images, truth, shown
    )
    name = f"attack-{current.place[0]}-{current.place[1]}-{part}"
    record = context.store.arrays(name, compute)
    for (kind, mode), state in states.items():
      taken, adversaries, values = _take(state, record, f"{kind}.{mode}", positions)
      if kind == "worst" and mode in shown:
        observe(rows[mode], mode, positions, images, adversaries, taken, values)
    for mode in modes:
      current.zeros[mode] += float(record[f"zero.{mode}"]) * len(positions)
    current.seconds += float(record["seconds"])
    current.cpu += float(record.get("cpu", 0))
    current.runs += len(positions)

  def _add(self, current, mode):
    """Adds the row of a mode."""
    context, plan, worst = self._context, current.plan, current.worst[mode]
    step_size = plan.step_size(current.epsilon)
    row = {
      "name": plan.name,
      "norm": context.norm,
      "epsilon": float(current.epsilon),
      "steps": plan.steps,
      "restarts": plan.restarts,
      "eot": context.eot if mode == "sampled" else 1,
      "mode": mode,
      **calibration.scores(worst.scored, context.labels),
      "step_size": None if step_size is None else float(step_size),
      "loss": plan.loss.__name__,
      "targets": plan.targets,
      "examples": context.source.size,
      "attacked": current.attacked,
      "zero_gradients": current.zeros[mode] / max(current.runs, 1),
      "seconds": round(current.seconds, 2),
      "cpu_seconds": round(current.cpu, 2),
    }
    if mode == "sampled":
      row |= calibration.served(worst.votes, context.labels, context.scorer.served)
      row["noise"] = "fixed" if plan.fixed_noise else "fresh"
    row |= {name: text for name in ("note", "options") if (text := getattr(plan, name))}
    if plan.ensemble:
      row["ensemble"] = plan.ensemble
      self._staged.setdefault((plan.group, current.epsilon, mode), []).append(row)
    if current.own:
      right = current.own[mode].right
      row["own_accuracy"] = float(right.mean())
      row["own_interval"] = calibration.wilson(int(right.sum()), len(right))
    self.rows.append(row)
    self.details.append((worst.right, worst.of_label))


def _of_ensemble(staged):
  """The row of an ensemble, from those of its stages; the last one counts all finds."""
  first, last = staged[0], staged[-1]
  own = ("step_size", "loss", "targets", "note", "ensemble", "noise")
  return {
    **{name: value for name, value in last.items() if name not in own},
    **{name: first[name] for name in ("steps", "restarts", "attacked", "zero_gradients")},
    "name": first["ensemble"],
    "step_size": None,
    "stages": [row["name"] for row in staged],
    **{k: round(sum(row[k] for row in staged), 2) for k in ("seconds", "cpu_seconds")},
  }


def _same_ensemble(plan, other):
  return bool(plan.ensemble) and plan.group == other.group
