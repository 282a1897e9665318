"""The report's figures, and their descriptions for readers who cannot see them."""

import functools

import numpy as np

from urkle_tf.evaluation.report.document import Picture
from urkle_tf.output import tables
from urkle_tf.output.figures import canvas

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
_FOLDER = "figures"


def reliability(report):
  """The `Picture` of the reliability diagram."""
  panels = [
    f"{title}, expected calibration error {_calibration_error(bins):.3f}"
    for title, bins in reliability_panels(report)
  ]
  described, draw = "; ".join(panels) + ".", functools.partial(reliability_figure, report)
  return _picture("reliability", "Accuracy against confidence", described, draw)


def accuracy_vs_epsilon(report):
  """The `Picture` of accuracy against epsilon."""
  lines = []
  for (label, mode), rows in _lines(report).items():
    points = [
      f"{row['accuracy']:.2%} at {tables.radius(row['epsilon'], row['norm'])}" for row in rows
    ]
    lines.append(f"{label}, z {mode}, {', '.join(points)}")
  title = "Accuracy against the radius of the attack"
  draw = functools.partial(accuracy_figure, report)
  return _picture("accuracy_vs_epsilon", title, "; ".join(lines) + ".", draw)


def examples():
  """The `Picture` of images that were broken."""
  described = "each column is an image, the perturbation magnified, and their sum."
  return _picture("examples", "Images that were broken", described)


def corruptions(part):
  """The `Picture` of the heat map, from the report's part "corruptions"."""
  means = [f"{part['by_severity'][s]['accuracy']:.2%} at {s}" for s in part["severities"]]
  described = f"mean over types by severity, {', '.join(means)}; the table holds each cell."
  draw = functools.partial(corruptions_figure, part)
  return _picture("corruptions", "Accuracy on corrupted images", described, draw)


def certified(part):
  """The `Picture` of certified accuracy by l2 radius, from the report's part "smoothing"."""
  points = [f"{row['accuracy']:.2%} at {row['radius']:g}" for row in part["certified"]]
  draw = functools.partial(certified_figure, part)
  title = "Certified accuracy against the l2 radius"
  return _picture("certified", title, ", ".join(points) + ".", draw)


def latent_map(part):
  """The `Picture` of the map of z, from the report's part "representation"."""
  described = (
    "a colour for each of ten images; clean on the left, attacked on the right; mean KL over all "
    f"images {part['kl_mean']:.4g} nats."
  )
  return _picture("latent_map", "Samples of z, before and after an attack on the KL", described)


def _picture(name, title, described, draw=None):
  return Picture(f"{_FOLDER}/{name}.png", title, f"{title}: {described}", draw)


def _lines(report):
  """{(attack, mode): its rows, by radius}."""
  lines: dict[tuple[str, str], list[dict]] = {}
  for row in report["attacks"]:
    lines.setdefault((tables.attack(row), row["mode"]), []).append(row)
  return {key: sorted(rows, key=lambda row: row["epsilon"]) for key, rows in lines.items()}


def accuracy_figure(report, file):
  """Draws accuracy against epsilon, a line for each attack and reading of z."""
  figure = canvas(6.4, 4.2)
  axes = figure.add_subplot()
  clean = report["clean"]
  lines = _lines(report)
  labels = list(dict.fromkeys(label for label, _ in lines))
  for (label, mode), rows in lines.items():
    start = clean if clean["mode"] == mode else clean["deterministic"]
    x = [0.0, *(row["epsilon"] * 255 for row in rows)]
    y = 100 * np.array([start["accuracy"], *(row["accuracy"] for row in rows)])
    low, high = 100 * np.array([start["interval"], *(row["interval"] for row in rows)]).T
    colour = _COLOURS[labels.index(label) % len(_COLOURS)]
    dashed = mode == "deterministic" and clean["mode"] == "sampled"
    look = {"color": colour, "markersize": 4, "fillstyle": "none" if dashed else "full"}
    axes.plot(x, y, "s--" if dashed else "o-", label=f"{label}, z {mode}", **look)
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
  axes.set(ylabel="accuracy, %", ylim=(0, 100))
  axes.set(xlabel=f"epsilon x 255 ({report['attacks'][0]['norm']})", xlim=(0, None))
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=9)
  config = report["config"]
  axes.set_title(f"{config['dataset']}, {clean['examples']} images", fontsize=10)
  figure.savefig(file, dpi=150)


def certified_figure(part, file):
  """Draws certified accuracy against the l2 radius; arguments as in `corruptions_figure`."""
  figure = canvas(5, 3.2)
  axes = figure.subplots()
  rows = part["certified"]
  values = [100 * row["accuracy"] for row in rows]
  axes.plot([row["radius"] for row in rows], values, "o-", color=_COLOURS[0])
  axes.set(xlabel="l2 radius, pixel units", ylabel="certified accuracy, %", ylim=(0, 100))
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
  """The data of the reliability diagram, in the served mode.

  Args:
    report: the dict that report.json holds.

  Returns:
    A list of (title, {"count", "confidence", "accuracy"}): the clean images; all corrupted ones, if
    there are any; and for the smallest and the largest radius, the adversaries of the row with the
    lowest accuracy.
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
    title = f"{worst['name']}, {worst['norm']}, {tables.radius(epsilon, worst['norm'])}"
    panels.append((title, worst["reliability"]))
  return panels


def _arrays(bins):
  return (np.array(bins[name], np.float64) for name in ("count", "confidence", "accuracy"))


def _calibration_error(bins):
  count, confidence, accuracy = _arrays(bins)
  return np.sum(count * np.abs(accuracy - confidence)) / count.sum()


def reliability_figure(report, file):
  """Draws accuracy against confidence, and below it the share of the images."""
  panels = reliability_panels(report)
  figure = canvas(2.9 * len(panels), 3.9)
  grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 1), sharex=True)
  for (title, bins), above, below in zip(panels, *grid, strict=True):
    count, confidence, accuracy = _arrays(bins)
    edges = np.linspace(0, 1, len(count) + 1)
    filled = count > 0
    above.plot((0, 1), (0, 1), color="grey", linewidth=1, linestyle="--")
    bars = edges[:-1][filled], accuracy[filled], 1 / len(count)
    above.bar(*bars, align="edge", color=_COLOURS[0], alpha=0.35, edgecolor="white")
    above.plot(confidence[filled], accuracy[filled], "o-", color=_COLOURS[0], markersize=4)
    above.text(
      0.04, 0.93, f"ECE {_calibration_error(bins):.3f}", transform=above.transAxes, fontsize=9
    )
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
  """Draws broken images: clean, perturbation, adversarial, with the predictions."""
  figure = canvas(1.6 * len(pictures), 5.0)
  grid = figure.subplots(3, len(pictures), squeeze=False)
  name = lambda index: str(class_names[index]) if class_names else str(index)  # noqa: E731
  for column, picture in enumerate(pictures):
    change = picture["adversary"] - picture["image"]
    largest = max(float(np.abs(change).max()), 1e-6)
    shown = (picture["image"], 0.5 + change / (2 * largest), picture["adversary"])
    titles = (name(picture["before"]), f"x {0.5 / largest:.3g}", name(picture["after"]))
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
