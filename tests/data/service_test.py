"""Input workers over loopback: the batches that they send are those that are made here."""

import collections
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from commands import ROOT
from small_models import RUN, untimed

import urkle_tf
from urkle_tf.data import augment, pipeline, service, sources


@pytest.fixture(scope="module")
def addresses():
  """Two input workers, in this process."""
  servers = [service.serve(0) for _ in range(2)]
  yield [dispatcher.target.split("://")[1] for dispatcher, _ in servers]
  del servers


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", examples=22)


@pytest.fixture
def port():
  """A port on which nobody listens, and which only an input worker of the test can take."""
  with socket.socket() as holder:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC
    holder.bind(("127.0.0.1", 0))
    yield holder.getsockname()[1]


def _views(digits, start, share=(0, 1), turn=None):
  recipe, options = augment.from_spec("simclr"), {"start_step": start, "labels": True}
  return pipeline.views(digits, recipe, 4, 3, part=pipeline.Part(share, turn), **options)


@pytest.mark.full
@pytest.mark.parametrize("workers, start, share", [(2, 3, (0, 1)), (1, 0, (0, 1)), (2, 0, (1, 2))])
def test_input_workers_send_what_is_made_here(addresses, digits, workers, start, share):
  """Over two epochs of five steps, from within one, and the rows of one of two trainers."""
  views = _views(digits, start, share)
  expected = list(views.take(8).as_numpy_iterator())
  make = lambda turn: _views(digits, start, share, turn)  # noqa: E731
  sent = service.batches(make, addresses[:workers], start)
  rest = _views(digits, start + 3, share).take(5)  # what a resumed run asks for
  for found, first in ((sent.take(8), 0), (rest, 3)):
    for one, other in zip(expected[first:], found.as_numpy_iterator(), strict=True):
      assert one.keys() == other.keys()
      same(one.values(), other.values())
  assert sent.element_spec == views.element_spec


def test_each_input_worker_augments_its_own_batches_alone(digits):
  """Of three: the steps of the second, over the borders of epochs."""
  whole = list(_views(digits, 2).take(12).as_numpy_iterator())
  part = list(_views(digits, 2, turn=(1, 3)).take(4).as_numpy_iterator())
  assert [int(batch["step"]) for batch in part] == [3, 6, 9, 12]
  for batch in part:
    step = batch.pop("step")
    assert whole[step - 2].keys() == batch.keys()
    same(whole[step - 2].values(), batch.values())


def test_a_stream_decodes_its_own_batches_alone(monkeypatch):
  """The records of other workers are not parsed."""
  stream = sources.StreamSource.__new__(sources.StreamSource)
  parsed = []

  def parse(record):
    tf.numpy_function(lambda r: parsed.append(int(r)) or np.int64(0), [record], tf.int64)
    return {"image": record}

  stream._opened = types.SimpleNamespace(parse=parse)
  records = tf.data.Dataset.range(11).map(lambda index: (index, 10 * index))
  monkeypatch.setattr(stream, "_records", lambda *args: records, raising=False)
  batches = stream.batches(2, chosen=lambda number: number % 2 == 1)
  assert [list(batch["index"]) for batch in batches.as_numpy_iterator()] == [[2, 3], [6, 7]]
  assert sorted(parsed) == [20, 30, 60, 70]


def test_two_workers_at_one_address_are_found_out(digits):
  dispatcher, worker = service.serve(0)
  address = dispatcher.target.split("://")[1]
  config = tf.data.experimental.service.WorkerConfig(dispatcher_address=address)
  second = tf.data.experimental.service.WorkerServer(config)
  while dispatcher._num_workers() < 2:
    time.sleep(0.05)
  sent = service.batches(lambda turn: _views(digits, 0, turn=turn), [address], 0)
  with pytest.raises(tf.errors.InvalidArgumentError, match="UserError: an input worker sent"):
    collections.deque(sent, maxlen=0)  # endless
  del second, worker


def test_the_end_of_an_input_worker_is_distinguished_from_other_failures(digits, port):
  """A training waits for it; once it is there again, it knows of no training."""
  servers = service.serve(port)
  sent = iter(service.batches(lambda turn: _views(digits, 0, turn=turn), [f"localhost:{port}"], 0))
  next(sent)
  for server in reversed(servers):
    server._stop()
  del server, servers
  again = service.serve(port)
  with pytest.raises(tf.errors.OpError) as caught:
    collections.deque(sent, maxlen=0)  # endless
  assert service.lost(caught.value)
  missing = "a.tfrecord: No such file or directory"
  assert not service.lost(tf.errors.NotFoundError(None, None, missing))
  wrong = "UserError: an input worker sent"
  assert not service.lost(tf.errors.InvalidArgumentError(None, None, wrong))
  del again


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_a_training_with_input_workers_is_the_training_without(addresses, tmp_path, killed):
  """The same rows, also when it begins here and continues with input workers."""
  settings = {**RUN, "latent_dim": 4, "attack_steps": 1, "log_every": 1, "checkpoint_every": 2}
  settings["attack_schedule"] = "controlled(every=2, images=3)"
  run = lambda name, **more: urkle_tf.pretrain(tmp_path / name, **settings, **more)  # noqa: E731
  killed(lambda: run("other"), 1)
  assert untimed(run("one")) == untimed(run("other", data_service=",".join(addresses)))


@pytest.mark.parametrize(
  "text, words",
  [
    ("host", "'host' is not HOST:PORT"),
    ("grpc://host:5", "is not HOST:PORT"),
    (",", "give the HOST:PORT of each"),
    ("a:1,a:1", "of each input worker once"),
    ("localhost:{port}", "no input worker answers at localhost:{port}"),
  ],
)
def test_mistakes_end_in_one_line(tmp_path, port, text, words):
  options = {"output_dir": tmp_path / "run", "data_service": text.format(port=port), **RUN}
  refuses(words.format(port=port), urkle_tf.pretrain, **options)


@pytest.mark.parametrize("port", [-1, 65535, 70000])
def test_what_is_no_port_is_refused(port):
  """TensorFlow took it modulo 65536, and the worker needs the next one."""
  refuses(f"--port must be in [0, 65534], got {port}", service.serve, port)


def test_what_input_workers_cannot_read_is_refused(monkeypatch):
  folder = sources.FileSource.__new__(sources.FileSource)
  folder.name = "folder:photos"
  refuses("'folder:photos' & decoded by this program", service.check, folder)
  monkeypatch.setattr(service, "_LARGEST", 1000)
  parity = sources.load("digits:parity", examples=20)
  refuses("GiB of 'digits' & give --examples", service.check, parity)
  service.check(sources.load("digits", examples=10))


@pytest.mark.full
def test_the_launcher_serves_until_it_is_stopped(digits):
  """And then it ends at once, whatever its pipelines were doing."""
  command = [sys.executable, ROOT / "launch" / "input_worker.py", "--port=0", "--host=localhost"]
  unheard = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # but for the address
  with subprocess.Popen(command, text=True, **unheard) as process:
    try:
      line = process.stdout.readline()
      assert line.startswith("an input worker: --data_service=localhost:"), line
      address = line.strip().partition("=")[2]
      for _ in service.batches(lambda turn: _views(digits, 0, turn=turn), [address], 0).take(5):
        pass
    finally:
      process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
