"""Input workers: other machines that read and augment the images for a training.

Each address is a separate tf.data service, a dispatcher with one worker (launch/input_worker.py).
With W addresses, the j-th makes the batches of steps j, j + W, j + 2W, ... after the first one, and
the training takes them in turn.  So batch k is a function of (seed, k), wherever it is made, and a
resumed run may use other input workers.
"""

import socket

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import pipeline, reading, sources

_LARGEST = 2**30  # bytes of images that are sent with the pipeline, as a constant of its graph
_SECONDS = 10.0  # to wait for an answer


def addresses(text):
  """The addresses in "HOST:PORT,HOST:PORT", as a list.

  Raises:
    UserError: if one is not an address, or is given twice.
  """
  found = [part.strip() for part in text.split(",") if part.strip()]
  for address in found:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
      raise errors.UserError(f"--data_service={text}: {address!r} is not HOST:PORT")
  if not found or len(set(found)) < len(found):
    raise errors.UserError(
      f"--data_service={text}: give the HOST:PORT of each input worker once, with commas between"
    )
  return found


def check(source):
  """Raises `UserError` if input workers cannot read a source."""
  if isinstance(source, sources.RelabelledSource):
    return check(source.source)
  if isinstance(source, sources.FileSource):
    raise errors.UserError(
      f"--data_service cannot serve {source.name!r}, because folders above 2 GiB of pixels are "
      "decoded by this program: leave it out, or prepare a TensorFlow data set"
    )
  if isinstance(source, sources.ArraySource) and source.images.nbytes > _LARGEST:
    raise errors.UserError(
      f"--data_service cannot serve the {source.images.nbytes / 2**30:.1f} GiB of "
      f"{source.name!r}, because at most 1 GiB of images in memory is sent to workers: leave it "
      "out, or give --examples"
    )


def batches(make, found, start_step):
  """Endless batches made by input workers.

  Args:
    make: (input worker, input workers) -> the dataset that `pipeline.views(part=...)` makes.
    found: the result of `addresses`.
    start_step: the step of the first batch.

  Returns:
    A `tf.data.Dataset` of the batches that `pipeline.views` makes, in the same order.  It raises
    `tf.errors.InvalidArgumentError` if an address has several workers instead of one.

  Raises:
    UserError: if an address does not answer.
  """
  for address in found:
    _knock(address)
  served = [
    make((number, len(found))).apply(
      tf.data.experimental.service.distribute(
        # Each service has one worker, which makes its whole dataset in order.
        tf.data.experimental.service.ShardingPolicy.OFF,
        f"grpc://{address}",
      )
    )
    for number, address in enumerate(found)
  ]
  turns = tf.data.Dataset.range(len(served)).repeat()
  taken = served[0] if len(served) == 1 else tf.data.Dataset.choose_from_datasets(served, turns)

  def expected(step, batch):
    said = (
      "UserError: an input worker sent another batch than the one whose turn it is: each address "
      "of --data_service must have exactly one worker (launch/input_worker.py)"
    )
    with tf.control_dependencies([tf.debugging.assert_equal(batch.pop("step"), step, said)]):
      return tf.nest.map_structure(tf.identity, batch)

  taken = reading.each_batch(taken.enumerate(start_step), expected)
  return pipeline.finished(taken, tf.data.INFINITE_CARDINALITY)


def _knock(address):
  """Raises `UserError` if an address does not answer; TensorFlow would wait for an hour."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
  except (OSError, OverflowError) as error:
    raise errors.UserError(
      f"no input worker answers at {address} ({getattr(error, 'strerror', None) or error}): start "
      f"one there with python launch/input_worker.py --port={port}"
    ) from error


def lost(error):
  """Whether a `tf.errors.OpError` means that an input worker has ended or restarted."""
  kinds = (tf.errors.NotFoundError, tf.errors.UnavailableError, tf.errors.AbortedError)
  return isinstance(error, kinds) and "No such file" not in str(error)


def serve(port, host=None, worker_port=0):
  """Starts an input worker in this process: a dispatcher and its one worker.

  Args:
    port: the dispatcher's port, which `--data_service` names; 0 for any free port.
    host: the name by which trainings reach this machine; None for trainings on this machine.
    worker_port: the port of the worker, which sends batches; 0 for any free port.

  Returns:
    (the dispatcher, the worker).  Both stop when nothing refers to them any longer.  The
    dispatcher's `target` holds its address.

  Raises:
    UserError: if a port is taken or out of range.
  """
  errors.within("[0, 65534]", None, port=port)  # the worker has the next one
  service = tf.data.experimental.service
  try:
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
    # The worker gives the dispatcher the address at which trainings reach it.
    config = service.WorkerConfig(
      dispatcher_address=dispatcher.target.split("://")[1],
      worker_address=f"{host or 'localhost'}:%port%",
      port=worker_port,
    )
    return dispatcher, service.WorkerServer(config)
  except tf.errors.OpError as error:
    raise errors.UserError(
      f"cannot serve on port {port}: another program may have it; give another --port "
      f"({str(error).splitlines()[0]})"
    ) from error
