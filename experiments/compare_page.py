"""The page of the comparison on CIFAR-10: figures from finished runs, Markdown, a picture.

experiments/compare_cifar10.py writes it from the results of its commands.
"""

import statistics

from experiments import pages
from urkle_tf.output import tables

SCORES = {  # in percent, except for the calibration error, a fraction, and the rank of loc
  "clean": "clean",
  "pgd_8": "PGD-20 at 8/255",
  "pgd_16": "PGD-20 at 16/255",
  "autoattack": "AutoAttack at 8/255",
  "corruptions": "corrupted",
  "ece": "ECE",
  "rank": "effective rank",
}


def scores(report, strong):
  """{name of `SCORES`: value} of one classifier, as it is served.

  Args:
    report: what the report.json of PGD holds.
    strong: that of AutoAttack and corruptions, or None.
  """
  clean, attacks = pages.served(report)
  accuracy = {round(255 * row["epsilon"]): row["accuracy"] for row in attacks}
  found = {
    "clean": clean["accuracy"],
    "pgd_8": accuracy.get(8),
    "pgd_16": accuracy.get(16),
    "autoattack": pages.served(strong)[1][-1]["accuracy"] if strong else None,
    "corruptions": (strong or {}).get("corruptions", {}).get("mean"),
  }
  found = {name: value and pages.percent(value) for name, value in found.items()}
  rank = report.get("representation", {}).get("effective_rank")
  return {**found, "ece": round(clean["ece"], 4), "rank": rank and round(rank, 2)}


def collect(work, rows, labels, given, equal):
  """The results of the finished runs in a folder.

  Args:
    work: the folder of all runs, a `pathlib.Path`.
    rows: the table's `Row`s, in order.
    labels: numbers of labels, as text.
    given: the settings of the training.
    equal: "images" or "gradients".

  Returns:
    {"rows": an entry for each row with a finished report; "equal", "examples",
    "strong_examples"}.
  """
  entries, examples, strong_examples = [], None, None
  for row in rows:
    found, trained = {}, {}
    for part in labels:
      of_part = {}
      stronger = pages.reports(work, f"{row.name}-{part}", "autoattack")
      for seed, report in pages.reports(work, f"{row.name}-{part}", "evaluate").items():
        strong = stronger.get(seed)
        of_part[seed] = scores(report, strong)
        examples = report["clean"]["examples"]
        strong_examples = strong["clean"]["examples"] if strong else strong_examples
        run = f"{row.name}-{part}" if row.protocol is None else row.encoder or row.name
        trained[seed] = work / f"{run}-{seed}"
      if of_part:
        found[part] = {"seeds": list(of_part)}
        for name in SCORES:
          if any(values[name] is not None for values in of_part.values()):
            found[part][name] = [values[name] for values in of_part.values()]
    if not found:
      continue
    runs = [run for _, run in sorted(trained.items())]
    entry = {name: getattr(row, name) for name in ("system", "pretext", "robustness")}
    entry |= {"protocol": row.protocol or "none", "minutes": [*map(pages.training_minutes, runs)]}
    entry["images_seen"] = [*map(images_seen, runs)]
    entry["gradients_per_image"] = row.gradients(int(given["attack_steps"]))
    entries.append({**entry, "labels": found})
  return {"rows": entries, "equal": equal, "examples": examples, "strong_examples": strong_examples}


def images_seen(run):
  """The number of images in all steps of a training, repetitions included."""
  return pages.metrics(run)[-1]["step"] * int(pages.flags(run).get("batch_size", 256))


def _known(found, names):
  """{name: the figures of the seeds that have it}."""
  return {name: [v for v in found.get(name, ()) if v is not None] for name in names}


def table(document):
  """A table for each number of labels, as Markdown."""
  text = f"Percent of {document['examples']:,} test images, ECE as a fraction; "
  if document["strong_examples"]:
    text += f"AutoAttack and corruptions on the first {document['strong_examples']:,}; "
    text += "`corrupted` is the mean over 15 types. "
  names = [name for name in SCORES if any(name in found for found in _parts(document))]
  text += pages.SEVERAL + " "
  text += {
    "images": "Held equal: images seen, backbone, batch size and steps.",
    "gradients": "Held equal: gradient evaluations, backbone and batch size.",
  }[document["equal"]]
  blocks = [text]
  header = ["system", *(SCORES[name] for name in names)]
  header += ["minutes", "images seen", "gradients", "seeds"]
  for part in _labels(document):
    lines = []
    for row in document["rows"]:
      if part not in row["labels"]:
        continue
      found = row["labels"][part]
      seen = statistics.fmean(row["images_seen"])
      known = _known(found, names)
      cells = [pages.mean(known[name], ".3f" if name == "ece" else ".1f") for name in names]
      cells += [f"{statistics.fmean(row['minutes']):.1f}", f"{seen:,.0f}"]
      cells += [f"{seen * row['gradients_per_image']:,.0f}", str(len(found["seeds"]))]
      lines.append([row["system"], *cells])
    blocks += [f"### {_title(part)}", tables.markdown(header, lines)]
  return "\n\n".join(blocks)


def _labels(document):
  """The numbers of labels of a document, in order."""
  return list(dict.fromkeys(part for row in document["rows"] for part in row["labels"]))


def _title(part):
  return "All labels" if part == "all" else f"{int(part):,} labels"


def _parts(document):
  return [found for row in document["rows"] for found in row["labels"].values()]


PAIR = ("SimCLR+Urkle", "RoCL")


def paired(document):
  """How much better the first system of `PAIR` is than the second, by seed, as Markdown.

  The mean of the differences between classifiers of one seed, and its 95% interval.
  """
  rows = {row["system"]: row["labels"] for row in document["rows"]}
  if not all(name in rows for name in PAIR):
    return ""
  lines = []
  for part in (part for part in rows[PAIR[0]] if part in rows[PAIR[1]]):
    both = [rows[name][part] for name in PAIR]
    for name in ("clean", "pgd_8", "pgd_16", "autoattack"):
      found = pages.differences(*(_by_seed(one, name) for one in both))
      if len(found) < 2:
        continue
      mean, _, (low, high) = tables.seeds(found)
      cells = [part, SCORES[name], f"{mean:+z.2f}", f"{low:+z.2f} to {high:+z.2f}"]
      lines.append([*cells, "no difference shown" if low <= 0 <= high else "shown"])
  if not lines:
    return ""
  header = ["labels", "percent of images right", " - ".join(PAIR), "95% interval"]
  return tables.markdown([*header, "difference"], lines)


def _by_seed(found, name):
  pairs = zip(found["seeds"], found.get(name, ()))
  return {seed: value for seed, value in pairs if value is not None}


_LOOKS = {  # colours that the colour-blind can distinguish
  "clean": ("#4477aa", "o"),
  "corruptions": ("#228833", "^"),
  "pgd_8": ("#ee7733", "s"),
  "autoattack": ("#aa3355", "D"),
  "pgd_16": ("#222222", "v"),
}


def draw(document, file):
  """Draws accuracies: a panel for each number of labels, a line for each system.

  Args:
    document: what `collect` returned.
    file: the PNG to write.
  """
  panels = []
  for part in _labels(document):
    known = [_known(row["labels"].get(part, {}), _LOOKS) for row in document["rows"]]
    scores = [{name: seeds for name, seeds in row.items() if seeds} for row in known]
    panels.append((_title(part), None, scores))
  looks = {name: (SCORES[name], *look) for name, look in _LOOKS.items()}
  pages.draw(file, document["rows"], panels, looks)
