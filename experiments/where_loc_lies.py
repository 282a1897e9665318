#!/usr/bin/env python3
"""Compares where loc lies, and how strong the KL is, on validation images.

  python experiments/where_loc_lies.py --data_dir=DATA_DIR --work=runs/where_loc_lies

Encoders and heads are trained on train[:45000] of CIFAR-10, and measured on 2,000 of the other
training images.  Finished parts are not run again.  Prints the table as Markdown.
"""

import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf.output import tables

FORMS = ("sphere", "centred_sphere", "pooled", "dense", "dense_sphere")
CELLS = ("simclr", "simclr_urkle", "rocl", "acl_ds", "distil_urkle")
LEARN, CHECK = "--split=train[:45000]", "--split=train[45000:47000]"
TRAIN = (
  *("--attack_steps=3", "--batch_size=128", "--optimizer=adamw", "--learning_rate=0.01"),
  *("--warmup_epochs=0.3", "--precision=mixed_bfloat16"),
)
EVALUATE = ("--attacks=pgd(steps=20)", "--epsilons=8/255,16/255", "--standing", "--nochecks")


def figures(run, report):
  """{title: figure} of a cell, a form and a seed, from its run's folder and its report."""
  clean, (weak, strong) = pages.served(report)
  return {
    "clean": 100 * clean["accuracy"],
    "PGD-20 at 8/255": 100 * weak["accuracy"],
    "at 16/255": 100 * strong["accuracy"],
    "effective rank": report["representation"]["effective_rank"],
    "minutes": pages.training_minutes(run),
  }


def stages(name, form, seed, options):
  """The commands of a cell, a form and a seed."""
  work = jobs.within(options.work)
  run = f"{work}/{name}-{form}-{seed}"
  contrast = f"--pretext={options.pretext}"
  taught = f"{work}/simclr-{form}-{seed}"
  teacher = f"{taught}/encoder" + ", start=true" * options.start
  cell = {
    "simclr": [contrast, "--robustness=none"],
    "simclr_urkle": [contrast, f"--robustness=urkle(k={options.k}, attacked=1)"],
    "rocl": [contrast, "--robustness=rocl"],
    "acl_ds": [contrast, "--robustness=acl(form=ds)"],
    "distil_urkle": [
      f"--pretext=distil(teacher={teacher})",
      *(f"--robustness=urkle(k={options.k})", "--augment=crop(padding=4)"),
    ],
  }[name]
  data = ["--dataset=cifar10"]
  data += [f"--data_dir={jobs.within(options.data_dir)}"] if options.data_dir else []
  own = [f"--encoder={options.encoder}", f"--loc={form}", f"--seed={seed}"]
  own += [f"--epochs={options.epochs}", *cell, *jobs.words("extra_train", options.extra_train)]
  # The head chooses its weight decay: by clean accuracy for SimCLR, else under attack.
  head = [*data, LEARN, f"--encoder={run}/encoder", "--epochs=20"]
  tested = [*data, CHECK, f"--classifier={run}-head/classifier", *EVALUATE]
  train, *rest = jobs.stages(run, None, [*data, LEARN, *TRAIN, *own], head, tested)
  if name == "distil_urkle":
    train = dataclasses.replace(train, of=pages.fingerprint(taught))
  return [train, *rest]


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--data_dir", help="folder in which TFDS has prepared cifar10")
  add("--work", default="runs/where_loc_lies", help="the folder of all runs")
  add("--encoder", default="convnet(width=32)")
  add("--epochs", type=int, default=1)
  add("--pretext", default="simclr(temperature=0.5)", help="pretext of all cells except distil")
  add("--k", type=float, default=8.0, help="strength of the KL in both Urkle cells")
  add("--start", action="store_true", help="start students from their teachers' weights")
  add("--extra_train", action=jobs.More, default="", help="further flags of every training")
  add("--seeds", type=int, nargs="+", default=[0, 1])
  add("--forms", nargs="+", choices=FORMS, default=FORMS)
  add("--cells", nargs="+", choices=CELLS, default=CELLS)
  options = parser.parse_args()
  lines = []
  for name in options.cells:
    for form in options.forms:
      found = []
      for seed in options.seeds:
        run, _, report = commands = stages(name, form, seed, options)
        jobs.run_stages(commands)
        content = pages.read(jobs.ROOT / report.folder / "report.json")
        found.append(figures(jobs.ROOT / run.folder, content))
      *columns, minutes = zip(*(row.values() for row in found), strict=True)
      cells = [" / ".join(f"{value:.1f}" for value in column) for column in columns]
      lines.append([name, form, *cells, f"{statistics.fmean(minutes):.1f}"])
  print(tables.markdown(["cell", "loc", *found[0]], lines))


if __name__ == "__main__":
  jobs.main(main)
