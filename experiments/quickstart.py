"""Trains on real digits without labels, without and with Urkle, attacks both, and writes a page.

  python experiments/quickstart.py [FOLDER]

launch/quickstart.sh runs it in an environment with everything that it needs.  It prints each
command, and runs it in this process, so that TensorFlow starts only once.  FOLDER is
runs/quickstart by default.  Give the same command again to resume.
"""

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import quiet  # noqa: F401

# isort: split

import tensorflow as tf
from absl import flags

import urkle_tf
from experiments import effect, jobs, table
from urkle_tf import attacks, command_line, export, settings
from urkle_tf.data import sources
from urkle_tf.evaluation.report import document
from urkle_tf.evaluation.report.page import page
from urkle_tf.output import files

CONFIG = "configs/digits.cfg"
TRAINED = ["--epochs=20", "--attack_steps=3"]  # of the config's 60 and 5: for two cores
# PGD alone fails the report's check "effort".  APGD on three targets finds what more steps would.
MEASURED = ["--attacks=pgd,apgd_t(steps=40, targets=3)", "--representation_examples=0"]
SYSTEMS = {"SimCLR": ("simclr", ["--robustness=none"]), "SimCLR+Urkle": ("simclr_urkle", [])}
FUNCTIONS = {
  "train": (urkle_tf.pretrain, settings.Pretrain),
  "finetune": (urkle_tf.adapt, settings.Adapt),
  "evaluate": (urkle_tf.assess, settings.Assess),
}


def stages(folder):
  """The commands of both systems, in order: {name of the system: [three of `jobs.Stage`]}."""
  found = {}
  for system, (name, changes) in SYSTEMS.items():
    run, data = f"{folder}/{name}", "--dataset=digits"
    unchecked = ["--nochecks"] if system == "SimCLR" else []
    head = [f"--encoder={run}/encoder", data, "--weight_decay=1"]
    tested = [f"--classifier={run}-slf/classifier", data, *MEASURED, *unchecked]
    found[system] = jobs.stages(run, CONFIG, [*changes, *TRAINED], head, tested, ending="slf")
  return found


def call(stage):
  """Runs a command in this process; returns the result of its function."""
  function, known = FUNCTIONS[stage.module]
  given = flags.FlagValues()
  names = command_line.define(known, given)
  given(stage.words[1:])
  print(f"\n== {stage.text}", flush=True)
  return function(**{name: given[name].value for name in names})


def picture(folder, reports):
  """Draws eight test digits, attacked, with the predictions of both classifiers."""
  report = reports["SimCLR+Urkle"]
  threat = attacks.from_norm(*(report["config"][name] for name in ("norm", "epsilon")))
  models = {
    system: export.load_classifier(f"{folder}/{name}-slf/classifier")
    for system, (name, _) in SYSTEMS.items()
  }
  title = "Each classifier on its own adversary: ✓ still right, ✗ now wrong"
  file = pathlib.Path(folder, "effect.png")
  effect.show(file, models, sources.load("digits", "test"), threat, title, 40)
  return document.Picture(file.name, "The same eight digits, attacked", title)


def written(folder, reports, shown, seconds):
  """Writes the page, with `shown` as its table; returns its path."""
  robust = reports["SimCLR+Urkle"]
  lines = [line.strip("| ").split(" | ") for line in shown.splitlines()]
  failed = [check["name"] for check in robust["checks"] if not check["passed"]]
  share = lambda report: f"{100 * min(r['accuracy'] for r in report['attacks']):.1f}%"  # noqa: E731
  parts = [
    document.Heading("An encoder with and without Urkle", 1),
    document.Text(
      "Both encoders learned from the same digits, without a label. A linear classifier on each "
      "was trained on clean images. Then an attack changed every pixel by at most 0.1, to make "
      "each classifier wrong. Accuracies are in percent of 360 test images, with 95% intervals."
    ),
    document.Glance(
      [
        (f"{system}, attacked", share(report), "lowest of all attacks")
        for system, report in reports.items()
      ]
    ),
    document.Table("Accuracy of both", lines[0], lines[2:]),
    picture(folder, reports),
    document.Picture(
      "simclr_urkle/figures/latent_map.png",
      "Twenty samples of z for ten digits: clean on the left, attacked on the right",
      "With Urkle, the samples of an attacked digit stay near those of the clean one.",
    ),
    document.Heading("Can the figures be believed?"),
    document.Text(
      f"Checks that failed: {', '.join(failed)}. See simclr_urkle-report/report.md."
      if failed
      else "All checks for masked gradients passed. The numbers are in "
      "simclr_urkle-report/report.md. The figures are an upper bound on the accuracy under any "
      "attack, not a guarantee."
    ),
    document.Heading("What to try next"),
    document.Items(
      [
        "Your images: docs/start.md takes you from a folder of photos to a report.",
        "Weights that come with the package: README.md shows them in ten lines of Python.",
        "Every curve and picture of both trainings: tensorboard --logdir=" + folder,
        "A network that you have already trained: docs/robustify.md makes it robust.",
        "What the figures mean, and what they do not: docs/robustness.md.",
      ]
    ),
    document.Text(f"Made in {seconds:.0f} s by launch/quickstart.sh."),
  ]
  file = pathlib.Path(folder, "index.html")
  files.write(file, page(parts, pathlib.Path(folder)))
  return file.absolute()


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("folder", nargs="?", default=jobs.ROOT / "runs" / "quickstart")
  folder = jobs.within(parser.parse_args().folder)
  tf.get_logger().setLevel("ERROR")  # as in the commands: no warnings about retracing
  started, busy = time.perf_counter(), time.process_time()
  os.chdir(jobs.ROOT)
  reports = {system: [call(s) for s in steps][-1] for system, steps in stages(folder).items()}
  seconds = time.perf_counter() - started
  shown = table.table({system: [report] for system, report in reports.items()})
  file = written(folder, reports, shown, seconds)
  print("\n" + shown)
  busy = time.process_time() - busy
  print(f"\nTook {seconds:.0f} s, {busy:.0f} s of CPU time. Open this page: {file.as_uri()}")


if __name__ == "__main__":
  jobs.main(main)
