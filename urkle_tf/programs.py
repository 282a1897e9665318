"""The training step as an XLA program, for machines that have an accelerator and no TensorFlow."""

import json
import re

import numpy as np
import tensorflow as tf

from urkle_tf import checkpoints, distribution, errors, files

PROGRAM, DESCRIPTION, STATE = "step.hlo", "step.json", "state.npz"


def export_step(job, folder):
  """Writes the step of a training: augmentation, attack, loss, update and all.

  Three files: the program (a serialized HLO module); what it is given and returns, and how long the
  training is (JSON); and the state that it begins with, in the form of a checkpoint.  The program
  takes the batch, images uint8 [n, h, w, c] and, if the pretext reads them, labels int32 [n],
  then the inputs; it returns the metrics as one float32 vector, and then new values of some of
  the inputs.  All its randomness follows from the seed and the state.

  Args:
    job: a `pretraining.Job` whose augmentation runs in the step.
    folder: a `pathlib.Path`.

  Returns:
    A function of a stage, "hlo" or "stablehlo", to the program as text.

  Raises:
    UserError: if the augmentation runs elsewhere, or the job has several replicas.
  """
  learner, settings = job.learner, job.settings
  if not settings["augment_on_device"]:
    raise errors.UserError("a step that runs elsewhere augments itself: give --augment_on_device")
  if job.scope.num_replicas_in_sync > 1:
    raise errors.UserError("a step is exported for one device: give --strategy=one")
  names = learner.means.names

  @tf.function(jit_compile=True, autograph=False)
  def step(images, *labels):
    values = learner.step({"image": images, **dict(zip(["label"], labels))})
    return tf.stack([values[name] for name in names])

  shape = [settings["batch_size"], *job.source.image_shape]
  batch = [tf.zeros(shape, tf.uint8)]
  if learner.pretext.needs_labels:
    batch.append(tf.zeros(shape[:1], tf.int32))
  lower = step.experimental_get_compiler_ir(*batch)
  # The order of the program's parameters: the batch, then what the function reads and writes.
  captured = step.get_concrete_function(*batch).captured_inputs
  known = dict(zip((id(v.value.handle) for v in job.state), checkpoints.names(job.state)))
  inputs = [known[id(handle)] for handle in captured]
  described = {
    "batch": [[tensor.dtype.name, tensor.shape.as_list()] for tensor in batch],
    "inputs": inputs,
    "outputs": {
      output: inputs[parameter - len(batch)] for output, parameter in _updates(lower("hlo"))
    },
    "metrics": names,
    "steps": job.steps,
    "steps_per_epoch": job.steps_per_epoch,
  }
  state = dict(zip(checkpoints.names(job.state), map(distribution.plain, job.state)))
  done = np.int64(distribution.plain(learner.optimizer.iterations))
  files.write(folder / PROGRAM, lower("hlo_serialized"))
  files.write(folder / DESCRIPTION, json.dumps(described, indent=1) + "\n")
  files.write(folder / STATE, lambda stream: np.savez(stream, step=done, **state))
  return lower


def _updates(text):
  """[(output, parameter)]: the results that are new values of parameters.

  Args:
    text: of an HLO module, whose first line says `input_output_alias={ {1}: (3, {}, may-alias) }`.
  """
  header = text.partition("entry_computation_layout")[0]
  return [(int(one), int(other)) for one, other in re.findall(r"\{(\d+)\}: \((\d+),", header)]
