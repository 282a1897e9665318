"""docs/results/speed.md, from what `benchmark.py --suite` measured."""

from experiments.pages import table

_SIZES = {
  "batch_size": "images a step",
  "attack_steps": "PGD steps",
  "image_size": "pixels of a side",
}
_STEP = {
  "width": "{width}",
  "precision": "{precision}",
  "images/s: step": "{step_images_per_second:,.1f}",
  "forward pass": "{forward_images_per_second:,.0f}",
  "passes a step": "{passes}",
  "share": "{share_of_ceiling:.1%}",
  "waiting": "{waiting_share:.1%}",
}
_START = {
  "width": "{width}",
  "precision": "{precision}",
  "to the first line": "{start_seconds:.1f} s",
  "building": "{build_seconds:.1f} s",
  "compiling": "{compile_seconds:.1f} s",
  "peak memory": "{peak_memory_mib:,.0f} MiB",
}
_GROWTH = {
  "step": "{step_seconds:.3f} s",
  "processor time": "{step_core_seconds:.3f} s",
  "memory of the step": "{step_memory_mib:,.0f} MiB",
  "building": "{build_seconds:.1f} s",
  "compiling": "{compile_seconds:.1f} s",
}
_TRAINED = {
  "attack in training": "{system}",
  "epochs": "{epochs}",
  "core minutes": "{core_minutes:.2f}",
  "of the first": "{share:.2f}",
  "minutes": "{minutes:.2f}",
  "kl": "{kl:.2f}",
  "clean": "{clean:.2%}",
  "pgd-20": "{accuracy:.2%}",
}
_LOADS = {
  "part": "{part}",
  "minutes": "{minutes:.1f}",
  "load before": "{loads[0]:.1f}",
  "load after": "{loads[1]:.1f}",
}


def _met(reached):
  """Whether a goal was reached."""
  return "met" if reached else "not met"


def _step(rows):
  lines = []
  for plain, low in zip(rows[::2], rows[1::2], strict=True):
    share, width = plain["share_of_ceiling"], plain["width"]
    times = low["step_images_per_second"] / plain["step_images_per_second"]
    cores = plain["step_core_seconds"] / low["step_core_seconds"]
    lines.append(
      f"- width {width}: {share:.1%} of the ceiling in float32 (goal 85%: {_met(share >= 0.85)}); "
      f"bfloat16 {times:.2f} times float32, by processor time {cores:.2f} times"
      + (f" (goal 1.8: {_met(times >= 1.8)})" if width == 64 else "")
    )
  waiting = max(row["waiting_share"] for row in rows)
  lines.append(f"- waiting at most {waiting:.1%} (goal 3%: {_met(waiting <= 0.03)})")
  return "\n".join([table(_STEP, rows), "", *lines, "", table(_START, rows)])


def _input(given):
  size, rate = given["settings"]["image_size"], given["images_per_core_second"]
  return (
    f"One SimCLR view, {size}x{size}, one thread: {given['images_per_second']:,.0f} images a "
    f"second, and {rate:,.0f} by processor time (goal 15,000 a core: {_met(rate >= 15_000)})."
  )


def _growth(found):
  parts = []
  for name, rows in found.items():
    times = {key: rows[-1][key] / max(rows[0][key], 1e-9) for key in rows[0]}
    said = (
      f"{times['value']:.3g} times the {_SIZES[name]}: {times['step_core_seconds']:.2f} times the "
      f"processor time, {times['step_memory_mib']:.2f} times the memory"
    )
    if name == "attack_steps":
      flat = _met(times["step_memory_mib"] <= 1.1)
      said += f" (goal: flat, within 10%: {flat}), and {times['passes']:.2f} times the passes"
    parts += [table({_SIZES[name]: "{value}", **_GROWTH}, rows), f"{said}."]
  return "\n\n".join(parts)


def _trained(rows):
  first = rows[0]["core_minutes"]
  shown = table(_TRAINED, [{**row, "share": row["core_minutes"] / first} for row in rows])
  right, tested = rows[0]["accuracy"], rows[0]["examples"]
  error = (right * (1 - right) / tested) ** 0.5
  said = f"One seed each, {tested:,} test images: the first pgd-20 has a standard error of"
  return f"{shown}\n\n{said} {error:.1%}."


def _target(given):
  plain, *others = given["systems"]
  reached = lambda entry: entry["tried"][-1]["accuracy"] >= given["target"]  # noqa: E731
  last = plain["tried"][-1]
  lines = [
    _trained([row for entry in given["systems"] for row in entry["tried"]]),
    f"\nTarget: {given['target']:.0%} under PGD-20.",
  ]
  if not reached(plain):
    lines.append(
      f"{plain['system']} stopped at the cap of {last['epochs']} epochs, below the target."
    )
  for entry in others:
    tried = entry["tried"][-1]
    if not reached(entry):
      lines.append(f"- {entry['system']}: not reached within {tried['epochs']} epochs")
      continue
    share = tried["core_minutes"] / last["core_minutes"]
    most, said = "", _met(share <= 1 / 3)
    if not reached(plain):  # which would have taken longer still
      most, said = "at most ", "met" if share <= 1 / 3 else "not shown"
    lines.append(
      f"- {entry['system']}: {most}{share:.2f} of the time of {plain['system']} (goal 0.33: {said})"
    )
  return "\n".join(lines)


# {part: (heading, what comes before the figures, the figures)}
_SECTIONS = {
  "step": (
    "The step",
    "SimCLR+Urkle with two views, both attacked by PGD-5, on ResNet-18. Rates are images of the "
    "data set a second. The share is that of the ceiling: the rate of the forward pass of the same "
    "network in the same run, divided by the number of passes that the step needs. Waiting is how "
    "much longer a step takes when its batches come from the pipeline. The second table has the "
    "time to the first line of the program (the interpreter, TensorFlow, this package), the time "
    "to build the model, and the time to compile it (tracing and, on accelerators, XLA).",
    _step,
  ),
  "pipeline": ("The input pipeline", "", _input),
  "growth": (
    "Growth",
    "How the step of SimCLR+Urkle grows with one size at a time, on a smaller network. Memory is "
    "what the step adds to the process's peak. [Reliability](../reliability.md) has that of a long "
    "run.",
    _growth,
  ),
  "options": (
    "Fast options",
    "Robust accuracy against minutes: VAE+Urkle on MNIST, a head on clean images, linf 0.1. "
    "Accuracy is the lower of that of the served classifier and that of z = mu. `kl` is what the "
    "training's own attack finds at its end, so it compares encoders only if their attacks are "
    "the same.",
    _trained,
  ),
  "views": (
    "One attacked view or two",
    "SimCLR+Urkle on 20,000 images of MNIST, with both views attacked or one.",
    _trained,
  ),
  "target": (
    "Time to a target",
    "Each row is a run with its own schedule. The number of epochs grows until the target "
    "is reached.",
    _target,
  ),
}


def page(found):
  """The page.

  Args:
    found: what the suite's JSON holds; a part that it lacks is said to be missing, and "notes", a
      list of paragraphs, come last.
  """
  small = "" if found["scale"] == "full" else f" at --scale={found['scale']}, which shows nothing,"
  machine = ""
  if "step" in found:
    given = found["step"][0]["machine"]
    names = [f"{given['cores']} cores", *given.get("gpus", ())]
    names += [f"TensorFlow {given['tensorflow']}", f"Keras {given['keras']}"]
    machine = f"{', '.join(names)}. "
  parts = [
    "# Speed\n\nThis page shows how fast a training step is, and what the options of "
    f"[fast training](../speed.md) gain. It was measured{small} by `{found['command']}` on "
    f"{found['date']}. {machine}That command also wrote this page, from its JSON.",
    "A load above the number of cores means that other programs ran at the same time. Seconds are "
    "then too high and rates too low, but shares and ratios compare what took turns. Core minutes "
    "(processor time, over all cores) count this program alone.",
  ]
  for name, (heading, text, figures) in _SECTIONS.items():
    missing = f"Not measured yet: `--parts={name}`."
    shown = figures(found[name]) if name in found else missing
    parts += [f"## {heading}", *filter(None, [text]), shown]
  loads = [
    {"part": name, "minutes": minutes, "loads": found["loads"][name]}
    for name, minutes in found["minutes"].items()
  ]
  parts += ["## What this took", table(_LOADS, loads), *found.get("notes", [])]
  return "\n\n".join(parts) + "\n"
