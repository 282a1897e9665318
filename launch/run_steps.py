#!/usr/bin/env python3
"""Trains with a step that launch/export_step.py wrote; needs JAX and NumPy alone.

  python run_steps.py RUN/program --minutes=9

Copy this file and the folder to the machine.  Into the folder go log.jsonl, a row an epoch, and
checkpoint step_*.npz, from which the same command goes on; in RUN/checkpoints at home,
`python -m urkle_tf.train` goes on from it too.  Batches are drawn in another order than there.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)  # steps are counted in int64
from jax._src.lib import xla_client  # noqa: E402


def _compiled(file):
  """The program as a function of a list of arrays on the device, which returns such a list."""
  module = xla_client._xla.mlir.hlo_to_stablehlo(file.read_bytes())
  device = jax.devices()[0]
  executable = device.client.compile_and_load(
    module, xla_client.DeviceList((device,)), xla_client.CompileOptions()
  )
  return executable.execute


def _newest(folder):
  """(step, state) of the newest checkpoint, or of the beginning."""
  file = max(folder.glob("step_*.npz"), default=folder / "state.npz")
  with np.load(file, allow_pickle=False) as stored:
    return int(stored["step"]), {name: stored[name] for name in stored.files if name != "step"}


def _save(folder, step, state):
  side = folder / "side.npz"
  np.savez(side, step=np.int64(step), **{name: np.asarray(value) for name, value in state.items()})
  side.replace(folder / f"step_{step:09d}.npz")


def train(folder, data, minutes):
  """Runs steps until all are done or the time is over, and saves the state."""
  described = json.loads((folder / "step.json").read_text())
  step, state = _newest(folder)
  began = time.time()
  execute = _compiled(folder / "step.hlo")
  print(f"{jax.devices()[0]}: compiled in {time.time() - began:.1f} s", flush=True)
  with np.load(data, allow_pickle=False) as stored:
    arrays = [jax.device_put(stored[name]) for name in ("images", "labels") if name in stored.files]
  arrays = arrays[: len(described["batch"])]
  gather = jax.jit(lambda array, index: array[index])
  inputs, outputs = described["inputs"], {int(k): v for k, v in described["outputs"].items()}
  used = {name: jax.device_put(state[name]) for name in inputs}
  size, per_epoch = described["batch"][0][1][0], described["steps_per_epoch"]
  began, deadline = time.time(), time.time() + 60 * minutes
  while step < described["steps"] and time.time() < deadline:
    epoch, first = divmod(step, per_epoch)
    order, rows = np.random.default_rng(epoch).permutation(len(arrays[0])), []
    epoch_began = time.time()
    for number in range(first, per_epoch):
      index = jax.device_put(order[number * size : (number + 1) * size])
      batch = [gather(array, index) for array in arrays]
      found = execute(batch + [used[name] for name in inputs])
      for position, name in outputs.items():
        used[name] = found[position]
      rows.append(found[0])
      step += 1
      if len(rows) % 20 == 0:
        found[0].block_until_ready()  # a device works on while Python is done
        if time.time() > deadline:
          break
    means = np.mean([np.asarray(row) for row in rows], axis=0)
    seconds = time.time() - epoch_began
    row = {
      "step": step,
      "epoch": step / per_epoch,
      "seconds": round(time.time() - began, 3),
      "images_per_second": round(len(rows) * size / seconds, 1),
      **dict(zip(described["metrics"], map(float, means))),
    }
    print(json.dumps(row), flush=True)
    with open(folder / "log.jsonl", "a") as log:
      log.write(json.dumps(row) + "\n")
  _save(folder, step, {**state, **used})


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=pathlib.Path, help="RUN/program")
  parser.add_argument(
    "--data", type=pathlib.Path, help="images (and labels), .npz; FOLDER/data.npz"
  )
  parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
  options = parser.parse_args()
  train(options.folder, options.data or options.folder / "data.npz", options.minutes)


if __name__ == "__main__":
  main()
