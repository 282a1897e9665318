"""docs/results/speed.md, from what `benchmark.py --suite` measured."""

import pages

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
  return (
    f"{machine['cores']} cores{gpus}, TensorFlow {machine['tensorflow']}, Keras "
    f"{machine['keras']}; load at the start {machine['load']}"
  )


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
  header = ["width", "precision", "step", "forward pass", "passes a step", "share", "waiting"]
  lines = [pages.table(header, rows), ""]
  for width in dict.fromkeys(row["width"] for row in found["step"]):
    plain, low = (row for row in found["step"] if row["width"] == width)
    times = low["step_images_per_second"] / plain["step_images_per_second"]
    share = plain["share_of_ceiling"]
    lines.append(
      f"- width {width}: {_percent(share)} of the ceiling in float32 (goal 85%: "
      f"{_met(share, 0.85)}); bfloat16 {times:.2f} times float32"
      + (f" (goal 1.8: {_met(times, 1.8)})" if width == 64 else "")
    )
  waiting = max(row["waiting_share"] for row in found["step"])
  lines.append(f"- waiting at most {_percent(waiting)} (goal 3%: {_met(waiting, 0.03, False)})")
  return "\n".join(lines)


def _input(found):
  rate = found["pipeline"]["images_per_second"]
  return f"{rate:,.0f} images a second (goal 15,000: {_met(rate, 15_000)})."


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
  return pages.table(header, rows)


def _growth(found):
  parts = []
  for name, rows in found["growth"].items():
    first, last = rows[0], rows[-1]
    cells = [
      [
        str(row["value"]),
        f"{1000 * row['step_seconds']:,.1f} ms",
        f"{row['step_memory_mib']:,.0f} MiB",
      ]
      for row in rows
    ]
    time = last["step_seconds"] / first["step_seconds"]
    memory = last["step_memory_mib"] / max(first["step_memory_mib"], 1e-9)
    parts.append(
      pages.table([_NAMES[name], "step", "memory"], cells)
      + f"\n\n{last['value'] / first['value']:.3g} times the {_NAMES[name]}: "
      f"{time:.2f} times the time, {memory:.2f} times the memory."
    )
  return "\n\n".join(parts)


def _target(found):
  given, rows = found["target"], []
  plain = None
  for entry in given["systems"]:
    last = entry["tried"][-1]
    reached = last["accuracy"] >= given["target"]
    plain = last["minutes"] if plain is None and reached else plain
    rows.append(
      [
        entry["system"],
        str(last["epochs"]),
        f"{last['minutes']:.2f}" if reached else f"not in {last['minutes']:.2f}",
        f"{last['minutes'] / plain:.2f}" if reached and plain else "",
        f"{100 * last['clean']:.2f}",
        f"{100 * last['accuracy']:.2f}",
      ]
    )
  header = ["attack in training", "epochs", "minutes", "of the first", "clean", "pgd-20"]
  return f"Target: {100 * given['target']:g}% under PGD-20.\n\n" + pages.table(header, rows)


def _workers(found):
  given = found["workers"]
  one, two = (given["step_seconds"][key] for key in sorted(given["step_seconds"], key=int))
  return (
    f"{given['steps']} steps: {1000 * one:,.1f} ms by one worker, {1000 * two:,.1f} ms by two that "
    f"share the same cores: {_percent(given['overhead'])} more. The losses of the first ten steps "
    f"differ by at most {given['loss_difference']:.1e} of their value."
  )


def _soak(found):
  curve = found["soak"]["curve"]
  chosen = curve[:: max(1, len(curve) // 10)]
  rows = [[f"{step:,}", f"{mib:,.0f} MiB"] for step, mib in [*chosen, curve[-1]]]
  grown = found["soak"]["grown_mib"]
  return pages.table(["step", "resident memory"], rows) + (
    f"\n\nFrom the first quarter to the end it grew by {grown:,.1f} MiB."
  )


def page(found):
  """The page.

  Args:
    found: what the suite's JSON holds.
  """
  small = "" if found["scale"] == "full" else f" at --scale={found['scale']}, which shows nothing,"
  return f"""# Speed

Measured{small} by `{found["command"]}` on {found["date"]}:
{_machine(found)}.
Every figure is from one run of that command, and this page was written from its JSON.

## The step

SimCLR+Urkle, two views, both attacked by PGD-5, ResNet-18; images of the data set a second. The
ceiling is the forward pass of the same network in the same run, divided by the number of passes
that the step needs. Waiting is what a step takes longer when its batches come from the pipeline.

{_step(found)}

## The input pipeline

One SimCLR view, one core: {_input(found)}

## Start-up and memory

To the first line of the program: the interpreter, TensorFlow and this package. Compiling: tracing
and, on accelerators, XLA.

{_start(found)}

## Growth

{_growth(found)}

## Time to a target

VAE+Urkle, head on clean images: of the numbers of epochs tried the first that reached the target,
and the minutes of that pre-training.

{_target(found)}

## Two workers

{_workers(found)}

## A long run

{_soak(found)}
"""
