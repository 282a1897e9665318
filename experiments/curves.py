#!/usr/bin/env python3
"""Draws curves of several runs: python experiments/curves.py OUT.png NAME=RUN [NAME=RUN ...]."""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import errors
from urkle_tf.output import files

# (metric, title); a run without the metric is left out of the panel.
PANELS = [
  ("loss", "loss"),
  ("nt_xent", "NT-Xent"),
  ("kl", "KL of the training pass, nats"),
  ("attack_objective", "what the attack maximised, nats"),
  ("kl_scale_part", "part of KL from the scales, nats"),
  ("sigma_mean", "sigma: mean (min to max shaded)"),
  ("snr", "mean of |mu| / sigma"),
  ("effective_rank", "effective rank of mu"),
  ("loc_std", "standard deviation of mu"),
  ("zero_gradients", "share of zero input gradients"),
  ("gradient_norm", "norm of the gradient"),
  ("knn_accuracy", "online 20-nearest-neighbour accuracy"),
]


def draw(runs, file):
  """Draws the panels.

  Args:
    runs: {name: rows of its metrics.jsonl}.
    file: the PNG to write, a `pathlib.Path`.
  """
  figure, axes = plt.subplots(3, 4, figsize=(15, 8.5), constrained_layout=True)
  for axis, (key, title) in zip(axes.flat, PANELS, strict=True):
    for index, (name, rows) in enumerate(runs.items()):
      # A row has no value if all of its steps were skipped.
      known = [row for row in rows if row.get(key) is not None]
      if not known:
        continue
      epochs, values = ([row[column] for row in known] for column in ("epoch", key))
      axis.plot(epochs, values, label=name, color=f"C{index}", linewidth=1.2)
      if key == "sigma_mean":
        low, high = ([row[f"sigma_{end}"] for row in known] for end in ("min", "max"))
        axis.fill_between(epochs, low, high, color=f"C{index}", alpha=0.2)
    if key in ("kl", "attack_objective", "gradient_norm", "effective_rank"):
      axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch", fontsize=8)
    axis.grid(alpha=0.3)
  axes.flat[0].legend(fontsize=9)
  files.write(file, lambda stream: figure.savefig(stream, dpi=80, format="png"))


def main():
  """The command line."""
  picture = pathlib.Path(*sys.argv[1:2])
  pairs = pages.named_folders(sys.argv[2:] if picture.suffix == ".png" else (), __doc__)
  runs = {}
  for name, folder in pairs:
    if name in runs:
      raise errors.UserError(f"{name} is given twice: give each run another name")
    runs[name] = pages.metrics(folder)
    if not runs[name]:
      file = folder / "metrics.jsonl"
      what = f"{file} does not exist, or is empty"
      raise errors.UserError(f"{what}: give the folder of a training")
  draw(runs, picture)


if __name__ == "__main__":
  jobs.main(main)
