"""docs/results/speed.md, from what `benchmark.py --suite` measured."""

from experiments import pages

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
  return "\n".join([pages.table(_STEP, rows), "", *lines, "", pages.table(_START, rows)])


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
    parts += [pages.table({_SIZES[name]: "{value}", **_GROWTH}, rows), f"{said}."]
  return "\n\n".join(parts)


def _trained(rows):
  first = rows[0]["core_minutes"]
  shown = pages.table(_TRAINED, [{**row, "share": row["core_minutes"] / first} for row in rows])
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


_FIGURES = {
  "step": _step,
  "pipeline": _input,
  "growth": _growth,
  "options": _trained,
  "views": _trained,
  "target": _target,
}


def page(found):
  """The page: docs/results/speed.md with other figures.

  Args:
    found: what the suite's JSON holds; a part that it lacks is said to be missing, and "notes", a
      list of paragraphs, come last.
  """
  small = "" if found["scale"] == "full" else f" at --scale={found['scale']}, which shows nothing,"
  measured = [f"Measured{small} by `{found['command']}` on {found['date']}."]
  if "step" in found:
    given = found["step"][0]["machine"]
    names = [f"{given['cores']} cores", *given.get("gpus", ())]
    names += [f"TensorFlow {given['tensorflow']}", f"Keras {given['keras']}"]
    measured.append(f"{', '.join(names)}.")
  loads = [
    {"part": name, "minutes": minutes, "loads": found["loads"][name]}
    for name, minutes in found["minutes"].items()
  ]
  blocks = {
    name: figures(found[name]) if name in found else f"Not measured yet: `--parts={name}`."
    for name, figures in _FIGURES.items()
  }
  blocks["measured"] = " ".join(measured)
  blocks["took"] = "\n\n".join([pages.table(_LOADS, loads), *found.get("notes", [])])
  return pages.page((pages.RESULTS / "speed.md").read_text(encoding="utf-8"), blocks)
