"""The page of the MNIST table: figures from finished runs, Markdown, pictures.

experiments/reproduce_mnist.py writes it from the results of its commands.
"""

from experiments import pages
from urkle_tf import command_line, errors
from urkle_tf.output import tables

SCORES = ("clean", "pgd", "pgd_strong")

# --- What was measured ---


def scores(report):
  """{mode: {"clean", "pgd", "pgd_strong"}} in percent, the served mode first.

  "pgd" is the accuracy on the adversaries that the first attack found against the mode itself.
  "pgd_strong" counts all adversaries of both attacks, against either reading of z.

  Args:
    report: what report.json holds.
  """
  found = {}
  for mode, (clean, attacks) in tables.readings(report).items():
    if len(attacks) != 2:
      raise errors.UserError(
        f"the table is of two attacks at one radius, and a report has {len(attacks)} of them: give "
        "two to --extra_evaluate, and another --work"
      )
    first, strong = attacks
    shares = (clean["accuracy"], first["own_accuracy"], strong["accuracy"])
    found[mode] = dict(zip(SCORES, map(pages.percent, shares), strict=True))
  return found


def collect(work, rows, options=""):
  """The results of the finished runs in a folder: the content of mnist.json.

  Args:
    work: the folder of all runs, a `pathlib.Path`.
    rows: the table's `Row`s, in order.
    options: further flags of the commands, besides --rows and --seeds.

  Returns:
    {"rows": an entry for each row with a finished seed, "evaluation": settings of the attacks}.
  """
  entries, evaluation = [], {}
  for row in rows:
    reports = pages.reports(work, row.name, "report")
    if not reports:
      continue
    first = next(iter(reports.values()))
    measured = [scores(report) for report in reports.values()]
    (served, _), *others = measured[0].items()
    lists = lambda mode: {name: [m[mode][name] for m in measured] for name in SCORES}  # noqa: E731, B023
    runs = [work / f"{row.name}-{seed}" for seed in reports]
    settings = pages.flags(runs[0])
    entry = {
      "system": row.system,
      "pretext": settings["pretext"],
      "robustness": settings["robustness"],
      "labels": row.labels,
      "seeds": list(reports),
      **lists(served),
      **{mode: lists(mode) for mode, _ in others},
      "minutes": [pages.training_minutes(run, run.with_name(f"{run.name}-head")) for run in runs],
      "command": f"python experiments/reproduce_mnist.py --rows={row.name} "
      f"--seeds={max(reports) + 1}{options}",
    }
    for name, key in (("kl", "representation"), ("bound", "bound")):
      if all(key in report for report in reports.values()):
        entry[name] = [report[key] for report in reports.values()]
    if row.paper:
      entry["paper"] = {"clean": row.paper[0], "pgd": row.paper[1]}
    entries.append(entry)
    evaluation = {
      "examples": first["clean"]["examples"],
      "attacks": [
        {name: part[name] for name in ("norm", "epsilon", "steps", "step_size", "restarts")}
        for part in pages.served(first)[1]
      ],
      "eot": max(first["config"]["eot"], evaluation.get("eot", 1)),
    }
  return {"rows": entries, "evaluation": evaluation}


# --- The page ---


def _attack_names(document):
  return [tables.attack({"name": "PGD", **row}) for row in document["evaluation"]["attacks"]]


def table(document):
  """The table as Markdown."""
  pgd, strong = _attack_names(document)
  header = ["system", "labels in pre-training", "clean", f"`pgd`: {pgd}"]
  header += [f"`pgd_strong`: {strong}", f"z = mu: clean / {pgd} / {strong}"]
  header += ["minutes", "seeds", "paper: clean / PGD"]
  rows = []
  for row in document["rows"]:
    mu, paper = row.get("deterministic"), row.get("paper")
    cells = [row["system"], "all" if row["labels"] else "none"]
    cells += [pages.mean(row[name]) for name in SCORES]
    cells += [" / ".join(pages.mean(mu[name]) for name in SCORES) if mu else ""]
    cells += [pages.mean(row["minutes"], ".1f"), str(len(row["seeds"]))]
    rows.append([*cells, f"{paper['clean']} / {paper['pgd']}" if paper else ""])
  evaluation = document["evaluation"]
  first, second = evaluation["attacks"]
  text = (
    f"Percent of {evaluation['examples']:,} test images; {tables.threat(first, ', epsilon ')}. "
    f"{pgd} takes steps of {first['step_size']:g}, {strong} of "
    f"{second['step_size']:g}, and each starts at random"
  )
  if evaluation["eot"] > 1:
    text += f"; against random z each step averages over {evaluation['eot']} fresh samples"
  return f"{text}. {pages.SEVERAL}\n\n{tables.markdown(header, rows)}"


def bound_table(document):
  """The bounds of rows that pre-train without labels, as Markdown; None if there are none."""
  rows, first = [], None
  for row in document["rows"]:
    if row["labels"] or "bound" not in row:
      continue
    parts = row["bound"]
    first = first or parts[0]
    mean = lambda name: pages.mean([part[name] for part in parts], ".3f")  # noqa: E731, B023
    verdict = lambda name: _verdict([part[name] for part in parts])  # noqa: E731, B023
    names = ("clean_loss", "kl_mean", "regulariser", "value")
    cells = [*map(mean, names), verdict("vacuous"), mean("value_tight"), verdict("vacuous_tight")]
    rows.append([row["system"], *cells, mean("measured_adversarial_loss")])
  if not rows:
    return None
  header = ["system", "clean loss", "worst KL", "regulariser (eq. 4)", "bound", "vacuous"]
  header += ["bound by the mean of roots (eq. 31)", "vacuous", "measured adversarial loss"]
  text = (
    f"M = {first['M']:g} nats; the first {first['examples']:,} test images, "
    f"{tables.threat(first, ', epsilon ')}; nats."
  )
  return f"{text}\n\n{tables.markdown(header, rows)}"


def _verdict(flags):
  if len(set(flags)) == 1:
    return "yes" if flags[0] else "no"
  return f"{sum(flags)} of {len(flags)} seeds"


# --- Pictures ---


def draw(document, file):
  """Draws the table twice: on the whole scale, and its upper end.

  Args:
    document: what `collect` returned.
    file: the PNG to write.
  """
  pgd, strong = _attack_names(document)
  looks = {  # colours that the colour-blind can distinguish
    "clean": ("clean", "#4477aa", "o"),
    "pgd": (pgd, "#ee7733", "s"),
    "pgd_strong": (f"{strong}, union", "#aa3355", "D"),
  }
  scores = [{name: row[name] for name in SCORES} for row in document["rows"]]
  # The upper end shows every row that resists attacks at all.
  every = [value for row in scores for values in row.values() for value in values]
  low = min([95.0, *(value // 1 for value in every if value > 85)])
  panels = [("hollow: the paper's", (-4, 104), scores), ("the upper end", (low, 100), scores)]
  pages.draw(file, document["rows"], panels, looks)


def draw_latent_map(folders, file, dataset, data_dir):
  """Figure 2 of the paper: samples of z without and with Urkle, clean and attacked.

  Args:
    folders: {title: the folder of an exported encoder}.
    file: the PNG to write.
    dataset: the data set's name; the first test image of each of ten classes is shown.
    data_dir: the folder of prepared data.
  """
  import numpy as np  # here, as TensorFlow below, because importing takes seconds

  command_line.import_tensorflow()
  from urkle_tf import attacks, export
  from urkle_tf.data import pipeline, sources
  from urkle_tf.training import latent_map

  batch = next(iter(pipeline.batches(sources.load(dataset, "test", data_dir), 1000)))
  _, first = np.unique(batch["label"], return_index=True)
  images = batch["image"].numpy()[first[:10]]
  encoders = {title: export.load_encoder(folder) for title, folder in folders.items()}
  metadata = next(iter(encoders.values())).metadata
  attack = attacks.PGD(
    attacks.from_norm(metadata["norm"], metadata["epsilon"]), steps=50, keep="best"
  )
  latent_map.draw(encoders, images, attack, file)
