"""What all replicas share: seeds, noise keyed by the global example, gathering.

One replica and eight replicas take the same step, because every random number belongs to an example
of the global batch, and not to the replica that holds it.
"""

import contextlib
import functools
import json
import math
import os
import re
import signal
import sys
import threading

import keras
import tensorflow as tf
from absl import logging

from urkle_tf import errors

# TensorFlow's default algorithm depends on the device, and so do its numbers.
_ALGORITHM = "philox"


def fold(seed, *numbers):
  """Derives a seed from `seed` and integers (Python ints or int tensors).

  Args:
    seed: int32 [2].
    *numbers: scalars; different numbers give independent streams.

  Returns:
    int32 [2].

  Raises:
    UserError: for a seed of another shape.
  """
  seed = checked(tf.cast(seed, tf.int32))
  for number in numbers:
    seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), _ALGORITHM)
  return seed


def checked(seed):
  """The seed as a tensor; raises `UserError` for a seed of another shape than [2]."""
  seed = tf.convert_to_tensor(seed)
  if not seed.shape.is_compatible_with([2]):
    raise errors.UserError(f"a seed must be two integers, such as (0, 1), got shape {seed.shape}")
  return seed


def fresh_seed():
  """A seed from TensorFlow's global generator: int32 [2]."""
  return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)


def replicas():
  """The number of replicas in sync; 1 outside a strategy's `run`."""
  context = tf.distribute.get_replica_context()
  return context.num_replicas_in_sync if context is not None else 1


def replica_id():
  """This replica's number: a Python 0 on one replica, else an int32 tensor."""
  if replicas() == 1:
    return 0
  return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)


def _rows(draw, shape):
  """Draws for the global batch with `draw`, and keeps the rows of this replica."""
  shape = tf.TensorShape(shape).as_list() if not tf.is_tensor(shape) else shape
  if replicas() == 1:
    return draw(shape)
  local, rest = shape[0], shape[1:]
  whole = [local * replicas()]
  # The shape is a tensor if the size of a batch is not known in advance.
  noise = draw(tf.concat([whole, rest], 0) if tf.is_tensor(shape) else [*whole, *rest])
  start = replica_id() * local
  return noise[start : start + local]


def uniform(seed, shape, minval=0.0, maxval=1.0):
  """Uniform float32 noise for this replica's rows of the global batch.

  Args:
    seed: int32 [2], the same on every replica.
    shape: the local shape; the first axis is the batch.
    minval: the lowest value.
    maxval: the upper limit, which is excluded.
  """
  return minval + (maxval - minval) * _unit(seed, shape)


def normal(seed, shape):
  """Standard normal float32 noise for this replica's rows of the global batch.

  The Box-Muller transform of uniform u and v: sqrt(-2 log u) cos(2 pi v).
  """
  radius = tf.sqrt(-2.0 * tf.math.log(1.0 - _unit(fold(seed, 0), shape)))
  return radius * tf.cos(2.0 * math.pi * _unit(fold(seed, 1), shape))


def _unit(seed, shape):
  """Uniform in [0, 1).

  Made from integers, because TensorFlow's floats of one seed differ with and without XLA.
  """

  def draw(size):
    bits = tf.random.stateless_uniform(size, seed, None, None, tf.uint32, alg=_ALGORITHM)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24

  return _rows(draw, shape)


def mean(values):
  """The mean of a tensor over the replicas."""
  return _reduced(tf.distribute.ReduceOp.MEAN, values)


def total(values):
  """The sum of a tensor, or of each of a list, over the replicas, differentiably."""
  return _reduced(tf.distribute.ReduceOp.SUM, values)


def _reduced(operation, values):
  if replicas() == 1:
    return values
  return tf.distribute.get_replica_context().all_reduce(operation, values)


def state(value, name=None):
  """A float32 Keras variable for the state of a training; not trained, equal on all replicas."""
  kind = {"trainable": False, "aggregation": "only_first_replica", "name": name}
  return keras.Variable(value, dtype="float32", **kind)


def gather(values):
  """Concatenates a tensor's rows over all replicas, differentiably.

  Each replica adds its rows to a tensor of zeros, so this takes one exchange, and one for the
  gradient. TensorFlow's own gathering, for tensors whose sizes may differ, takes five.

  Args:
    values: [n, ...], equally many rows on each replica.

  Returns:
    [replicas * n, ...]: replica 0's rows first.
  """
  if replicas() == 1:
    return values
  own = tf.equal(tf.range(replicas()), replica_id())
  own = tf.reshape(own, [-1] + [1] * len(values.shape))
  placed = tf.where(own, values, tf.zeros([], values.dtype))
  return tf.reshape(total(placed), tf.concat([[-1], tf.shape(values)[1:]], 0))


def strategy(name="auto"):
  """The `tf.distribute` strategy of a name.

  Args:
    name: "one" device; "mirrored" over the devices of this host; "multi_worker", for the workers
      that TF_CONFIG lists, which must be made before TensorFlow does anything else; "tpu"; or
      "auto": mirrored if there are several GPUs, else one.

  Raises:
    UserError: for another name, or if TF_CONFIG does not list the workers.
  """
  names = ("auto", "one", "mirrored", "multi_worker", "tpu")
  errors.one_of("strategy", name, names)
  if name == "multi_worker":
    return _multi_worker()
  gpus = tf.config.list_logical_devices("GPU")
  if name == "mirrored" or (name == "auto" and len(gpus) > 1):
    # On CPUs the default collectives fail if one execution takes several steps.
    return tf.distribute.MirroredStrategy(
      cross_device_ops=None if gpus else tf.distribute.ReductionToOneDevice()
    )
  return _tpu() if name == "tpu" else tf.distribute.get_strategy()


# --- Several workers: processes that each run the same program ---

# What TensorFlow raises on a worker when another one has ended.
_LOST = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
  tf.errors.InternalError,
)


class WorkerLost(Exception):
  """Another worker has ended, so this one cannot continue."""


@functools.cache  # a process joins once
def _multi_worker():
  text = os.environ.get("TF_CONFIG", "")
  try:
    config = json.loads(text or "{}")
    cluster, task = config.get("cluster", {}), config.get("task", {})
    workers = [*cluster.get("chief", []), *cluster.get("worker", [])]
    number = int(task.get("index", 0)) + (task.get("type") == "worker") * len(
      cluster.get("chief", [])
    )
  except (ValueError, AttributeError, TypeError):
    raise errors.UserError(
      f"TF_CONFIG must be JSON with a cluster and a task, got {text!r}: launch/hosts.sh and "
      "launch/slurm.sh set it"
    ) from None
  if not workers or number >= len(workers):
    raise errors.UserError(
      "--strategy=multi_worker needs TF_CONFIG, which lists the workers: launch/hosts.sh and "
      "launch/slurm.sh set it"
    )
  for worker in workers:
    if not re.fullmatch(r"[^\s/]+:\d+", str(worker)):
      raise errors.UserError(
        f"TF_CONFIG lists the worker {worker!r}: write HOST:PORT, without spaces, for each"
      )
  print(f"worker {number} of {len(workers)} waits for all of them", file=sys.stderr, flush=True)
  try:
    with _interruptible():
      return tf.distribute.MultiWorkerMirroredStrategy()
  except RuntimeError as error:
    if "program startup" not in str(error):
      raise
    raise errors.UserError(
      "several workers must be joined before TensorFlow does anything else: run urkle_tf.train"
    ) from error
  except tf.errors.UnknownError as error:
    if "gRPC server" not in str(error):
      raise
    raise errors.UserError(
      f"worker {number} cannot listen on {workers[number]}: end the program that uses this port, "
      "or give all workers another one"
    ) from error


@contextlib.contextmanager
def _interruptible():
  """Lets Ctrl-C end the process at once, because TensorFlow waits without returning to Python."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def _tpu():
  """The strategy for the TPU that TPU_NAME names, by default that of this host."""
  try:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
      os.environ.get("TPU_NAME", "local")
    )
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
  except (ValueError, RuntimeError, tf.errors.OpError) as error:
    raise errors.UserError(
      "--strategy=tpu finds no TPU here: set up a TPU VM with launch/tpu_vm.sh, or name one in "
      f"TPU_NAME ({str(error).splitlines()[0]})"
    ) from error
  return tf.distribute.TPUStrategy(resolver)


def several_workers(scope):
  """Whether a strategy spans several processes."""
  spans = isinstance(scope, tf.distribute.MultiWorkerMirroredStrategy)
  return spans and scope.extended._in_multi_worker_mode()


def is_chief(scope):
  """Whether this process writes files; among several workers, the first one does."""
  return bool(scope.extended.should_save_summary)


def plain(variable):
  """A Keras variable's value as an array.  For a mean over workers, all of them must call this."""
  return tf.convert_to_tensor(variable.value).numpy()


def from_chief(scope, values):
  """The chief's values, on every worker; all workers must call this.

  Args:
    scope: the strategy.
    values: a list of arrays or numbers; on the other workers only their shapes matter.

  Returns:
    A list of arrays.
  """
  if not several_workers(scope):
    return values

  @tf.function(autograph=False)
  def shared(values):
    def replica():
      chief = tf.equal(replica_id(), 0)
      return [total(tf.where(chief, value, tf.zeros_like(value))) for value in values]

    return scope.experimental_local_results(scope.run(replica))[0]

  return [value.numpy() for value in shared([tf.convert_to_tensor(value) for value in values])]


def agreement(scope):
  """A function that returns the largest of the workers' numbers; all must call it together."""
  if not several_workers(scope):
    return lambda number: number

  @tf.function(autograph=False)
  def largest(number):
    gathered = lambda: tf.distribute.get_replica_context().all_gather(number[None], 0)  # noqa: E731
    return tf.reduce_max(scope.experimental_local_results(scope.run(gathered))[0])

  return lambda number: float(largest(tf.constant(number, tf.float32)))


@contextlib.contextmanager
def joined(scope):
  """A context in which TensorFlow's errors about a lost worker become `WorkerLost`."""
  try:
    yield
  except _LOST as error:
    if not several_workers(scope):
      raise
    logging.info("%s", error)
    raise WorkerLost("another worker has ended") from error
