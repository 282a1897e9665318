#!/usr/bin/env python3
r"""Writes the compiled training step of a cell, for a machine that has JAX and no TensorFlow.

  python tools/accelerator/export.py --output_dir=PROGRAM --flagfile=configs/cifar10.cfg \
    --augment_on_device

Flags are those of urkle_tf.train.  PROGRAM gets the step, a description of it, and the state that
the training begins with; train.py runs it there.
"""

import dataclasses
import json
import pathlib
import re
import sys
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # not installed works too

import arrays

from urkle_tf import command_line, errors, settings
from urkle_tf.output import files


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Export(settings.Pretrain):
  """The flags."""

  redraw: bool = settings.setting(
    False, "draw large initial kernels again on that machine: a few MB to copy instead of 50"
  )
  write_encoder: str | None = settings.setting(
    None, "write the encoder at its start here, for distil(teacher=HERE)"
  )
  trust: bool = settings.shared("trust")


def export(redraw=False, write_encoder=None, **given):
  """Writes PROGRAM, and the encoder if that is asked for.

  Args:
    redraw: as the flag.
    write_encoder: the same.
    **given: settings of `urkle_tf.pretrain`; `output_dir` is PROGRAM.
  """
  jobs = command_line.load("training.jobs")
  from urkle_tf import export as exports

  with jobs.prepared(given) as job:
    export_step(job, given["output_dir"], redraw)
    if write_encoder:
      exports.export_encoder(job.learner.encoder, write_encoder)
  print(given["output_dir"])


def export_step(job, folder, redraw=False):
  """Writes the step of a training: augmentation, attack, loss, update and all.

  The program takes the batch, images uint8 [n, h, w, c] and, if the pretext reads them, labels
  int32 [n], then the inputs that the description names; it returns the metrics as one float32
  vector, and then new values of some of the inputs.  All its randomness follows from the seed and
  the state.  A distil teacher's weights are among the inputs.

  Args:
    job: a `jobs.Job` whose augmentation runs in the step.
    folder: where to.
    redraw: whether large initial kernels, in `job` too, are replaced by normal random numbers of
      the same standard deviation, for which the description has three numbers each.

  Raises:
    UserError: if the augmentation runs elsewhere, or the job has several replicas.
  """
  import tensorflow as tf

  from urkle_tf import distribution
  from urkle_tf.export import description
  from urkle_tf.pretexts import distil
  from urkle_tf.training import checkpoints

  learner, settings = job.learner, job.settings
  if not settings["augment_on_device"]:
    raise errors.UserError("a step that runs elsewhere augments itself: give --augment_on_device")
  if job.scope.num_replicas_in_sync > 1:
    raise errors.UserError("a step is exported for one device: give --strategy=one")
  pretext = learner.pretext
  teacher = pretext.thaw() if isinstance(pretext, distil.Distil) else []
  if (
    redraw and pretext.start and not teacher
  ):  # a teacher that is no input is part of the initial state
    raise errors.UserError(
      "--redraw would replace the weights that start=true copied: leave it out"
    )
  metrics = learner.means.names

  @tf.function(jit_compile=True, autograph=False)
  def step(images, *labels):
    values = learner.step({"image": images, **dict(zip(["label"], labels))})
    return tf.stack([values[name] for name in metrics])

  shape = [settings["batch_size"], *job.source.image_shape]
  batch = [tf.zeros(shape, tf.uint8)]
  if pretext.needs_labels:
    batch.append(tf.zeros(shape[:1], tf.int32))
  text = step.experimental_get_compiler_ir(*batch)("stablehlo")
  # The order of the program's parameters: the batch, then what the function reads and writes.
  variables = dict(zip(checkpoints.names(job.state), job.state, strict=True))
  teacher = {f"teacher_{name}": v for name, v in zip(checkpoints.names(teacher), teacher)}
  known = {id(v.value.handle): name for name, v in {**variables, **teacher}.items()}
  inputs = [known[id(h)] for h in step.get_concrete_function(*batch).captured_inputs]
  name_of = {id(v): name for name, v in variables.items()}
  averages = dict(zip(map(id, learner.averages.weights), learner.averages.variables))
  weights = learner.encoder.network.weights
  small, drawn = {}, {}
  for name, variable in variables.items():
    value = distribution.plain(variable)
    if redraw and value.size > arrays.LARGE and value.std() > 0:
      # By its content, so that copies stay copies.
      drawn[name] = [list(value.shape), float(value.std()), zlib.crc32(value.tobytes())]
    else:
      small[name] = value
  described = {
    "batch": [[tensor.dtype.name, tensor.shape.as_list()] for tensor in batch],
    "inputs": inputs,
    "outputs": {output: inputs[number - len(batch)] for output, number in _updates(text)},
    "metrics": metrics,
    "steps": job.steps,
    "clock": name_of[id(learner.clock)] if learner.clock is not None else None,
    "start": [name_of[id(weight)] for weight in weights],
    "encoder": [name_of[id(averages.get(id(weight), weight))] for weight in weights],
    "encoder_paths": [weight.path for weight in weights],
    "teacher": list(teacher),
    "starts_from_teacher": bool(teacher) and pretext.start,
    "drawn": drawn,
    "settings": description.settings_without_paths(
      {**settings, "loc": settings["loc"] or pretext.loc}
    ),
  }
  folder = pathlib.Path(folder)
  files.write(folder / arrays.PROGRAM, _portable(text))
  files.write(folder / arrays.DESCRIPTION, json.dumps(described) + "\n")
  files.write(folder / arrays.STATE, lambda file: np.savez_compressed(file, **small))
  if redraw:
    _, state = arrays.read_program(folder)
    for name in drawn:
      variables[name].assign(state[name])


def _updates(text):
  """[(output, parameter)]: the results that are new values of parameters, by StableHLO's text."""
  pairs = re.findall(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>", text)
  return [(int(output), int(parameter)) for parameter, output in pairs]


def _portable(text):
  """TensorFlow's StableHLO in the form that later versions read, without what is not StableHLO.

  Above all without mhlo.copy, which CPUs compile and GPUs refuse: a reshape to the same type
  gives the same.
  """
  from tensorflow.compiler.mlir.stablehlo import stablehlo

  text = re.sub(
    r"mhlo\.copy (%[\w#]+) : (tensor<[^>]*>)", r"stablehlo.reshape \1 : (\2) -> \2", text
  )
  text = re.sub(r" \{mhlo\.frontend_attributes = \{[^}]*\}\}", "", text)
  text = re.sub(r"^(module @\S+) attributes \{.*\} \{$", r"\1 {", text, count=1, flags=re.MULTILINE)
  text = re.sub(r'loc\("/[^"]*":\d+:\d+\)', "loc(unknown)", text)  # paths of this machine
  return stablehlo.serialize_portable_artifact_str(text, stablehlo.get_minimum_version())


def main():
  """The command line."""
  command_line.run(export, command_line.define(Export))


if __name__ == "__main__":
  main()
