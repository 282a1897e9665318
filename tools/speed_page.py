"""docs/results/speed.md, from what `benchmark.py --suite` measured."""

from urkle_tf.output import tables

_NAMES = {
  "batch_size": "images a step",
  "attack_steps": "PGD steps",
  "image_size": "pixels of a side",
}


def _percent(share):
  return "" if share is None else f"{100 * share:.1f}%"


def _met(value, goal, least=True):
  """A goal, and whether it was reached."""
  reached = value >= goal if least else value <= goal
  return "met" if reached else "not met"


def _machine(found):
  machine = found["step"][0]["machine"]
  gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ""
  versions = f"TensorFlow {machine['tensorflow']}, Keras {machine['keras']}"
  return f"{machine['cores']} cores{gpus}, {versions}"


def _step(found):
  rows = [
    [
      str(row["width"]),
      row["precision"],
      f"{row['step_images_per_second']:,.1f}",
      f"{row['forward_images_per_second']:,.0f}",
      str(row["passes"]),
      _percent(row["share_of_ceiling"]),
      _percent(row["waiting_share"]),
    ]
    for row in found["step"]
  ]
  header = ["width", "precision", "images/s: step", "forward pass", "passes a step", "share"]
  header.append("waiting")
  lines = [tables.markdown(header, rows), ""]
  for width in dict.fromkeys(row["width"] for row in found["step"]):
    plain, low = (row for row in found["step"] if row["width"] == width)
    times = low["step_images_per_second"] / plain["step_images_per_second"]
    cores = ""
    if "step_core_seconds" in plain and "step_core_seconds" in low:
      ratio = plain["step_core_seconds"] / low["step_core_seconds"]
      cores = f", by processor time {ratio:.2f} times"
    share = plain["share_of_ceiling"]
    lines.append(
      f"- width {width}: {_percent(share)} of the ceiling in float32 (goal 85%: "
      f"{_met(share, 0.85)}); bfloat16 {times:.2f} times float32"
      + cores
      + (f" (goal 1.8: {_met(times, 1.8)})" if width == 64 else "")
    )
  waiting = max(row["waiting_share"] for row in found["step"])
  lines.append(f"- waiting at most {_percent(waiting)} (goal 3%: {_met(waiting, 0.03, False)})")
  return "\n".join(lines)


def _input(found):
  given = found["pipeline"]
  rate, size = given["images_per_second"], given["settings"]["image_size"]
  return (
    f"One SimCLR view, {size}x{size}, one thread: {rate:,.0f} images a second, and "
    f"{given['images_per_core_second']:,.0f} by processor time (goal 15,000 a core: "
    f"{_met(given['images_per_core_second'], 15_000)})."
  )


def _start(found):
  header = ["width", "precision", "to the first line", "building", "compiling", "peak memory"]
  rows = [
    [
      str(row["width"]),
      row["precision"],
      *(f"{row[name]:.1f} s" for name in ("start_seconds", "build_seconds", "compile_seconds")),
      f"{row['peak_memory_mib']:,.0f} MiB",
    ]
    for row in found["step"]
  ]
  return tables.markdown(header, rows)


def _growth(found):
  parts = []
  for name, rows in found["growth"].items():
    first, last = rows[0], rows[-1]
    cells = [
      [
        str(row["value"]),
        f"{1000 * row['step_seconds']:,.0f} ms",
        f"{1000 * row['step_core_seconds']:,.0f} ms",
        f"{row['step_memory_mib']:,.0f} MiB",
        f"{row['build_seconds']:.1f} s",
        f"{row['compile_seconds']:.1f} s",
      ]
      for row in rows
    ]
    time = last["step_core_seconds"] / first["step_core_seconds"]
    memory = last["step_memory_mib"] / max(first["step_memory_mib"], 1e-9)
    said = f"{last['value'] / first['value']:.3g} times the {_NAMES[name]}: {time:.2f} times the "
    said += f"processor time, {memory:.2f} times the memory"
    if name == "attack_steps":
      said += (
        f" (goal: flat, within 10%: {_met(memory, 1.1, False)}), and "
        f"{last['passes'] / first['passes']:.2f} times the passes"
      )
    header = [_NAMES[name], "step", "processor time", "memory of the step", "building", "compiling"]
    parts.append(tables.markdown(header, cells) + f"\n\n{said}.")
  return "\n\n".join(parts)


def _table_of_options(rows):
  cells = [
    [
      row["system"],
      f"{row['core_minutes']:.2f}",
      f"{row['core_minutes'] / rows[0]['core_minutes']:.2f}",
      f"{row['minutes']:.2f}",
      f"{row['kl']:.2f}",
      f"{100 * row['clean']:.2f}",
      f"{100 * row['accuracy']:.2f}",
    ]
    for row in rows
  ]
  header = [
    "attack in training",
    "core minutes",
    "of the first",
    "minutes",
    "kl",
    "clean",
    "pgd-20",
  ]
  return tables.markdown(header, cells)


def _options(found):
  rows = found["options"]
  tested = rows[0]["examples"]
  error = 100 * (0.95 * 0.05 / tested) ** 0.5
  return (
    f"{_table_of_options(rows)}\n\nEpochs: {rows[0]['epochs']}, one seed each, {tested:,} test "
    f"images: a standard error of about {error:.1f} points."
  )


def _target(found):
  given, cells, reached = found["target"], [], {}
  for entry in given["systems"]:
    last = entry["tried"][-1]
    if last["accuracy"] >= given["target"]:
      reached[entry["system"]] = last["core_minutes"]
    for row in entry["tried"]:
      cells.append(
        [
          entry["system"],
          str(row["epochs"]),
          f"{row['core_minutes']:.2f}",
          f"{row['minutes']:.2f}",
          f"{100 * row['clean']:.2f}",
          f"{100 * row['accuracy']:.2f}",
        ]
      )
  header = ["attack in training", "epochs", "core minutes", "minutes", "clean", "pgd-20"]
  aim = f"Target: {100 * given['target']:g}% under PGD-20."
  lines = [tables.markdown(header, cells), "", aim]
  plain = given["systems"][0]
  tried = plain["tried"][-1]
  if plain["system"] not in reached:
    lines.append(
      f"{plain['system']} stopped at the cap of {tried['epochs']} epochs, below the target."
    )
  base = tried["core_minutes"]
  for entry in given["systems"][1:]:
    if entry["system"] not in reached:
      lines.append(f"- {entry['system']}: not reached within {entry['tried'][-1]['epochs']} epochs")
      continue
    share = reached[entry["system"]] / base
    most, said = "", _met(share, 1 / 3, False)
    if plain["system"] not in reached:  # which would have taken longer still
      most, said = "at most ", "met" if share <= 1 / 3 else "not shown"
    lines.append(
      f"- {entry['system']}: {most}{share:.2f} of the time of {plain['system']} (goal 0.33: {said})"
    )
  return "\n".join(lines)


def _workers(found):
  given = found["workers"]
  one, two = (given["step_seconds"][key] for key in sorted(given["step_seconds"], key=int))
  return (
    f"{given['steps']} steps: {1000 * one:,.1f} ms by one worker, {1000 * two:,.1f} ms by two that "
    f"share the same cores: {_percent(given['overhead'])} more. The losses of the first ten steps "
    f"differ by at most {given['loss_difference']:.1e} of their value, the first by "
    f"{given['first_difference']:.1e}."
  )


def _soak(found):
  given = found["soak"]
  curve = given["curve"]
  chosen = dict([*curve[:: max(1, len(curve) // 10)], curve[-1]])
  rows = [[f"{step:,}", f"{mib:,.0f} MiB"] for step, mib in chosen.items()]
  table = tables.markdown(["step", "resident memory"], rows)
  return (
    f"{given['steps']:,} steps.\n\n{table}\n\nFrom the "
    f"second quarter of the steps to the last it grew by {given['grown_mib']:,.1f} MiB; every row "
    "of the log is in the JSON."
  )


def _loads(found):
  """What else the machine did, by the load average before and after each part."""
  cells = [
    [name, f"{minutes:.1f}", *(f"{load:.1f}" for load in found["loads"][name])]
    for name, minutes in found["minutes"].items()
  ]
  return tables.markdown(["part", "minutes", "load before", "load after"], cells)


def _views(found):
  epochs = found["views"][0]["epochs"]
  return (
    f"SimCLR+Urkle on 20,000 images of MNIST, {epochs} epochs, with both views attacked or one.\n\n"
    + _table_of_options(found["views"])
  )


# {part: (heading, what comes before the figures, the figures)}
_SECTIONS = {
  "step": (
    "The step",
    "SimCLR+Urkle, two views, both attacked by PGD-5, ResNet-18; images of the data set a second. "
    "The ceiling is the forward pass of the same network in the same run, divided by the number of "
    "passes that the step needs. Waiting is what a step takes longer when its batches come from "
    "the pipeline. Below: to the first line of the program (the interpreter, TensorFlow, this "
    "package), building the model, and compiling (tracing and, on accelerators, XLA).",
    lambda found: f"{_step(found)}\n\n{_start(found)}",
  ),
  "pipeline": ("The input pipeline", "", _input),
  "growth": (
    "Growth",
    "The step of SimCLR+Urkle, of a smaller network, over one size at a time; memory is what the "
    "step adds to the process's peak.",
    _growth,
  ),
  "options": (
    "Fast options",
    "Robust accuracy against minutes: VAE+Urkle on MNIST, a head on clean images, linf 0.1; the "
    "lower of the served classifier and z = mu. `kl` is what the training's own attack finds at "
    "its end: it compares encoders only where attacks are alike.",
    _options,
  ),
  "views": ("One attacked view or two", "", _views),
  "target": (
    "Time to a target",
    "Numbers of epochs, each a training with a schedule of its own, until the first that reached "
    "the target.",
    _target,
  ),
  "workers": ("Two workers", "", _workers),
  "soak": ("A long run", "", _soak),
}


def page(found):
  """The page.

  Args:
    found: what the suite's JSON holds; a part that it lacks is said to be missing, and "notes", a
      list of paragraphs, come last.
  """
  small = "" if found["scale"] == "full" else f" at --scale={found['scale']}, which shows nothing,"
  machine = f"{_machine(found)}. " if "step" in found else ""
  parts = [
    f"# Speed\n\nMeasured{small} by `{found['command']}` on {found['date']}. {machine}Every figure "
    "is from that command, and it wrote this page from its JSON. A load above the number of cores "
    "says that other programs ran beside it: then seconds are too many and rates too low, but "
    "shares and ratios compare what took turns, and core minutes (processor time, over all cores) "
    "count this program alone."
  ]
  for name, (heading, text, figures) in _SECTIONS.items():
    parts.append(f"## {heading}")
    if text:
      parts.append(text)
    said = f"Not measured yet: `--parts={name}`."
    parts.append(figures(found) if name in found else said)
  parts += ["## What this took", _loads(found), *found.get("notes", [])]
  return "\n\n".join(parts) + "\n"
