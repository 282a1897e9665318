"""The report: report.json, report.md and figures."""

import json

import numpy as np

from urkle_tf import errors, files
from urkle_tf.evaluation import attacked
from urkle_tf.figures import canvas

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's


def finished(folder, model, fingerprint):
  """The report that a folder holds, if an evaluation of this model ended there before.

  Args:
    folder: a `pathlib.Path`.
    model: where the model lies, for the message.
    fingerprint: the model's.

  Returns:
    What report.json holds, or None if there is none.

  Raises:
    UserError: if it is of another model.
  """
  file = folder / "report.json"
  if not file.exists():
    return None
  found = json.loads(file.read_text(encoding="utf-8"))
  if found["config"].get("fingerprint") != fingerprint:
    raise errors.UserError(
      f"{folder} holds the report of another model than {model} holds now: give another "
      "--output_dir"
    )
  print(f"{folder} is finished: nothing to do")
  return found


def write(folder, report, pictures=(), class_names=None):
  """Writes a report's files; report.json last, since it says that the report is whole.

  Args:
    folder: a `pathlib.Path`.
    report: the dict that report.json holds.
    pictures: of images that were broken, from a `recording.Recorder`.
    class_names: names of the classes, or None.
  """
  figures = folder / "figures"
  names = []
  if report.get("attacks"):
    figures.mkdir(exist_ok=True)
    accuracy_figure(report, figures / "accuracy_vs_epsilon.png")
    names.append(("accuracy_vs_epsilon.png", "Accuracy against the radius of the attack"))
  if part := report.get("corruptions"):
    figures.mkdir(exist_ok=True)
    corruptions_figure(part, figures / "corruptions.png")
    names.append(("corruptions.png", "Accuracy on corrupted images"))
  if report.get("clean"):
    figures.mkdir(exist_ok=True)
    reliability_figure(report, figures / "reliability.png")
    names.append(("reliability.png", "Accuracy against confidence"))
  if pictures:
    examples_figure(pictures, class_names, figures / "examples.png")
    names.append(("examples.png", "Images that were broken"))
  if (figures / "latent_map.png").exists():
    names.append(("latent_map.png", "Samples of z, before and after an attack on the KL"))
  files.write(folder / "report.md", markdown(report, names))
  files.write(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def _percent(row, prefix=""):
  low, high = row[f"{prefix}interval"]
  return f"{100 * row[f'{prefix}accuracy']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _table(head, rows):
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows] + [""]


def _calibration(row):
  return [f"{row[name]:.4f}" for name in ("nll", "ece", "brier")]


def markdown(report, figures=()):
  """The report as text.

  Args:
    report: the dict that report.json holds.
    figures: (file name, title) of each figure.
  """
  config = report["config"]
  lines = [
    f"# Evaluation on {config['dataset']}, {config['split']}",
    "",
    "Accuracies are in percent with their 95% interval. Robust accuracy is that under the attacks "
    "named here: an upper bound on the accuracy under any attack, not a guarantee.",
    "",
  ]
  if notes := config.get("model", {}).get("notes"):
    lines += ["## The model", "", *(f"- {note}" for note in notes), ""]
  if clean := report.get("clean"):
    rows = [[clean["mode"], _percent(clean), *_calibration(clean)]]
    if "deterministic" in clean:
      rows.append(["deterministic", _percent(clean["deterministic"])])
      rows[-1] += _calibration(clean["deterministic"])
    lines += [f"## Clean ({clean['examples']} images)", ""]
    lines += _table(["z", "accuracy", "NLL", "ECE", "Brier"], rows)
  if rows := report.get("attacks"):
    lines += ["## Attacked", ""]
    own = "own_accuracy" in rows[0]
    lines += _table(
      [
        *("attack", "norm", "epsilon", "steps", "restarts", "samples a step", "z", "loss"),
        "accuracy",
        *(["own adversaries alone"] if own else []),
        *("NLL", "ECE", "Brier"),
      ],
      [
        [
          row["name"],
          row["norm"],
          attacked.radius(row["epsilon"]),
          row["steps"],
          row["restarts"],
          row["eot"],
          row["mode"],
          row.get("loss", "-"),
          _percent(row),
          *([_percent(row, "own_") if "own_accuracy" in row else "-"] if own else []),
          *_calibration(row),
        ]
        for row in rows
      ],
    )
    lines += [
      "An image counts if it is classified rightly as it is and on every adversary found, those "
      "found against the other reading of z included"
      + ("; each row counts what the rows before it found too." if config.get("standing") else "."),
      "",
    ]
    if any(row["mode"] == "sampled" for row in rows):
      lines += [
        f"z = sampled: the mean of the probabilities over at least {config['samples']} fresh "
        "samples of z, none of them known to the attack, nor used to choose which of its finds "
        "is scored. z = deterministic: the mean of z.",
        "",
      ]
    notes = {f"- {row['name']}: {row['note']}" for row in rows if "note" in row}
    notes |= {
      f"- {row['name']}, z sampled: the same samples of z throughout an attack"
      for row in rows
      if row.get("noise") == "fixed"
    }
    lines += [*sorted(notes), ""] if notes else []
    if skipped := config.get("skipped_attacks"):
      lines += [
        f"Not run, since the model has no gradient: {', '.join(skipped)}. What is left searches at "
        "random: these figures are weak evidence.",
        "",
      ]
  lines += _served(report)
  if part := report.get("checks"):
    lines += _checks(part, config)
  if part := report.get("corruptions"):
    lines += _corruptions(part)
  if part := report.get("representation"):
    lines += _representation(part, config)
  if part := report.get("bound"):
    lines += _bound(part)
  for name, title in figures:
    lines += [f"![{title}](figures/{name})", ""]
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  return "\n".join([*lines, f"Made with {versions}.", ""])


def _served(report):
  """What a caller of a sampled classifier sees, of the images as they are and attacked."""
  parts = [("clean", "", report.get("clean", {}))]
  for row in report.get("attacks", ()):
    parts.append((row["name"], attacked.radius(row["epsilon"]), row))
  parts = [(name, epsilon, part) for name, epsilon, part in parts if "served_accuracy" in part]
  if not parts:
    return []
  samples, draws = (parts[0][2][name] for name in ("served_samples", "draws"))

  def percent(part, share, interval):
    return _percent({"accuracy": part[share], "interval": part[interval]})

  rows = [
    [
      *(name, epsilon, _percent(part), percent(part, "served_accuracy", "served_interval")),
      percent(part, "accuracy_all_draws", "interval_all_draws"),
    ]
    for name, epsilon, part in parts
  ]
  head = ["images", "epsilon", "limit of many samples", f"a call with {samples} samples of z"]
  return [
    "## As it is served",
    "",
    *_table([*head, f"right in each of {draws} calls"], rows),
    f"The expected accuracy of one call, and the share of images that {draws} calls in a row get "
    "right: a pessimistic figure, of an attacker who may try again. The images are those that "
    "hurt the sampled classifier most.",
    "",
  ]


def _checks(part, config):
  failed = [check["name"] for check in part if not check["passed"]]
  verdict = (
    f"Failed: {', '.join(failed)}. The figures above rest on something else than gradients, or on "
    "too little effort, where a check of that failed: see docs/evaluation.md."
    if failed
    else "All passed: no sign of masked gradients was found."
  )
  rows = [
    [check["name"], "passed" if check["passed"] else "**failed**", check["detail"]]
    for check in part
  ]
  return [
    f"## Checks (epsilon {attacked.radius(config['epsilon'])})",
    "",
    *_table(["check", "", "numbers"], rows),
    verdict,
    "",
  ]


def _corruptions(part):
  severities = part["severities"]

  def row(title, scores, each):
    cells = [f"{100 * each[name]['accuracy']:.2f}" if name in each else "-" for name in severities]
    return [title, *cells, _percent(scores), *_calibration(scores)]

  rows = [row(name, scores, scores["severities"]) for name, scores in part["by_type"].items()]
  rows.append(row("**mean**", {**part, "accuracy": part["mean"]}, part["by_severity"]))
  notes = [
    f"z = {part['mode']}. The mean is over each type's severities and then over the types; mean "
    f"corruption error: {100 * part['mean_corruption_error']:.2f}% (1 - mean accuracy; no other "
    "network's errors divide it)."
  ]
  if part["origin"] == "computed":
    notes.append(
      f"Corrupted here, with the constants of {part['constants']}; close to the published images, "
      "not the same."
    )
    if "frost" in part["types"]:
      notes.append("Frost is procedural ice instead of photographs: compare it with nothing else.")
  else:
    notes.append(f"The published images, TFDS {part['origin']}.")
  if missing := part.get("missing"):
    notes.append(f"Not prepared, and left out: {', '.join(missing)}.")
  head = ["corruption", *(f"severity {name}" for name in severities), "mean"]
  return [
    f"## Corrupted ({part['examples']} images)",
    "",
    *_table([*head, "NLL", "ECE", "Brier"], rows),
    " ".join(notes),
    "",
  ]


def _representation(part, config):
  meanings = {
    "kl_mean": "KL of the worst perturbation found, mean over images, nats",
    "kl_max": "the largest of them, nats",
    "kl_mean_part": "of the mean KL, what the means of z contribute, nats",
    "sigma": "sigma, mean",
    "sigma_min": "sigma, smallest",
    "sigma_max": "sigma, largest",
    "loc_std": "spread of the mean of z over images (the unit of sigma)",
    "snr": "mean of abs(mu) / sigma",
    "drift": "how far mu moves, in mean distances between different images",
    "neighbour_flips": "share of images whose nearest other image changes",
    "regulariser_per_nat": "root of half the mean KL: the bound's regulariser per nat of M (eq. 4)",
    "regulariser_tight_per_nat": "mean root of half the KL: likewise (eq. 31)",
    "M": "M, nats",
    "regulariser": "regulariser of Proposition 1 (eq. 4), nats",
    "regulariser_tight": "likewise with the mean of roots (eq. 31), nats",
  }
  meanings = {name: text for name, text in meanings.items() if name in part}
  lines = [
    "## Representation",
    "",
    f"The first {part['examples']} images, PGD on the KL with {part['steps']} steps and "
    f"{part['restarts']} restarts, {part['norm']}, epsilon {attacked.radius(part['epsilon'])}; no "
    "label is read.",
    "",
    *_table(["", "value"], [[text, f"{part[name]:.4g}"] for name, text in meanings.items()]),
  ]
  if not config.get("stochastic", True):
    lines += [
      "This encoder's training used no sigma: KL, sigma and abs(mu) / sigma mean little.",
      "",
    ]
  return lines


def _bound(part):
  rows = [
    ["clean loss (eq. 2)", *[f"{part['clean_loss']:.4g}"] * 2],
    ["regulariser", f"{part['regulariser']:.4g}", f"{part['regulariser_tight']:.4g}"],
    ["bound: their sum", f"{part['value']:.4g}", f"{part['value_tight']:.4g}"],
    ["M", *[f"{part['M']:.4g}"] * 2],
    ["measured adversarial loss (eq. 3)", *[f"{part['measured_adversarial_loss']:.4g}"] * 2],
  ]
  vacuous, tight = part["vacuous"], part["vacuous_tight"]
  if vacuous and tight:
    verdict = "Vacuous: the bound is at least M, which the capped loss never exceeds."
  elif vacuous:
    verdict = "Vacuous with the root of the mean KL; with the mean of roots the bound is below M."
  else:
    verdict = "Not vacuous: the bound is below M."
  return [
    "## The bound of Proposition 1",
    "",
    f"The first {part['examples']} images, sampled z ({part['samples']} samples), {part['norm']}, "
    f"epsilon {attacked.radius(part['epsilon'])}; nats. Each softmax is mixed with "
    f"{100 * part['cap_share']:.3g}% of the uniform distribution, so that no loss exceeds M.",
    "",
    *_table(["", "root of the mean KL (eq. 4)", "mean of roots (eq. 31)"], rows),
    f"{verdict} The KL is the largest found (mean {part['kl_mean']:.4g}; PGD on the KL with "
    f"{part['steps']} steps and {part['restarts']} restarts, PGD on the loss with "
    f"{part['loss_steps']}), and so is the measured loss: the true maxima may be larger, and the "
    "bound with them.",
    "",
  ]


def accuracy_figure(report, file):
  """Draws accuracy against epsilon, a line for each attack and reading of z."""
  figure = canvas(6.4, 4.2)
  axes = figure.add_subplot()
  clean = report["clean"]
  lines: dict[tuple[str, str], list[dict]] = {}
  for row in report["attacks"]:
    label = row["name"] if row["steps"] == 1 else f"{row['name']}-{row['steps']}"
    if row["restarts"] > 1:
      label += f" x {row['restarts']}"
    lines.setdefault((label, row["mode"]), []).append(row)
  labels = list(dict.fromkeys(label for label, _ in lines))
  for (label, mode), rows in lines.items():
    start = clean if clean["mode"] == mode else clean["deterministic"]
    rows = sorted(rows, key=lambda row: row["epsilon"])
    x = [0.0, *(row["epsilon"] * 255 for row in rows)]
    y = 100 * np.array([start["accuracy"], *(row["accuracy"] for row in rows)])
    low, high = 100 * np.array([start["interval"], *(row["interval"] for row in rows)]).T
    colour = _COLOURS[labels.index(label) % len(_COLOURS)]
    dashed = mode == "deterministic" and clean["mode"] == "sampled"
    axes.plot(
      *(x, y),
      "s--" if dashed else "o-",
      color=colour,
      markersize=4,
      fillstyle="none" if dashed else "full",
      label=f"{label}, z {mode}",
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
  axes.set_xlabel(f"epsilon x 255 ({report['attacks'][0]['norm']})")
  axes.set_ylabel("accuracy, %")
  axes.set_ylim(0, 100)
  axes.set_xlim(left=0)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=9)
  config = report["config"]
  axes.set_title(f"{config['dataset']}, {clean['examples']} images", fontsize=10)
  figure.savefig(file, dpi=150)


def corruptions_figure(part, file):
  """Draws accuracy as a heat map, a row for each type and a column for each severity.

  Args:
    part: the report's part "corruptions".
    file: where to.
  """
  severities, types = part["severities"], part["types"]
  values = np.full((len(types) + 1, len(severities) + 1), np.nan)
  for row, name in enumerate(types):
    scores = part["by_type"][name]
    values[row, -1] = scores["accuracy"]
    for column, severity in enumerate(severities):
      if severity in scores["severities"]:
        values[row, column] = scores["severities"][severity]["accuracy"]
  values[-1, :-1] = [part["by_severity"][severity]["accuracy"] for severity in severities]
  values[-1, -1] = part["mean"]
  figure = canvas(2.6 + 0.75 * values.shape[1], 1.1 + 0.32 * values.shape[0])
  axes = figure.add_subplot()
  axes.imshow(100 * values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
  for (row, column), value in np.ndenumerate(values):
    if not np.isnan(value):
      colour = "black" if value > 0.55 else "white"
      axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, size=9)
  axes.set_yticks(range(len(types) + 1), [*(name.replace("_", " ") for name in types), "mean"])
  axes.set_xticks(range(len(severities) + 1), [*severities, "mean"])
  axes.xaxis.tick_top()
  axes.tick_params(length=0, labelsize=9)
  for place, line in ((len(types) - 0.5, axes.axhline), (len(severities) - 0.5, axes.axvline)):
    line(place, color="white", linewidth=2)
  axes.spines[:].set_visible(False)
  axes.set_xlabel(
    f"severity; accuracy in %, z {part['mode']}, {part['examples']} images", fontsize=9
  )
  figure.savefig(file, dpi=150)


def reliability_panels(report):
  """What the reliability diagram shows, of the served mode.

  Args:
    report: the dict that report.json holds.

  Returns:
    A list of (title, {"count", "confidence", "accuracy"}): the clean images; all corrupted ones,
    where there are any; and at the smallest and the largest radius the adversaries of the row
    that leaves the lowest accuracy.
  """
  clean = report["clean"]
  panels = [("clean", clean["reliability"])]
  if part := report.get("corruptions"):
    panels.append(("corrupted", part["reliability"]))
  rows = [row for row in report.get("attacks", ()) if row["mode"] == clean["mode"]]
  rows = [row for row in rows if "reliability" in row and row["epsilon"] > 0]
  radii = sorted({row["epsilon"] for row in rows})
  for epsilon in dict.fromkeys(radii[:1] + radii[-1:]):
    worst = min((row for row in rows if row["epsilon"] == epsilon), key=lambda row: row["accuracy"])
    title = f"{worst['name']}, {worst['norm']}, {attacked.radius(epsilon)}"
    panels.append((title, worst["reliability"]))
  return panels


def reliability_figure(report, file):
  """Draws accuracy against confidence, with the share of the images below."""
  panels = reliability_panels(report)
  figure = canvas(2.9 * len(panels), 3.9)
  grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 1), sharex=True)
  for (title, bins), above, below in zip(panels, *grid, strict=True):
    count, confidence, accuracy = (
      np.array(bins[name], np.float64) for name in ("count", "confidence", "accuracy")
    )
    edges = np.linspace(0, 1, len(count) + 1)
    filled = count > 0
    ece = np.sum(count * np.abs(accuracy - confidence)) / count.sum()
    above.plot((0, 1), (0, 1), color="grey", linewidth=1, linestyle="--")
    above.bar(
      *(edges[:-1][filled], accuracy[filled], 1 / len(count)),
      align="edge",
      color=_COLOURS[0],
      alpha=0.35,
      edgecolor="white",
    )
    above.plot(confidence[filled], accuracy[filled], "o-", color=_COLOURS[0], markersize=4)
    above.text(0.04, 0.93, f"ECE {ece:.3f}", transform=above.transAxes, fontsize=9)
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.set_title(title, fontsize=10)
    below.bar(edges[:-1], count / count.sum(), 1 / len(count), align="edge", color="grey")
    below.set(ylim=(0, 1), xlabel="confidence")
    for axes in (above, below):
      axes.spines[["top", "right"]].set_visible(False)
  grid[0, 0].set_ylabel("accuracy")
  grid[1, 0].set_ylabel("share of images", fontsize=8)
  figure.savefig(file, dpi=150)


def examples_figure(pictures, class_names, file):
  """Draws broken images: clean, perturbation, adversarial, with what was predicted."""
  figure = canvas(1.6 * len(pictures), 5.0)
  grid = figure.subplots(3, len(pictures), squeeze=False)
  name = lambda index: str(class_names[index]) if class_names else str(index)  # noqa: E731
  for column, picture in enumerate(pictures):
    change = picture["adversary"] - picture["image"]
    largest = max(float(np.abs(change).max()), 1e-6)
    shown = (picture["image"], 0.5 + change / (2 * largest), picture["adversary"])
    titles = (
      name(picture["before"]),
      f"x {0.5 / largest:.3g}",
      name(picture["after"]),
    )
    for axes, pixels, title in zip(grid[:, column], shown, titles, strict=True):
      grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if pixels.shape[-1] == 1 else {}
      pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
      axes.imshow(np.clip(pixels, 0, 1), interpolation="nearest", **grey)
      axes.set_title(title, fontsize=9)
      axes.set_xticks([])
      axes.set_yticks([])
  for axes, label in zip(grid[:, 0], ("clean", "perturbation", "adversarial"), strict=True):
    axes.set_ylabel(label, fontsize=9)
  figure.suptitle("Above the images: what is predicted", fontsize=9)
  figure.savefig(file, dpi=150)
