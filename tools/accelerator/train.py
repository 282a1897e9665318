#!/usr/bin/env python3
r"""Trains with steps that export.py wrote, one run after the other; needs JAX, NumPy and Pillow.

  python train.py OUT --data=IMAGES.tar.xz teacher=PROGRAM:until=272 \\
    student=PROGRAM2:until=535,teacher=teacher

Each run is NAME=PROGRAM, and after a colon
  until=SECONDS   when it ends, from the start of this command on: the cosine of a program that was
                  exported with --minutes ends then; another one ends sooner if its steps are done
  teacher=NAME    a run before it, whose encoder a distil program is given, and starts from if it
                  was exported with distil(start=true); or another folder's: ../earlier/teacher

All programs are compiled first.  OUT gets log.jsonl, and of each run the encoder (NAME_0.npz,
NAME_1.npz, ..., each below 16 MB) and NAME.json, from which encoder.py makes a folder at home.
"""

import argparse
import itertools
import json
import pathlib
import sys
import threading
import time

import arrays
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)  # steps are counted in int64
from jax._src.lib import xla_client  # noqa: E402  no public name compiles a program as it is

_BEGAN = time.time()
_EVERY = 15  # seconds between two rows of the log


def _seconds():
  return time.time() - _BEGAN


class Program:
  """A compiled step, and the state that it moves.

  Args:
    folder: what export.py wrote, a `pathlib.Path`.

  Attributes:
    described: what step.json says.
    state: {name: array on the device}.
  """

  def __init__(self, folder):
    self.described, state = arrays.read_program(folder)
    device = jax.devices()[0]
    self._execute = device.client.compile_and_load(
      (folder / arrays.PROGRAM).read_bytes(),
      xla_client.DeviceList((device,)),
      xla_client.CompileOptions(),
    ).execute
    self._outputs = {int(place): name for place, name in self.described["outputs"].items()}
    self.state = {name: jax.device_put(value) for name, value in state.items()}

  def assign(self, names, values):
    """Gives an encoder's arrays to parts of the state."""
    shapes = ["x".join(map(str, value.shape)) for value in values]
    if shapes != [name.rpartition("_")[2] for name in names]:
      sys.exit("error: the encoder that is given has other layers than the one in this program")
    for name, value in zip(names, values):
      self.state[name] = jax.device_put(value.astype(np.float32))

  def step(self, batch):
    """Takes a step on arrays on the device; returns its metrics, when it is done."""
    found = self._execute([*batch, *(self.state[name] for name in self.described["inputs"])])
    for place, name in self._outputs.items():
      self.state[name] = found[place]
    return found[0]

  def encoder(self):
    """The encoder's arrays."""
    return [np.asarray(self.state[name]) for name in self.described["encoder"]]


def _batches(data, size):
  """Batches without end: the images, and the labels, in an order of each epoch's own."""
  gather = jax.jit(lambda array, rows: array[rows])
  for epoch in itertools.count():
    order = np.random.default_rng(epoch).permutation(len(data[0]))
    for first in range(0, len(order) - size + 1, size):
      rows = jax.device_put(order[first : first + size])
      yield [gather(array, rows) for array in data]


def train(name, program, data, until, log):
  """Runs steps until the time is over, or those of a training by steps are done.

  Args:
    name: of the run.
    program: a `Program`.
    data: arrays on the device: the images, and the labels if the program reads them.
    until: seconds from the start of this command on.
    log: is called with what is to be written down.

  Returns:
    (epochs that were done, minutes that it took).
  """
  described, began = program.described, _seconds()
  if until <= began or (described["clock"] and until == float("inf")):
    sys.exit(f"error: {name} has no time: give a later until=SECONDS (now: {began:.0f})")
  size, rows, step = described["batch"][0][1][0], [], 0
  if len(data[0]) < size:
    sys.exit(f"error: {name} takes batches of {size}, and there are {len(data[0])} images")
  per_epoch, marked = len(data[0]) // size, (_seconds(), 0)

  def row():
    nonlocal rows, marked
    values = np.array(rows)
    if not np.isfinite(values[:, described["metrics"].index("loss")]).any():
      sys.exit(f"error: the loss of {name} is not finite")
    seconds, done = _seconds() - marked[0], step - marked[1]
    rows, marked = [], (_seconds(), step)
    values = dict(zip(described["metrics"], map(float, values.mean(0))))
    rate = done * size / seconds
    log(run=name, step=step, epoch=step / per_epoch, images_per_second=rate, **values)

  for batch in _batches(data, size):
    share = (_seconds() - began) / (until - began)
    if share >= 1 or step == described["steps"]:
      break
    if described["clock"]:
      program.state[described["clock"]] = jax.device_put(np.float32(share))
    rows.append(program.step(batch))
    step += 1
    if step % 10 == 0:
      rows[-1].block_until_ready()  # Python must not run ahead of the device, nor the clock
      if _seconds() - marked[0] > _EVERY:
        row()
  if rows:
    row()
  return step / per_epoch, (_seconds() - began) / 60


def _run(text):
  """(name, folder, options) of NAME=PROGRAM:option=value,option=value."""
  head, _, options = text.partition(":")
  name, _, folder = head.partition("=")
  options = dict(option.split("=", 1) for option in options.split(",") if option)
  if not folder or set(options) - {"until", "teacher"}:
    raise ValueError(text)
  return name, pathlib.Path(folder), options


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("out", type=pathlib.Path, help="where log and encoders go")
  parser.add_argument("--data", required=True, help="an archive of SPLIT/CLASS/FILE, or .npz")
  parser.add_argument("runs", type=_run, nargs="+", metavar="NAME=PROGRAM[:option=value,...]")
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)

  def log(**row):
    row = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
    row["seconds"] = round(_seconds(), 1)
    print(json.dumps(row), flush=True)
    with open(options.out / "log.jsonl", "a") as file:
      file.write(json.dumps(row) + "\n")

  images, programs = {}, {}
  reader = threading.Thread(target=lambda: images.update(arrays.read_images(options.data)))
  reader.start()
  log(device=str(jax.devices()[0]))
  for name, folder, given in options.runs:
    programs[name] = Program(folder)
    if programs[name].described["teacher"] and "teacher" not in given:
      sys.exit(f"error: the program of {name} needs a teacher: give teacher=NAME")
    log(compiled=name)
  reader.join()
  data = [jax.device_put(images[f"train_{kind}"]) for kind in ("images", "labels")]
  for name, _, given in options.runs:
    program = programs.pop(name)
    if "teacher" in given:
      prefix = options.out / given["teacher"]
      parts = sorted(prefix.parent.glob(f"{prefix.name}_*.npz"))
      if not parts:
        sys.exit(f"error: there is no {prefix}_0.npz: let the teacher of {name} run before it")
      values = arrays.read_weights(parts)
      program.assign(program.described["teacher"], values)
      if program.described["starts_from_teacher"]:
        program.assign(program.described["start"], values)
    count = len(program.described["batch"])
    epochs, minutes = train(name, program, data[:count], float(given.get("until", "inf")), log)
    arrays.write_weights(options.out / name, program.encoder())
    about = {key: program.described[key] for key in ("batch", "encoder_paths", "settings")}
    about["settings"] |= {"epochs": epochs, "minutes": minutes, "examples": len(data[0])}
    (options.out / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
  main()
