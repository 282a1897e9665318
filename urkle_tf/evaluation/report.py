"""The report: report.json, report.md, report.html and figures, all of one dict."""

import json

from urkle_tf import errors
from urkle_tf.evaluation import pictures
from urkle_tf.evaluation.document import (
  Alarm,
  Glance,
  Heading,
  Items,
  Share,
  Strong,
  Table,
  Text,
  markdown,
)
from urkle_tf.evaluation.page import page
from urkle_tf.output import files, tables

PAGE = "report.html"


def finished(folder, model, fingerprint, html=False):
  """The report that a folder holds, if an evaluation of this model ended there before.

  Args:
    folder: a `pathlib.Path`.
    model: where the model lies, for the message.
    fingerprint: the model's.
    html: whether the page is written too, if it is not there.

  Returns:
    What report.json holds, or None if there is none.

  Raises:
    UserError: if it is of another model, or damaged.
  """
  file = folder / "report.json"
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    owner = found["config"].get("fingerprint")
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise errors.UserError(
      f"{file} is no report, or is damaged: remove it, and the same command measures again"
    ) from None
  if owner != fingerprint:
    raise errors.UserError(
      f"{folder} holds the report of another model than {model} holds now: give another "
      "--output_dir"
    )
  if html and not (folder / PAGE).exists():
    files.write(folder / PAGE, page(parts(found, pictures.found(folder, found)), folder))
    print(f"{folder} was finished: its page is made of what it holds")
  else:
    print(f"{folder} is finished: nothing to do")
  return found


def write(folder, report, broken=(), class_names=None, html=False):
  """Writes a report's files; report.json last, since it says that the report is whole.

  Args:
    folder: a `pathlib.Path`.
    report: the dict that report.json holds.
    broken: images that were broken, from a `recording.Recorder`.
    class_names: names of the classes, or None.
    html: whether the page is written too.
  """
  pictures.draw(folder, report, broken, class_names)
  content = parts(report, pictures.found(folder, report))
  files.write(folder / "report.md", markdown(content))
  if html:
    files.write(folder / PAGE, page(content, folder))
  files.write(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def parts(report, figures=None):
  """What a report says, in order.

  Args:
    report: the dict that report.json holds.
    figures: {name: `document.Picture`}, from `pictures.found`; None for none.

  Returns:
    A list of the classes of `document`.
  """
  config, figures = report["config"], dict(figures or {})
  show = lambda *names: [figures[name] for name in names if name in figures]  # noqa: E731
  title = f"Evaluation on {config['dataset']}"
  content: list = [Heading(f"{title}, {config['split']}" if "split" in config else title, 1)]
  if "regression" in report:
    content += _regression(report["regression"])
  else:
    content += [
      Text(
        "Accuracies are in percent with their 95% interval. Robust accuracy is that under the "
        "attacks named here: an upper bound on the accuracy under any attack, not a guarantee."
      ),
      *_glance(report),
    ]
  if notes := config.get("model", {}).get("notes"):
    content += [Heading("The model"), Items(notes)]
  if clean := report.get("clean"):
    content += [*_clean(clean), *show("reliability")]
  if report.get("attacks"):
    content += [*_attacked(report), *show("accuracy_vs_epsilon", "examples")]
  content += _served(report)
  if part := report.get("checks"):
    content += _checks(part, config)
  if part := report.get("corruptions"):
    content += [*_corruptions(part), *show("corruptions")]
  if part := report.get("representation"):
    content += [*_representation(part, config), *show("latent_map")]
  if part := report.get("bound"):
    content += _bound(part)
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  return [*content, Text(f"Made with {versions}.")]


def _share(row, prefix=""):
  return Share(row[f"{prefix}accuracy"], row[f"{prefix}interval"])


def _glance(report):
  """The figures of the served mode that are read first."""
  found = []
  if clean := report.get("clean"):
    images = f"{clean['examples']:,} images, {tables.READINGS[clean['mode']]}"
    found.append(("clean accuracy", f"{100 * clean['accuracy']:.2f}%", images))
    rows = [row for row in report.get("attacks", ()) if row["mode"] == clean["mode"]]
    for epsilon in sorted({row["epsilon"] for row in rows}):
      worst = min(
        (row for row in rows if row["epsilon"] == epsilon), key=lambda row: row["accuracy"]
      )
      name = f"attacked, {tables.threat(worst)}"
      found.append((name, f"{100 * worst['accuracy']:.2f}%", f"lowest of all: {worst['name']}"))
  if part := report.get("corruptions"):
    types = f"mean of {len(part['types'])} types"
    found.append(("corrupted", f"{100 * part['mean']:.2f}%", types))
  if (part := report.get("representation")) and "clean" not in report:
    where = tables.threat(part, ", epsilon ")
    found.append(("worst KL, mean", f"{part['kl_mean']:.4g} nats", where))
    flips = f"{100 * part['neighbour_flips']:.1f}%"
    found.append(("nearest image changes", flips, f"of {part['examples']:,} images"))
  if part := report.get("bound"):
    value = f"{part['value']:.4g} nats"
    found.append(
      ("bound on the loss", value, "vacuous" if part["vacuous"] else f"M {part['M']:.4g}")
    )
  if part := report.get("checks"):
    failed = ", ".join(check["name"] for check in part if not check["passed"])
    passed = f"{sum(check['passed'] for check in part)} of {len(part)}"
    found.append(
      ("checks passed", Alarm(passed) if failed else passed, failed and f"not: {failed}")
    )
  return [Glance(found)] if found else []


def _calibration(row):
  return [f"{row[name]:.4f}" for name in ("nll", "ece", "brier")]


def _clean(clean):
  rows = [[clean["mode"], _share(clean), *_calibration(clean)]]
  if "deterministic" in clean:
    other = clean["deterministic"]
    rows.append(["deterministic", _share(other), *_calibration(other)])
  return [
    Heading(f"Clean ({clean['examples']} images)"),
    Table("Clean images", ["z", "accuracy", "NLL", "ECE", "Brier"], rows),
  ]


def _attacked(report):
  rows, config = report["attacks"], report["config"]
  own = "own_accuracy" in rows[0]
  head = [
    *("attack", "norm", "epsilon", "z", "accuracy"),
    *(["own adversaries alone"] if own else []),
    *("NLL", "ECE", "Brier", "steps", "restarts", "samples a step", "loss"),
  ]
  cells = [
    [
      *(row["name"], row["norm"], tables.radius(row["epsilon"], row["norm"])),
      *(row["mode"], _share(row)),
      *([_share(row, "own_") if "own_accuracy" in row else "-"] if own else []),
      *_calibration(row),
      *(str(row[name]) for name in ("steps", "restarts", "eot")),
      row.get("loss", "-"),
    ]
    for row in rows
  ]
  content = [
    Heading("Attacked"),
    Table("Attacked images", head, cells),
    Text(
      "An image counts if it is classified rightly as it is and on every adversary found, those "
      "found against the other reading of z included"
      + ("; each row counts what the rows before it found too." if config.get("standing") else ".")
    ),
  ]
  if any(row["mode"] == "sampled" for row in rows):
    content.append(
      Text(
        f"z = sampled: the mean of the probabilities over at least {config['samples']} fresh "
        "samples of z, none of them known to the attack, nor used to choose which of its finds "
        "is scored. z = deterministic: the mean of z."
      )
    )
  notes = {f"{row['name']}: {row['note']}" for row in rows if "note" in row}
  notes |= {
    f"{row['name']}, z sampled: the same samples of z throughout an attack"
    for row in rows
    if row.get("noise") == "fixed"
  }
  if notes:
    content.append(Items(sorted(notes)))
  if skipped := config.get("skipped_attacks"):
    content.append(
      Text(
        f"Not run, since the model has no gradient: {', '.join(skipped)}. What is left searches "
        "at random: these figures are weak evidence."
      )
    )
  return content


def _served(report):
  """What a caller of a sampled classifier sees, of the images as they are and attacked."""
  parts = [("clean", "-", report.get("clean", {}))]
  for row in report.get("attacks", ()):
    parts.append((row["name"], tables.radius(row["epsilon"], row["norm"]), row))
  parts = [(name, epsilon, part) for name, epsilon, part in parts if "served_accuracy" in part]
  if not parts:
    return []
  samples, draws = (parts[0][2][name] for name in ("served_samples", "draws"))
  rows = [
    [
      *(name, epsilon, _share(part)),
      Share(part["served_accuracy"], part["served_interval"]),
      Share(part["accuracy_all_draws"], part["interval_all_draws"]),
    ]
    for name, epsilon, part in parts
  ]
  head = ["images", "epsilon", "limit of many samples", f"a call with {samples} samples of z"]
  return [
    Heading("As it is served"),
    Table("As it is served", [*head, f"right in each of {draws} calls"], rows),
    Text(
      f"The expected accuracy of one call, and the share of images that {draws} calls in a row "
      "get right: a pessimistic figure, of an attacker who may try again. The images are those "
      "that hurt the sampled classifier most."
    ),
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
    [check["name"], "passed" if check["passed"] else Alarm("failed"), check["detail"]]
    for check in part
  ]
  return [
    Heading(f"Checks (epsilon {tables.radius(config['epsilon'], config['norm'])})"),
    Table("Checks for masked gradients", ["check", "", "numbers"], rows),
    Text(verdict),
  ]


def _corruptions(part):
  severities = part["severities"]

  def row(title, scores, each):
    cells = [Share(each[name]["accuracy"]) if name in each else "-" for name in severities]
    return [title, *cells, _share(scores), *_calibration(scores)]

  rows = [row(name, scores, scores["severities"]) for name, scores in part["by_type"].items()]
  mean = {**part, "accuracy": part["mean"]}
  rows.append(row(Strong("mean"), mean, part["by_severity"]))
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
    Heading(f"Corrupted ({part['examples']} images)"),
    Table("Corrupted images", [*head, "NLL", "ECE", "Brier"], rows),
    Text(" ".join(notes)),
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
    "effective_rank": "effective rank of mu over the first {rank_examples} images",
    "snr": "mean of abs(mu) / sigma",
    "drift": "how far mu moves, in mean distances between different images",
    "neighbour_flips": "share of images whose nearest other image changes",
    "regulariser_per_nat": "root of half the mean KL: the bound's regulariser per nat of M (eq. 4)",
    "regulariser_tight_per_nat": "mean root of half the KL: likewise (eq. 31)",
    "M": "M, nats",
    "regulariser": "regulariser of Proposition 1 (eq. 4), nats",
    "regulariser_tight": "likewise with the mean of roots (eq. 31), nats",
  }
  meanings = {name: text.format(**part) for name, text in meanings.items() if name in part}
  content = [
    Heading("Representation"),
    Text(
      f"The first {part['examples']} images, PGD on the KL with {part['steps']} steps and "
      f"{part['restarts']} restarts, {tables.threat(part, ', epsilon ')}; "
      "no label is read."
    ),
    Table(
      "Representation",
      ["", "value"],
      [[text, f"{part[name]:.4g}"] for name, text in meanings.items()],
    ),
  ]
  if not config.get("stochastic", True):
    text = "This encoder's training used no sigma: KL, sigma and abs(mu) / sigma mean little."
    content.append(Text(text))
  return content


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
  head = ["", "root of the mean KL (eq. 4)", "mean of roots (eq. 31)"]
  return [
    Heading("The bound of Proposition 1"),
    Text(
      f"The first {part['examples']} images, sampled z ({part['samples']} samples), "
      f"{tables.threat(part, ', epsilon ')}; nats. Each softmax is mixed "
      f"with {100 * part['cap_share']:.3g}% of the uniform distribution, so that no loss exceeds M."
    ),
    Table("The bound of Proposition 1", head, rows),
    Text(
      f"{verdict} The KL is the largest found (mean {part['kl_mean']:.4g}; PGD on the KL with "
      f"{part['steps']} steps and {part['restarts']} restarts, PGD on the loss with "
      f"{part['loss_steps']}), and so is the measured loss: the true maxima may be larger, and "
      "the bound with them."
    ),
  ]


def _regression(part):
  clean, attacks = part["clean"], part["attacks"]
  name = tables.READINGS.get
  scores = lambda row: [f"{row[key]:.4g}" for key in ("rmse", "mae", "r2") if key in row]  # noqa: E731
  rows = [[name(clean["mode"]), "clean", *scores(clean)]]
  rows += [
    [name(mode), "clean", *scores(clean[mode])] for mode in ("deterministic",) if mode in clean
  ]
  for row in attacks:
    rows.append([name(row["mode"]), f"{tables.attack(row)}, {tables.threat(row)}", *scores(row)])
  worst = attacks[0]
  where = tables.threat(worst)
  head = ["regressor", "images", "root mean square error", "mean absolute error"]
  return [
    Text(
      f"Target: {part['target']}; {part['examples']:,} images. A constant guess has an error of "
      f"{part['spread']:.4g} (root mean square)."
    ),
    Glance(
      [
        ("clean error", f"{clean['rmse']:.4g}", f"root mean square, {name(clean['mode'])}"),
        (f"attacked, {where}", f"{worst['rmse']:.4g}", f"{worst['name']}-{worst['steps']}"),
        ("a constant guess", f"{part['spread']:.4g}", "root mean square"),
      ]
    ),
    Table("Errors", [*head, *(["R2"] if "r2" in clean else [])], rows),
  ]
