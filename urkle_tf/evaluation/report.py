"""The report: report.json, report.md and figures."""

import json
import os

import numpy as np

from urkle_tf.evaluation import attacked
from urkle_tf.figures import canvas

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's


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
  if pictures:
    examples_figure(pictures, class_names, figures / "examples.png")
    names.append(("examples.png", "Images that were broken"))
  if (figures / "latent_map.png").exists():
    names.append(("latent_map.png", "Samples of z, before and after an attack on the KL"))
  _write(folder / "report.md", markdown(report, names))
  _write(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def _write(file, text):
  side = file.with_suffix(".side")
  side.write_text(text, encoding="utf-8")
  os.replace(side, file)


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
        *("attack", "norm", "epsilon", "steps", "restarts", "samples a step", "z", "accuracy"),
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
        "samples of z, none of them known to the attack. z = deterministic: the mean of z.",
        "",
      ]
  if part := report.get("representation"):
    lines += _representation(part, config)
  if part := report.get("bound"):
    lines += _bound(part)
  for name, title in figures:
    lines += [f"![{title}](figures/{name})", ""]
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  return "\n".join([*lines, f"Made with {versions}.", ""])


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
  }
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
