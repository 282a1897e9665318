"""What a classifier does on the worst images that an attack finds.

The sampled classifier and the one of z = loc are two classifiers.  Each is attacked by its
own gradients, and each is also scored on what was found against the other: an adversary is
an adversary, whoever found it.
"""

import functools
import itertools
import time

import numpy as np
import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.attacks import losses
from urkle_tf.attacks.plan import Plan
from urkle_tf.evaluation import clean, scoring
from urkle_tf.evaluation.candidates import Worst, choose
from urkle_tf.evaluation.store import Store
from urkle_tf.output import progress, tables


def differentiable(classifier):
  """Whether a classifier has gradients in the images, if only zeros.

  False where something in it has none that TensorFlow knows, such as a table look-up: one that
  was found to be flat everywhere is looked at.
  """
  found = getattr(classifier, "metadata", {}).get("gradients", {})
  if found.get("zero_bridged", 0.0) < 1.0:
    return True
  missing = []

  @tf.function(autograph=False)
  def gradient(images):
    frozen = classifier.frozen()
    with tf.GradientTape() as tape:
      tape.watch(images)
      scores = frozen.from_representation(*frozen.represent(images), tf.constant([0, 0]), 1)
      total = tf.reduce_sum(scores)
    missing.append(tape.gradient(total, images) is None)

  try:
    gradient.get_concrete_function(tf.TensorSpec([None, *classifier.image_shape], tf.float32))
  except Exception:  # operations that have no gradient raise many kinds
    return False
  return not any(missing)


def _flat(objective):
  """An objective without a gradient, to attacks one whose gradient is zero."""
  nothing = lambda images: 0.0 * tf.reduce_sum(images, list(range(1, images.shape.rank)))  # noqa: E731
  return lambda images: tf.stop_gradient(objective(images)) + nothing(images)


def adversary(classifier, plan, mode, eot=20):
  """Compiles an attack on one mode of a classifier.

  The objective is the plan's loss of the log-probabilities.  In the sampled mode these are the log
  of the mean over `eot` samples of z (expectation over transformation), drawn afresh at every
  evaluation: a counter in a variable tells the evaluations apart, since the attack hands its
  objective nothing but images.  Square and FAB compare values between evaluations, where fresh
  noise would reward luck: they meet the same samples throughout a run.

  Args:
    classifier: a `Classifier`.
    plan: a `Plan`.
    mode: "sampled" or "deterministic".
    eot: samples of z an evaluation.

  Returns:
    A function (images float32 [n, h, w, c], labels int [n], seed int32 [2], epsilon, step
    size or None, targets int [n] where the plan has some) -> (candidates [k, n, h, w, c], share
    of zero gradients).
  """
  has_gradient = differentiable(classifier)
  evaluations = tf.Variable(0, trainable=False, dtype=tf.int64)  # GPUs add no int32

  @tf.function
  def find(images, labels, seed, epsilon, step_size, targets=None):
    noise = distribution.fold(seed, 1)
    frozen = classifier.frozen()
    evaluations.assign(0)

    def scores(neighbours):
      loc, scale = frozen.represent(neighbours)
      if mode == "deterministic":
        return tf.nn.log_softmax(frozen.head(loc))
      draws = noise
      if not plan.fixed_noise:
        draws = distribution.fold(noise, evaluations.assign_add(1))
      return frozen.from_representation(loc, scale, draws, eot)

    objective = plan.objective(scores, labels, targets)
    climbed = objective if has_gradient else _flat(objective)
    seed = distribution.fold(seed, 0)
    found, info = plan.attack.run(climbed, images, seed, epsilon, step_size=step_size)
    candidates = [found]
    if mode == "sampled" and "last" in info:
      # The best iterate under fresh noise may be one that had luck with its draws; the last one,
      # where most of the climbing is done, had none.  Both are scored with draws of the scorer's.
      candidates.append(info["last"])
    return tf.stack(candidates), info["zero_gradients"]

  return find


def _attack(runs, scorer, states, positions, images, labels, shown):
  """Attacks a batch in every mode, and scores what hurts most.

  Args:
    runs: {mode: () -> (candidates [k, at least n, h, w, c], share of zero gradients)}.
    scorer: a `Scorer`.
    states: {("worst" or "own", mode): `Worst`} so far: "own" counts the mode's own adversaries.
    positions: int [n], the images' places in `states`.
    images: float32 [n, h, w, c].
    labels: int [n].
    shown: modes whose chosen adversaries are wanted.

  Returns:
    {name: array}, what `_take` reads, "zero.MODE" and "seconds".
  """
  started = time.perf_counter()
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
  return record | {"seconds": time.perf_counter() - started}


def _take(state, record, name, positions):
  """Offers what `_attack` chose to a `Worst`: (taken, images or None, log-probabilities)."""
  changed, taken = record[f"{name}.changed"], np.zeros(len(positions), bool)
  choice = record[f"{name}.choice"]
  scored, votes = record.get(f"{name}.scored", choice), record.get(f"{name}.votes")
  offer = (array if array is None else array[changed] for array in (choice, scored, votes))
  taken[changed] = state.update(positions[changed], *offer)
  return taken, record.get(f"{name}.images"), scored


def measure(
  classifier,
  source,
  labels,
  on_clean,
  scorer,
  found,
  norm,
  epsilons,
  batch_size=250,
  eot=20,
  seed=0,
  standing=False,
  observe=None,
  store=None,
):
  """The report's part "attacks": a row for each attack, radius and mode.

  A row's "accuracy" is the share of images that are classified rightly as they are, on the
  adversary found against the mode itself, and on that found against the other mode.  Against
  the sampled mode there are many candidates for an image: the worst one of each batch is chosen
  with draws of z that no attack knows, and what is said of it is measured with further draws.
  NLL, ECE and Brier score are those of the candidate that hurts most, and so are the figures of
  `clean.served`.  "own_accuracy" is that on the images as they are and the mode's own
  adversaries alone.

  Attacks with targets are run once for each, on the images that no target before broke in every
  mode; what is broken is not made worse, so that their NLL is no worst case.  The stages of an
  ensemble do likewise with what the stages before them, of the same or a smaller radius, broke,
  and count it; after the last of them comes a row of the ensemble's name.

  Args:
    classifier: a `Classifier`.
    source: a labelled `Source`.
    labels: int [n].
    on_clean: the `Scores` of the clean images.
    scorer: a `Scorer` for `batch_size`.
    found: `Plan`s.
    norm: of the threat model.
    epsilons: radii in pixel units.
    batch_size: images that are attacked together.
    eot: samples of z in each evaluation of the sampled mode's objective.
    seed: of starts and noise.
    standing: attack only the images that no earlier row of the same or a smaller radius broke
      in every mode, and count what those rows found.  Much faster; a row then tells of all
      attacks so far, and only the first has an "own_accuracy".
    observe: called as observe(row number, mode, positions, images, adversaries, taken,
      log_probabilities) with every batch of a row of which observe.wants(row number): `taken`
      says which adversaries hurt most so far.
    store: a `Store` that remembers batches, so that none is attacked twice; None for none.

  Returns:
    (rows, list of bool and float32 pairs): the rows, and for each of them whether each image
    was classified rightly throughout and the log p(y) of its worst candidate.
  """
  store = store or Store()
  modes = scorer.modes
  seed = distribution.fold([seed, 0], scoring.ATTACK_STREAM)
  rows: list[dict] = []
  earlier: list[tuple[Plan, float, dict]] = []
  staged: dict[tuple, list[dict]] = {}  # the rows of an ensemble's stages
  details, total = [], len(labels)

  def of_clean():
    votes = {"sampled": on_clean.votes}
    return {
      mode: Worst(on_clean.choice[mode], labels, on_clean.values[mode], votes.get(mode))
      for mode in modes
    }

  for number, plan in enumerate(found):
    compiled = {mode: adversary(classifier, plan, mode, eot) for mode in modes}
    for place, epsilon in enumerate(epsilons):
      seconds = 0.0
      before = [
        state
        for other, smaller, state in earlier
        if smaller <= epsilon and (standing or _same_ensemble(plan, other))
      ]
      worst, own = of_clean(), {} if before else of_clean()
      zeros = dict.fromkeys(modes, 0.0)
      for state in before:
        for mode in modes:
          worst[mode].merge(state[mode])
      step_size = plan.step_size(epsilon)
      attacked, runs, parts = 0, 0, itertools.count()
      for target in range(plan.rounds):
        mask = None
        if standing or plan.on_standing:
          # Where rows tell of their own finds too, an image that only the other mode's adversary
          # broke still has to be attacked.
          rights = [(own or worst)[mode].right for mode in modes]
          mask = np.any(rights, axis=0)
        count = total if mask is None else int(mask.sum())
        attacked = count if target == 0 else attacked
        aims: dict[str, tuple] = dict.fromkeys(modes, ())
        title = f"{plan.name}({plan.steps}) {norm} {tables.radius(epsilon, norm)}"
        if plan.targets:
          title += f" target {target + 1}/{plan.targets}"
          for mode in modes:
            aims[mode] = (losses.wrong_class(on_clean.choice[mode], labels, target).numpy(),)
        bar = progress.Progress(title, count)
        for positions, images, truth in scoring.stream(source, batch_size, mask):
          part = next(parts)
          states = {("worst", mode): worst[mode] for mode in modes}
          states |= {("own", mode): own[mode] for mode in own}
          shown = [
            mode
            for judge, mode in enumerate(modes)
            if observe is not None and observe.wants(len(rows) + judge)
          ]
          runs_of = {
            mode: functools.partial(
              compiled[mode],
              tf.constant(scoring.pad(images, batch_size)),
              tf.constant(scoring.pad(truth, batch_size)),
              distribution.fold(seed, number, part, modes.index(mode)),
              *plan.radius_and_step(epsilon),
              *(tf.constant(scoring.pad(aim[positions], batch_size)) for aim in aims[mode]),
            )
            for mode in modes
          }
          record = store.arrays(
            f"attack-{number}-{place}-{part}",
            functools.partial(_attack, runs_of, scorer, states, positions, images, truth, shown),
          )
          for (kind, mode), state in states.items():
            taken, adversaries, values = _take(state, record, f"{kind}.{mode}", positions)
            if kind == "worst" and mode in shown:
              row_number = len(rows) + modes.index(mode)
              observe(row_number, mode, positions, images, adversaries, taken, values)
          for mode in modes:
            zeros[mode] += float(record[f"zero.{mode}"]) * len(positions)
          seconds += float(record["seconds"])
          runs += len(positions)
          so_far = "  ".join(f"{mode} {100 * worst[mode].right.mean():.1f}%" for mode in modes)
          bar.add(len(positions), so_far)
      earlier.append((plan, epsilon, worst))
      for mode in modes:
        row = {
          "name": plan.name,
          "norm": norm,
          "epsilon": float(epsilon),
          "steps": plan.steps,
          "restarts": plan.restarts,
          "eot": eot if mode == "sampled" else 1,
          "mode": mode,
          **clean.scores(worst[mode].scored, labels),
          "step_size": None if step_size is None else float(step_size),
          "loss": plan.loss.__name__,
          "targets": plan.targets,
          "examples": total,
          "attacked": attacked,
          "zero_gradients": zeros[mode] / max(runs, 1),
          "seconds": round(seconds, 2),
        }
        if mode == "sampled":
          row |= clean.served(worst[mode].votes, labels, scorer.served)
          row["noise"] = "fixed" if plan.fixed_noise else "fresh"
        if plan.note:
          row["note"] = plan.note
        if plan.ensemble:
          row["ensemble"] = plan.ensemble
          staged.setdefault((plan.group, epsilon, mode), []).append(row)
        if not before:
          right = own[mode].right
          row["own_accuracy"] = float(right.mean())
          row["own_interval"] = clean.wilson(int(right.sum()), total)
        rows.append(row)
        details.append((worst[mode].right, worst[mode].of_label))
    if plan.ensemble and not any(_same_ensemble(plan, other) for other in found[number + 1 :]):
      # The last stage: what all of them found is what its own rows count.
      last = details[-len(epsilons) * len(modes) :]
      for (epsilon, mode), detail in zip(itertools.product(epsilons, modes), last, strict=True):
        rows.append(_of_ensemble(staged[plan.group, epsilon, mode]))
        details.append(detail)
  return rows, details


def _of_ensemble(staged):
  """The row of an ensemble from those of its stages, of which the last counts all finds."""
  first, last = staged[0], staged[-1]
  own = ("step_size", "loss", "targets", "note", "ensemble", "noise")
  return {
    **{name: value for name, value in last.items() if name not in own},
    **{name: first[name] for name in ("steps", "restarts", "attacked", "zero_gradients")},
    "name": first["ensemble"],
    "step_size": None,
    "stages": [row["name"] for row in staged],
    "seconds": round(sum(row["seconds"] for row in staged), 2),
  }


def _same_ensemble(plan, other):
  return bool(plan.ensemble) and plan.group == other.group
