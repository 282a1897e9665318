"""Shared fixtures: a quiet TensorFlow, two logical CPUs, a seed."""

import os
import random
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from interruptions import at_saves
from small_models import small_encoder

from urkle_tf import export
from urkle_tf.data import reading
from urkle_tf.training import board, pictures, preemption

# Two logical devices stand for two replicas; one process may own only one such strategy
# (two hang collectives on CPUs), so it is a session fixture.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_addoption(parser):
  """`--full` runs every cell of the grid through every property, and all else that takes long."""
  parser.addoption("--full", action="store_true", help="run what takes long too")


def pytest_configure(config):
  """Knows the mark of what takes long."""
  config.addinivalue_line("markers", "full: runs only with --full")


def pytest_collection_modifyitems(config, items):
  """Skips slow tests unless `--full` is given."""
  if not config.getoption("--full"):
    for item in items:
      if item.get_closest_marker("full"):
        item.add_marker(pytest.mark.skip(reason="run with --full"))


@pytest.hookimpl(tryfirst=True)  # before fixtures of a module, too
def pytest_runtest_setup(item):
  """Keras draws the seeds of layers that have none from here: they are the same in every run."""
  random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_autotuner():
  """Pipelines that tests make themselves end at once too: see `reading.without_autotuner`."""
  iterate = tf.data.Dataset.__iter__
  with pytest.MonkeyPatch.context() as patch:
    ending = lambda dataset: iterate(reading.without_autotuner(dataset))  # noqa: E731
    patch.setattr(tf.data.Dataset, "__iter__", ending)
    yield


@pytest.fixture(scope="session")
def mirrored():
  """A MirroredStrategy over two replicas."""
  return tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
  )


@pytest.fixture
def on_two(mirrored):
  """A function (call, array) that calls `call` with each half of an array on a replica.

  It returns what both give, of replica 0 first, as arrays in the structure that `call` returns.
  """

  def run(call, array):
    half = lambda context: tf.constant(np.split(array, 2)[context.replica_id_in_sync_group])  # noqa: E731
    halves = mirrored.experimental_distribute_values_from_function(half)
    found = mirrored.run(tf.function(call), args=(halves,))
    join = lambda value: np.concatenate(mirrored.experimental_local_results(value))  # noqa: E731
    return tf.nest.map_structure(join, found)

  return run


@pytest.fixture
def rng():
  """A NumPy generator, the same for every test."""
  return np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder():
  """`small_encoder`, the same for all tests of a file."""
  return small_encoder()


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
  """The folder of `encoder`."""
  return export.export_encoder(encoder, tmp_path_factory.mktemp("exported") / "encoder")


@pytest.fixture
def kept(monkeypatch):
  """Exports are not written but kept, [(model, metadata)]: writing takes most of the time."""
  found = []
  keep = lambda model, folder, metadata: found.append((model, metadata))  # noqa: E731
  monkeypatch.setattr(export, "export_classifier", keep)
  monkeypatch.setattr(export, "export_regressor", keep)
  return found


@pytest.fixture(scope="module")
def undrawn():
  """`pretrain` draws nothing."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pictures.Pictures, "draw", lambda *_: None)
    patch.setattr(board, "embeddings", lambda *_: None)
    yield


@pytest.fixture
def plain_runs(monkeypatch, undrawn):
  """`pretrain` draws nothing, and exports bare weights: training itself takes less time."""

  def keep(model, folder, metadata):
    folder.mkdir()
    np.savez(folder / "weights.npz", *model.network.get_weights())

  monkeypatch.setattr(export, "export_encoder", keep)
  monkeypatch.setattr(export, "export_classifier", keep)


class Killed(Exception):
  """What `killed` raises."""


def _die(*_):
  raise Killed


@pytest.fixture
def killed():
  """A function (call, saves) that calls `call`, which dies after this many checkpoints."""

  def run(call, saves):
    with at_saves({saves: _die}), pytest.raises(Killed):
      call()

  return run


@pytest.fixture
def signalled(monkeypatch):
  """A function (call, at) to what stops `call` if SIGTERM comes when it looks the `at`-th time."""

  def run(call, at):
    check, looked = preemption.Watch.check, []

    def signal_and_check(self, step=None, save=None):
      looked.append(step)
      if len(looked) == at:
        os.kill(os.getpid(), signal.SIGTERM)
      check(self, step, save)

    before = signal.signal(signal.SIGTERM, _die)
    try:
      with monkeypatch.context() as patch:
        patch.setattr(preemption.Watch, "check", signal_and_check)
        with pytest.raises(preemption.Stopped) as caught:
          call()
    finally:
      signal.signal(signal.SIGTERM, before)
    return caught.value

  return run
