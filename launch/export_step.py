#!/usr/bin/env python3
r"""Writes the compiled training step of a run, for a GPU machine that has JAX and no TensorFlow.

  python launch/export_step.py --flagfile=configs/cifar10_cpu.cfg --augment_on_device \\
    --output_dir=RUN --data_dir=DATA_DIR

Flags are those of urkle_tf.train.  RUN/program holds the step, the state it begins with and, but
for --nowrite_data, the images; launch/run_steps.py runs them there.  What it saves goes back into
RUN/checkpoints: `python -m urkle_tf.train` with the same flags goes on from it, or exports.
"""

import pathlib
import sys

sys.path.insert(
  0, str(pathlib.Path(__file__).resolve().parents[1])
)  # a clone that was not installed

from urkle_tf import command_line, train


def export(write_data, dry_run, **settings):
  """Writes RUN/flags.cfg and RUN/program."""
  del dry_run
  pretraining = command_line.load("pretraining")
  import numpy as np

  from urkle_tf import checkpoints, errors, files, programs, runs

  run = runs.open_run(settings["output_dir"], settings)
  try:
    with pretraining.prepared(settings) as job:
      checkpoints.Checkpoints(run.path / "checkpoints", job.state).restore()
      programs.export_step(job, run.path / "program")
      if write_data:
        images = getattr(job.source, "images", None)
        if images is None:
          raise errors.UserError("the images do not fit in memory: give --nowrite_data")
        arrays = {"images": images}
        if job.learner.pretext.needs_labels:
          arrays["labels"] = np.asarray(job.source.labels, np.int32)
        files.write(run.path / "program" / "data.npz", lambda file: np.savez(file, **arrays))
  finally:
    run.close()
  print(run.path / "program")


def main():
  """The command line."""
  own = {**train._OWN, "write_data": ("bool", True, "write the images beside the program")}
  command_line.run(export, command_line.define(train._SHARED, own))


if __name__ == "__main__":
  main()
