#!/usr/bin/env python3
"""Table 1 of the Urkle paper, on MNIST, from images to table.

  python experiments/reproduce_mnist.py --data_dir=DATA_DIR
  python experiments/reproduce_mnist.py --data_dir=DATA_DIR --rows=vae,vae_urkle --seeds=1,vae=5

DATA_DIR holds mnist, prepared by TensorFlow Datasets or with --download.  Each row and seed is
trained, given a head, attacked and added to the table.  Finished parts are not run again, so the
same command resumes after an interruption.
"""

import dataclasses
import functools
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, mnist_page, pages

LOSS_CAP = 5.0  # M of Proposition 1, nats


@dataclasses.dataclass(frozen=True)
class Row(jobs.Row):
  """A row of the table; its training is that of configs/mnist_NAME.cfg.

  Attributes:
    labels: whether its training reads labels, and makes the classifier too.
    stochastic: whether its z is random, so that it has a bound.
    paper: the paper's (clean, adversarial) accuracy in percent; None if it has no such row.
  """

  labels: bool
  stochastic: bool
  paper: tuple[float, float] | None = None


ROWS = (
  Row("standard", "Standard", True, False, (99.3, 1.0)),
  Row("at", "AT", True, False, (99.0, 98.5)),
  Row("trades", "TRADES", True, False, (99.1, 98.3)),
  Row("supervised_urkle", "Supervised+Urkle", True, True),
  Row("ae", "AE", False, False),
  Row("ae_trades", "AE+TRADES", False, False, (99.1, 96.6), seeds=3),
  Row("vae", "VAE", False, True),
  Row("vae_urkle", "VAE+Urkle", False, True, (99.1, 98.0), seeds=3),
)


LATENT_MAP = ("vae", "vae_urkle")  # the rows whose samples of z are drawn

find_row = functools.partial(jobs.find_row, ROWS)

# --- Running ---


def stages(row, seed, work, shared=(), extra=None):
  """The commands of one row and seed.

  Args:
    row: a `Row`.
    seed: an int.
    work: the folder of all runs.
    shared: arguments of every command.
    extra: {module: further arguments of that command}, which override the others.

  Returns:
    `Stage`s, in order.
  """
  extra, run = extra or {}, f"{work}/{row.name}-{seed}"
  shared = [*shared, f"--seed={seed}"]
  found = [jobs.Stage("train", f"configs/mnist_{row.name}.cfg", run, shared)]
  classifier = f"{run}/classifier"
  if not row.labels:
    arguments = [f"--encoder={run}/encoder", *shared]
    found.append(jobs.Stage("finetune", "configs/mnist_finetune.cfg", f"{run}-head", arguments))
    classifier = f"{run}-head/classifier"
  arguments = [f"--classifier={classifier}", *shared]
  if row.stochastic:
    arguments.append(f"--loss_cap={LOSS_CAP}")
  found.append(jobs.Stage("evaluate", "configs/mnist_evaluate.cfg", f"{run}-report", arguments))
  return [
    dataclasses.replace(stage, arguments=stage.arguments + list(extra.get(stage.module, ())))
    for stage in found
  ]


# --- Writing ---


def commands(document, options=""):
  """The commands, as Markdown: for the table, for each row, and those of one seed."""
  (example,) = (row for row in ROWS if row.name == "vae_urkle")
  run = [stage.text for stage in stages(example, 0, "RUNS", ["--data_dir=DATA_DIR"])]
  lines = ["    python experiments/reproduce_mnist.py" + options, "", "One row of the table:", ""]
  lines += ["    " + row["command"] for row in document["rows"]]
  lines += ["", f"For each seed that runs, here for {example.system},", ""]
  return "\n".join(lines + ["    " + line for line in run])


def publish(work, page_file, json_file, options=""):
  """Writes mnist.json, the page and its figure from the results so far."""
  document = mnist_page.collect(work, ROWS, options)
  if not document["rows"]:
    return
  pages.write(json_file, document)
  mnist_page.draw(document, page_file.with_suffix(".png"))
  pictures = {
    "": "Clean and adversarial accuracy of every row",
    "_latent_map": "Samples of z, clean and attacked",
    "_reconstructions": "Reconstructions by VAE+Urkle",
  }
  names = {title: f"{page_file.stem}{ending}.png" for ending, title in pictures.items()}
  shown = [
    f"![{title}]({name})" for title, name in names.items() if (page_file.parent / name).exists()
  ]
  blocks = {
    "table": mnist_page.table(document),
    "bound": mnist_page.bound_table(document),
    "pictures": "\n\n".join(shown),
    "commands": commands(document, options),
  }
  pages.update(page_file, blocks)


# --- The command line ---


def reproduce(argv=None):
  """The command line, without the handling of errors."""
  given = jobs.parser(__doc__, "mnist", ROWS, "mnist").parse_args(argv)
  asked = jobs.read(given, "mnist", ROWS, "mnist")
  page_file, work = asked.page_file, jobs.ROOT / asked.work
  rows = (stages(row, seed, asked.work, asked.shared, asked.extra) for seed, row in asked.turns())
  written = functools.partial(publish, work, page_file, asked.json_file, asked.options)
  ran = jobs.run_rows(rows, written, page_file)
  latent_map, reconstructions = (
    page_file.with_name(f"{page_file.stem}_{name}.png")
    for name in ("latent_map", "reconstructions")
  )
  folders = {row.system: work / f"{row.name}-0" / "encoder" for row in map(find_row, LATENT_MAP)}
  folders = {system: path for system, path in folders.items() if path.exists()}
  if folders and (ran or not latent_map.exists()):
    mnist_page.draw_latent_map(folders, latent_map, asked.dataset or "mnist", asked.data_dir)
  drawn = work / "vae_urkle-0" / "figures" / "reconstructions.png"
  if drawn.exists():
    shutil.copyfile(drawn, reconstructions)
  written()  # with the pictures


if __name__ == "__main__":
  jobs.main(reproduce)
