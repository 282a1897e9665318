#!/usr/bin/env python3
"""Where loc should lie: every form of `--loc` in four cells, on validation images.

  python experiments/where_loc_lies.py --data_dir=DATA_DIR --work=runs/where_loc_lies

Pre-training and heads see train[:45000] of CIFAR-10; every figure is of 2,000 of the other
images.  What is finished is not run again.  Prints the table as Markdown.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import numpy as np

import urkle_tf
from experiments import jobs, pages
from urkle_tf.evaluation.representation import effective_rank
from urkle_tf.output import files, tables

FORMS = ("sphere", "centred_sphere", "pooled", "dense", "dense_sphere")
CELLS = ("simclr", "simclr_urkle", "rocl", "distil_urkle")
LEARN, CHECK = "train[:45000]", "train[45000:47000]"


def measured(run, training, k, data):
  """Trains a cell, its head, and measures both; once.  {name: number}."""
  file = run / "figures.json"
  if file.exists():
    return pages.read(file)
  row = urkle_tf.pretrain(str(run), split=LEARN, **training, **data)
  # The head chooses its weight decay: by clean accuracy for SimCLR, else under attack.
  urkle_tf.adapt(str(run / "encoder"), str(run) + "-head", split=LEARN, epochs=20, **data)
  report = urkle_tf.assess(
    str(pathlib.Path(str(run) + "-head") / "classifier"),
    split=CHECK,
    attacks="pgd(steps=20)",
    epsilons=[8 / 255, 16 / 255],
    representation_examples=0,
    checks=False,
    standing=True,
    **data,
  )
  loc = urkle_tf.represent(str(run / "encoder"), split=CHECK, **data)["loc"]
  clean, attacks = pages.served(report)
  figures = {
    "clean": clean["accuracy"],
    **{f"at {tables.radius(row['epsilon'], row['norm'])}": row["accuracy"] for row in attacks},
    "effective rank": effective_rank(loc),
    "sigma / spread": row["sigma_over_spread"],
    "minutes": row["seconds"] / 60,
  }
  files.write(file, json.dumps(figures))
  return figures


def cell(name, form, seed, options, work):
  """The settings of `pretrain` for a cell of the comparison."""
  training = {
    "encoder": options.encoder,
    "loc": form,
    "seed": seed,
    "attack_steps": 3,
    "batch_size": 128,
    "epochs": options.epochs,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "warmup_epochs": 0.3,
    "precision": "mixed_bfloat16",
    "pretext": "simclr(temperature=0.5)",
    "robustness": "none",
  }
  if name == "simclr_urkle":
    training["robustness"] = f"urkle(k={options.k}, attacked=1)"
  elif name == "rocl":
    training["robustness"] = "rocl"
  elif name == "distil_urkle":
    training |= {
      "pretext": f"distil(teacher={work / f'simclr-{form}-{seed}' / 'encoder'})",
      "robustness": f"urkle(k={options.k})",
      "augment": "crop(padding=4)",
    }
  return training


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("--data_dir", help="where cifar10 lies, prepared by TensorFlow Datasets")
  parser.add_argument("--work", default="runs/where_loc_lies", help="the folder of all runs")
  parser.add_argument("--encoder", default="convnet(width=32)")
  parser.add_argument("--epochs", type=int, default=1)
  parser.add_argument("--k", type=float, default=8.0, help="of both Urkle cells")
  parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
  parser.add_argument("--forms", nargs="*", default=FORMS)
  parser.add_argument("--cells", nargs="*", default=CELLS)
  options = parser.parse_args()
  data = {"dataset": "cifar10", "data_dir": options.data_dir}
  work, rows = pathlib.Path(options.work), []
  for name in options.cells:
    for form in options.forms:
      found = []
      for seed in options.seeds:
        training = cell(name, form, seed, options, work)
        found.append(measured(work / f"{name}-{form}-{seed}", training, options.k, data))
        print(name, form, seed, found[-1], file=sys.stderr, flush=True)
      rows.append((name, form, found))
  head = ["cell", "loc", "clean", "PGD-20 at 8/255", "at 16/255", "effective rank", "minutes"]
  lines = []
  for name, form, found in rows:
    of = lambda key, factor: " / ".join(f"{factor * row[key]:.1f}" for row in found)  # noqa: E731, B023
    cells = [*(of(key, 100) for key in ("clean", "at 8/255", "at 16/255")), of("effective rank", 1)]
    lines.append([name, form, *cells, f"{np.mean([row['minutes'] for row in found]):.1f}"])
  print(tables.markdown(head, lines))


if __name__ == "__main__":
  jobs.main(main)
