"""Measures a classifier on the worst images that attacks find."""

import dataclasses
import functools

import numpy as np

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report import pictures
from urkle_tf.evaluation.report.document import Heading, Items, Share, Table, Text, calibration
from urkle_tf.output import tables

_GRADIENT_FREE = ("square", "hop_skip_jump")  # by scores, and by decisions


@dataclasses.dataclass(frozen=True)
class Attacks(Measurement):
  """A row for each attack, radius and mode: see `attacked.measure`.

  Args:
    attacks: specs, such as `"pgd(steps=100, restarts=2),fgsm"`.
    steps: steps of `pgd` and `apgd`, if the spec gives none.
    step_size: of `pgd`, in pixel units, if the spec gives none; None for 2.5 epsilon / steps.
    restarts: of `pgd` and `apgd`, if the spec gives none.
    standing: attack only images that no earlier row broke.
    noise: `"fresh"` samples of z at every step, or `"fixed"` ones throughout an attack.
    minutes: time limit of the attacks; None for no limit.
  """

  attacks: str | list[str] = alias("attacks")
  steps: int = alias("attack_steps")
  step_size: float | None = alias("attack_step_size")
  restarts: int = alias("restarts")
  standing: bool = alias("standing")
  noise: str = alias("noise")
  minutes: float | None = alias("minutes")

  by_default = True
  place = 20

  def prepare(self, context):
    """The `Plan`s that fit the model: see `_fit`."""
    from urkle_tf.evaluation import plans

    errors.one_of("noise", self.noise, ("fresh", "fixed"))

    flags = {"steps": self.steps, "step_size": self.step_size, "restarts": self.restarts}
    classes = context.metadata.get("classes")
    read = functools.partial(plans.read, threat=context.threat, classes=classes, **flags)
    found = _fit(context, read(self.attacks), read)
    if self.noise == "fixed":
      found = [dataclasses.replace(plan, fixed_noise=True) for plan in found]
    if self.minutes:  # one step is a weak test
      found.sort(key=lambda plan: (plan.last, plan.steps == 1))
    return found

  def measure(self, context):
    from urkle_tf.evaluation import attacked, recording

    on_clean, labels = context.on_clean, context.labels
    shape = context.source.image_shape
    recorder = recording.Recorder(on_clean.values, labels, shape, context.save_images)
    rows, details = attacked.measure(
      context, context.prepared[self.name], self.standing, recorder, self.minutes
    )
    arrays = context.arrays
    arrays["labels"] = labels
    arrays |= {f"clean_{mode}": np.argmax(values, 1) for mode, values in on_clean.values.items()}
    for number, (right, of_label) in enumerate(details):
      arrays |= {f"right_{number}": right, f"log_probability_{number}": of_label}
      if number in recorder.adversaries:
        arrays[f"adversaries_{number}"] = recorder.adversaries[number]
    served = context.modes[0]
    context.robust = np.argmax(on_clean.values[served], 1) == labels
    for row, (right, _) in zip(rows, details, strict=True):
      if row["mode"] == served and row["epsilon"] <= context.epsilon:
        context.robust &= right
    if context.folder and recorder.pictures:
      file = context.folder / "figures" / "examples.png"
      file.parent.mkdir(exist_ok=True)
      pictures.examples_figure(recorder.pictures, context.metadata.get("class_names"), file)
    return rows

  def glance(self, part, report):
    rows = [row for row in part if row["mode"] == report["clean"]["mode"]]
    worst: dict[float, dict] = {}
    for row in sorted(rows, key=lambda row: (row["epsilon"], row["accuracy"])):
      worst.setdefault(row["epsilon"], row)
    found = []
    for row in worst.values():
      accuracy, how = f"{row['accuracy']:.2%}", f"lowest of all: {tables.name(row)}"
      found.append((f"attacked, {tables.threat(row)}", accuracy, how))
    return found

  def render(self, part, report):
    return [
      Heading("Attacked"),
      _table(part),
      *_explained(part, report["config"]),
      pictures.accuracy_vs_epsilon(report),
      pictures.examples(),
      *_served(report),
    ]

  def lines(self, part):
    return [
      f"{tables.name(row)}, {tables.threat(row, ', epsilon ')}, {row['mode']} z: "
      f"{row['accuracy']:.2%}"
      for row in part
    ]


def _fit(context, plans, read):
  """The plans that fit the model; `context.notes` reports what was left out or added, and why.

  Attacks that follow gradients are left out if there are none, and attacks that need a z or an
  encoder of this package if the model has none.  If the model's own gradients are masked, attacks
  that need no gradients are added, on the images that no other attack broke.
  """
  from urkle_tf.evaluation import foreign

  def hindrance(plan):
    if plan.by_gradients and flat:
      return "the model has no gradient"
    if plan.by_noise and not context.metadata["stochastic"]:
      return "the model is not stochastic"
    if plan.start in ("mu", "kl") and theirs:
      return "the model has no encoder of this package"
    return None

  theirs = context.kind == "foreign"
  flat = theirs and not context.model.differentiable
  reasons = {plan.name: why for plan in plans if (why := hindrance(plan))}
  if reasons:
    context.notes |= {"skipped_attacks": list(reasons), "skipped_because": reasons}
  plans = [plan for plan in plans if plan.name not in reasons]
  names = {plan.name for plan in plans}
  added = [name for name in _GRADIENT_FREE if name not in names]
  if added and theirs and context.metadata["gradients"]["zero"] >= foreign.MASKED:
    context.notes |= {"added_attacks": added}
    plans += [dataclasses.replace(plan, last=True) for plan in read(added)]
    plans.sort(key=lambda plan: plan.last and 1 + bool(plan.ensemble))
  return plans


def _table(rows):
  own = "own_accuracy" in rows[0]
  head = [
    *("attack", "norm", "epsilon", "z", "accuracy"),
    *(["own adversaries alone"] if own else []),
    *("NLL", "ECE", "Brier", "steps", "restarts", "samples a step", "loss"),
  ]
  lines = [
    [
      *(tables.name(row), row["norm"], tables.radius(row["epsilon"], row["norm"])),
      *(row["mode"], Share.of(row)),
      *([Share.of(row, "own_") if "own_accuracy" in row else "-"] if own else []),
      *calibration(row),
      *(str(row[name]) for name in ("steps", "restarts", "eot")),
      row.get("loss", "-"),
    ]
    for row in rows
  ]
  return Table("Attacked images", head, lines)


def _explained(rows, config):
  """The meaning of the figures in the table."""
  modes = {row["mode"] for row in rows}
  text = "An image counts as correct if it is classified correctly clean and on every adversary "
  text += "found" + ", including those found against the other reading of z" * (len(modes) > 1)
  text += "; each row also counts what earlier rows found." if config.get("standing") else "."
  found: list = [Text(text)]
  if "sampled" in modes:
    text = (
      f"z = sampled: the mean of the probabilities over at least {config['samples']} fresh samples "
      "of z. The attack does not know them, and they do not choose which adversary is scored."
    )
    found.append(Text(text + " z = deterministic: the mean of z." * (len(modes) > 1)))
  notes = {f"{row['name']}: {row['note']}" for row in rows if "note" in row}
  fixed = {row["name"] for row in rows if row.get("noise") == "fixed"}
  notes |= {f"{name}, z sampled: the same samples of z throughout an attack" for name in fixed}
  if notes:
    found.append(Items(sorted(notes)))
  reasons = config.get("skipped_because", {})
  for why in dict.fromkeys(reasons.values()):
    names = ", ".join(name for name, reason in reasons.items() if reason == why)
    found.append(Text(f"Not run, since {why}: {names}."))
  if left := ", ".join(config.get("left_out", ())):
    found.append(Text(f"Left out, since the time of --minutes was up: {left}."))
  if added := ", ".join(config.get("added_attacks", ())):
    text = f"Added, since the model's own gradients are masked: {added}. "
    found.append(
      Text(
        f"{text}They attack the images that no other attack broke. Figures from a search without "
        "gradients are weaker evidence."
      )
    )
  return found


def _served(report):
  """What a caller of a sampled classifier sees, on clean and on attacked images."""
  attacked = [
    (tables.name(row), tables.radius(row["epsilon"], row["norm"]), row) for row in report["attacks"]
  ]
  parts = [("clean", "-", report["clean"]), *attacked]
  rows = [
    [
      *(name, epsilon, Share.of(part)),
      Share(part["served_accuracy"], part["served_interval"]),
      Share(part["accuracy_all_draws"], part["interval_all_draws"]),
    ]
    for name, epsilon, part in parts
    if "served_accuracy" in part
  ]
  if not rows:
    return []
  samples, draws = (report["clean"][name] for name in ("served_samples", "draws"))
  head = ["images", "epsilon", "limit of many samples", f"a call with {samples} samples of z"]
  return [
    Heading("As it is served"),
    Table("As it is served", [*head, f"right in each of {draws} calls"], rows),
    Text(
      f"The expected accuracy of one call, and the share of images that {draws} calls in a row "
      "get right: a pessimistic figure, for an attacker who may try again. The images are those "
      "that hurt the sampled classifier most."
    ),
  ]
