"""The page of the MNIST table: figures from finished runs, Markdown, pictures.

What experiments/reproduce_mnist.py writes of what its commands measured.
"""

import statistics

from experiments import pages
from urkle_tf.output import tables
from urkle_tf.training import latent_map

SCORES = ("clean", "pgd", "pgd_strong")

# --- What was measured ---


def scores(report):
  """{mode: {"clean", "pgd", "pgd_strong"}} in percent, the served mode first.

  "pgd" is the accuracy on what the first attack found against the mode itself; "pgd_strong"
  that on all that both attacks found, against either reading of z.

  Args:
    report: what report.json holds.
  """
  found = {}
  for mode, (clean, (first, strong)) in tables.readings(report).items():
    shares = (clean["accuracy"], first["own_accuracy"], strong["accuracy"])
    found[mode] = dict(zip(SCORES, map(pages.percent, shares), strict=True))
  return found


def collect(work, rows, options=""):
  """What the finished runs of a folder measured: the contents of mnist.json.

  Args:
    work: the folder of all runs, a `pathlib.Path`.
    rows: the table's `Row`s, in order.
    options: what the commands need beside --rows and --seeds.

  Returns:
    {"rows": one a row of which a seed is finished, "evaluation": how it was attacked}.
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

TEMPLATE = """# The paper's Table 1 on MNIST

<!-- table -->
<!-- /table -->

`pgd` starts at a random point and scores the classifier on its own adversaries. `pgd_strong`
attacks the images that the first attack did not break. An image counts as right only if it is right
under every attack of both columns.

If z is random, a row is two classifiers. The one that is served averages probabilities over 200
samples of z that no attack knows. The other one uses z = mu. Each is attacked through its own
gradients. In `pgd_strong`, each must also withstand what was found against the other.

The minutes are those of training alone, including the head's.

<!-- pictures -->
<!-- /pictures -->

## The bound of Proposition 1

<!-- bound -->
<!-- /bound -->

The bound is vacuous if it is at least M, which no capped loss exceeds. KL and adversarial loss are
the largest that the attacks found. The true maxima may be larger, and the bound with them.

## Commands

<!-- commands -->
<!-- /commands -->
"""


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
  """The bound of the rows that pre-train without labels and have one, as Markdown; or None."""
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

_LOOKS = {  # colours that the colour-blind tell apart
  "clean": ("#4477aa", "o"),
  "pgd": ("#ee7733", "s"),
  "pgd_strong": ("#aa3355", "D"),
}


def draw(document, file):
  """Draws the table: one line a row, the paper's figures hollow, on a whole and a close scale.

  Args:
    document: what `collect` returned.
    file: the PNG to write.
  """
  rows = document["rows"]
  pgd, strong = _attack_names(document)
  titles = dict(zip(SCORES, ("clean", pgd, f"{strong}, union"), strict=True))
  # The close scale holds every row that withstands attacks at all.
  every = [value for row in rows for name in SCORES for value in row[name]]
  low = min([95.0, *(value // 1 for value in every if value > 85)])
  figure, panels = pages.panels(
    [row["system"] for row in rows],
    2,
    (9.6, 1.5 + 0.5 * len(rows)),
    gridspec_kw={"width_ratios": [1, 1.9]},
  )
  for axes, limits in zip(panels, ((-4, 104), (low, 100.0)), strict=True):
    for line, row in enumerate(rows):
      shown = [statistics.fmean(row[name]) for name in SCORES]
      axes.plot([min(shown), max(shown)], [line, line], color=pages.FAINT, linewidth=3, zorder=1)
      for name, mean in zip(SCORES, shown, strict=True):
        colour, marker = _LOOKS[name]
        style = {"marker": marker, "linestyle": "", "markersize": 7}
        if len(row[name]) > 1:
          seeds = row[name]
          axes.plot(seeds, [line] * len(seeds), "|", color=colour, markersize=13, zorder=2)
        axes.plot(mean, line, color=colour, markeredgecolor="white", zorder=3, **style)
        if name in row.get("paper", {}):
          hollow = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.3}
          axes.plot(row["paper"][name], line - 0.27, **style, **hollow, zorder=3)
    axes.set_xlim(*limits)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_color(pages.FAINT)
    axes.tick_params(axis="y", labelsize=10)
    axes.tick_params(axis="x", color=pages.FAINT, labelsize=9, labelcolor=pages.INK)
  panels[0].set_ylim(len(rows) - 0.5, -0.6)
  panels[1].set_xlabel("accuracy, %: the upper end", color=pages.INK)
  keys = {
    title: {"color": _LOOKS[name][0], "marker": _LOOKS[name][1]} for name, title in titles.items()
  }
  hollow = {"markerfacecolor": "none", "markeredgecolor": pages.INK}
  keys["the paper's (hollow)"] = {"marker": "o", **hollow}
  if any(len(row["seeds"]) > 1 for row in rows):
    keys["a seed"] = {"color": pages.INK, "marker": "|", "markersize": 11}
  pages.draw(figure, keys, file, fontsize=9)


def draw_latent_map(folders, file, dataset, data_dir):
  """Figure 2 of the paper: samples of z without and with Urkle, clean and attacked.

  Args:
    folders: {title: the folder of an exported encoder}.
    file: the PNG to write.
    dataset: the data set's name; shown is the first test image of each of ten classes.
    data_dir: where it lies.
  """
  import numpy as np  # here, and what TensorFlow needs: seconds that other calls save

  from urkle_tf import attacks, export
  from urkle_tf.data import pipeline, sources

  chosen = {}
  for batch in pipeline.batches(sources.load(dataset, "test", data_dir), 250):
    for image, label in zip(batch["image"].numpy(), batch["label"].numpy(), strict=True):
      chosen.setdefault(int(label), image)
    if len(chosen) >= 10:
      break
  images = np.stack([chosen[label] for label in sorted(chosen)[:10]])
  encoders = {title: export.load_encoder(folder) for title, folder in folders.items()}
  metadata = next(iter(encoders.values())).metadata
  attack = attacks.PGD(
    attacks.from_norm(metadata["norm"], metadata["epsilon"]), steps=50, keep="best"
  )
  latent_map.draw(encoders, images, attack, file)
