"""`forecast`: the cost of a training before it starts; the function behind `train --dry_run`."""

import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.output.progress import duration, speed
from urkle_tf.training import cost, jobs

_MIB = 2**20
_CHECKPOINTS = 3  # that are kept, and one that is being written


def forecast(timed_steps=3, **settings):
  """Builds a training, takes a few of its steps, and estimates the cost of the whole.

  Nothing is written.  If the memory is too small, no step is taken.

  Args:
    timed_steps: how many steps are timed, after the one that compiles; at least 1.
    **settings: the settings of `pretrain`.

  Returns:
    A dict: `parameters` (of the encoder), `head_parameters`, `minutes` (of the settings), `steps`
    and `epochs` (by the clock estimated), `operations` (of one step, over all replicas, 2 a
    multiply-add), `memory` (bytes on one device, estimated), `peak_memory` (bytes of this process,
    measured), `available_memory`, `disk` and `free_disk` (bytes), `compile_seconds`,
    `step_seconds` and `seconds` (of the whole run); `warnings`, a list of texts.  Values that are
    not known or were not measured are None.

  Raises:
    UserError: as in `pretrain`, or if `timed_steps` is below 1.
  """
  errors.whole(1, "forecast", timed_steps=timed_steps)
  with jobs.prepared(settings) as job:
    found = _static(job)
    if not any("memory" in warning for warning in found["warnings"]):
      found |= _measured(job, timed_steps, found)
  return found


def _static(job):
  """The figures that need no step."""
  learner, scope = job.learner, job.scope
  graph = _graph(job)
  replicas = scope.num_replicas_in_sync
  local = len(scope.extended.worker_devices) if replicas > 1 else 1  # of this process
  attack = learner.attack
  steps, restarts = (1, 1) if attack is None else (attack.steps, attack.restarts)
  bytes_of = lambda variables: sum(  # noqa: E731
    int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables
  )
  state = bytes_of([*learner.variables, *learner.optimizer.variables])
  # A replica's graph holds its share of the batch; gradients are held twice while they are added.
  memory = state + 2 * bytes_of(learner.trainable_variables) + cost.held(graph) // local
  encoder = learner.encoder.network
  known = {id(variable) for variable in encoder.variables}
  found = {
    "parameters": encoder.count_params(),
    "head_parameters": int(
      sum(np.prod(v.shape) for v in learner.pretext.variables if id(v) not in known)
    ),
    "minutes": job.settings["minutes"],
    "steps": job.steps,
    "epochs": job.settings["epochs"],
    "operations": replicas
    * cost.operations(graph, steps, job.settings["accumulate"] or 1, restarts)
    // local,
    "memory": memory,
    "peak_memory": None,
    "available_memory": _available_memory(),
    "disk": (_CHECKPOINTS + 1) * state + 3 * bytes_of(encoder.variables),
    "free_disk": _free_disk(job.settings["output_dir"]),
    **dict.fromkeys(("compile_seconds", "step_seconds", "seconds")),
    "warnings": [],
  }
  # On a CPU the process itself, mainly TensorFlow, takes memory too.
  taken = 0 if tf.config.list_physical_devices("GPU") else _peak()
  room = found["available_memory"]
  if room is not None and memory + taken > room:
    found["warnings"].append(
      f"the step needs about {(memory + taken) / _MIB:,.0f} MiB of memory, but there are only "
      f"{room / _MIB:,.0f}: lower --batch_size, or give --precision=mixed_bfloat16"
    )
  if found["free_disk"] is not None and found["disk"] > found["free_disk"]:
    found["warnings"].append(
      f"the run needs about {found['disk'] / _MIB:,.0f} MiB on the disk of --output_dir, but only "
      f"{found['free_disk'] / _MIB:,.0f} are free: make room, or give another --output_dir"
    )
  return found


def _graph(job):
  """The graph of one step, on all of this process's replicas."""
  batch = next(iter(job.distributed()))

  @tf.function(autograph=False)
  def step(batch):
    return job.scope.run(job.learner.train_step, args=(batch,))

  return step.get_concrete_function(batch).graph


def _measured(job, timed_steps, found):
  """Takes a few steps from the middle of the training, where schedules are halfway."""
  learner = job.learner
  half = job.steps // 2 if job.steps else 0
  learner.optimizer.iterations.assign(half)
  if learner.clock is not None:
    learner.clock.assign(0.5)
  feed = iter(job.distributed(half))
  learner.steps_per_execution = 1
  learner.make_train_function()

  def take(steps):
    started = time.perf_counter()
    for _ in range(steps):
      logs = learner.train_function(feed)
    tf.nest.map_structure(np.asarray, logs)  # waits for the device
    return (time.perf_counter() - started) / steps

  first, seconds = take(1), take(timed_steps)
  compiled = max(0.0, first - seconds)
  peak, warnings = _peak(), list(found["warnings"])
  gpus = tf.config.list_logical_devices("GPU")
  if gpus:
    peak = max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus)
  if found["available_memory"] and peak > 0.9 * found["available_memory"]:
    warnings.append(
      f"the first steps took {peak / _MIB:,.0f} of {found['available_memory'] / _MIB:,.0f} MiB of "
      "memory: lower --batch_size if the run fails"
    )
  steps = job.steps or max(1, round(60 * found["minutes"] / seconds))
  return {
    "steps": steps,
    "epochs": steps / job.steps_per_epoch,
    "peak_memory": peak,
    "compile_seconds": compiled,
    "step_seconds": seconds,
    "seconds": compiled + steps * seconds,
    "warnings": warnings,
  }


def _peak():
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _available_memory():
  """Available bytes on the GPU, or on this machine within the limits of its container."""
  if tf.config.list_physical_devices("GPU"):
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
      said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
      return min(int(line) for line in said.split()) * _MIB
    except (OSError, ValueError, subprocess.CalledProcessError):
      return None
  if tf.config.list_logical_devices("TPU"):
    return None
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
    try:
      found.append(int(pathlib.Path(file).read_text()))
    except (OSError, ValueError):  # "max", or no such group
      continue
  return min(found)


def _free_disk(folder):
  if not folder:
    return None
  path = pathlib.Path(os.path.expanduser(folder)).absolute()
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


def describe(found, batch_size):
  """The result of `forecast` as readable lines.

  Args:
    found: the dict that it returned.
    batch_size: images per step.
  """
  operations, seconds = found["operations"], found["step_seconds"]
  mib = lambda count: "unknown" if count is None else f"{count / _MIB:,.0f} MiB"  # noqa: E731
  lines = [
    f"parameters  {found['parameters']:,} of the encoder, "
    f"{found['head_parameters']:,} of its heads",
    f"one step    {operations / 1e9:,.1f} GFLOP, {operations / 1e9 / batch_size:,.2f} an image",
    f"memory      {mib(found['memory'])} estimated, of {mib(found['available_memory'])}",
    f"disk        {mib(found['disk'])} estimated, of {mib(found['free_disk'])} free",
  ]
  if seconds is not None:
    lines[1] += (
      f"; {seconds:.3g} s measured: {speed(batch_size / seconds, 'images')}, "
      f"{operations / seconds / 1e9:,.0f} GFLOP/s"
    )
    lines[2] += f"; {mib(found['peak_memory'])} measured"
    length = f"{found['steps']:,} steps"
    if found["minutes"]:
      length = f"about {found['epochs']:,.1f} epochs, {length}, by the clock"
    lines.append(
      f"whole run   {length}: about {duration(found['seconds'])}, "
      f"{duration(found['compile_seconds'])} of it before the first"
    )
  return [*lines, *(f"warning: {text}" for text in found["warnings"])]
