"""What every replica shares: seeds, noise keyed by the global example, gathering.

One replica and eight give the same step, because every random number belongs
to an example of the global batch and not to the replica that happens to hold it.
"""

import math

import tensorflow as tf

from urkle_tf import errors

# Left to itself TensorFlow draws other numbers on other devices.
_ALGORITHM = "philox"


def fold(seed, *numbers):
  """Derives a seed from `seed` and integers (Python ints or int tensors).

  Args:
    seed: int32 [2].
    *numbers: scalars; different numbers give independent streams.

  Returns:
    int32 [2].
  """
  seed = tf.cast(seed, tf.int32)
  for number in numbers:
    seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), _ALGORITHM)
  return seed


def replicas():
  """The number of replicas in sync (1 outside a strategy's `run`)."""
  context = tf.distribute.get_replica_context()
  return context.num_replicas_in_sync if context is not None else 1


def replica_id():
  """This replica's number: a Python 0 on one replica, else an int32 tensor."""
  if replicas() == 1:
    return 0
  return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)


def _rows(draw, shape):
  """`draw`s for the global batch, and keeps the rows of this replica."""
  shape = tf.TensorShape(shape).as_list() if not tf.is_tensor(shape) else shape
  if replicas() == 1:
    return draw(shape)
  local, rest = shape[0], shape[1:]
  whole = [local * replicas()]
  # A tensor where the size of a batch is not known beforehand.
  noise = draw(tf.concat([whole, rest], 0) if tf.is_tensor(shape) else [*whole, *rest])
  start = replica_id() * local
  return noise[start : start + local]


def uniform(seed, shape, minval=0.0, maxval=1.0):
  """Uniform float32 noise for this replica's rows of the global batch.

  Args:
    seed: int32 [2], the same on every replica.
    shape: the local shape; the first axis is the batch.
    minval: lowest value.
    maxval: highest value, itself excluded.
  """
  return minval + (maxval - minval) * _unit(seed, shape)


def normal(seed, shape):
  """Standard normal float32 noise for this replica's rows of the global batch.

  By Box and Muller: sqrt(-2 log u) cos(2 pi v) of uniform u, v.
  """
  radius = tf.sqrt(-2.0 * tf.math.log(1.0 - _unit(fold(seed, 0), shape)))
  return radius * tf.cos(2.0 * math.pi * _unit(fold(seed, 1), shape))


def _unit(seed, shape):
  """Uniform in [0, 1).

  From integer draws: TensorFlow with and without XLA makes different floats of one seed.
  """

  def draw(size):
    bits = tf.random.stateless_uniform(size, seed, None, None, tf.uint32, alg=_ALGORITHM)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24

  return _rows(draw, shape)


def gather(values):
  """Concatenates a tensor's rows over all replicas, differentiably.

  Args:
    values: [n, ...] on each replica.

  Returns:
    [replicas * n, ...]: replica 0's rows first.
  """
  if replicas() == 1:
    return values
  return tf.distribute.get_replica_context().all_gather(values, 0)


def strategy(name="auto"):
  """The `tf.distribute` strategy of a name.

  Args:
    name: "one" device; "mirrored" over the devices of this host; "multi_worker" (TF_CONFIG
      says who); "tpu"; "auto": mirrored where there are several GPUs, else one.

  Raises:
    UserError: for another name.
  """
  names = ("auto", "one", "mirrored", "multi_worker", "tpu")
  if name not in names:
    raise errors.unknown("strategy", name, names)
  gpus = tf.config.list_logical_devices("GPU")
  if name == "mirrored" or (name == "auto" and len(gpus) > 1):
    # On CPUs the default collectives do not survive several steps in one execution.
    return tf.distribute.MirroredStrategy(
      cross_device_ops=None if gpus else tf.distribute.ReductionToOneDevice()
    )
  if name == "multi_worker":
    return tf.distribute.MultiWorkerMirroredStrategy()
  if name == "tpu":
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)
  return tf.distribute.get_strategy()
