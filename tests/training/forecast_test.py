"""What a training costs: counted in graphs by hand, and as `train --dry_run` says it."""

import pathlib
import resource
import shutil
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from small_models import RUN, tiny_trainer

from urkle_tf import attacks, networks, pretexts, robustness
from urkle_tf.training import cost, forecast

TINY = {**RUN, "latent_dim": 8, "split": "train[:64]", "epochs": 50, "attack_steps": 3}
TINY["strategy"] = "one"


def _graph(function, *shapes):
  function = tf.function(function, autograph=False)
  return function.get_concrete_function(*(tf.TensorSpec(s, tf.float32) for s in shapes)).graph


def test_operations_of_layers_by_hand():
  kernel = tf.Variable(tf.zeros([3, 3, 5, 7]))
  strided = lambda x: tf.nn.conv2d(x, kernel, 2, "SAME")  # noqa: E731
  forward = 2 * (4 * 4 * 4 * 7) * (3 * 3 * 5)  # n, height, width, channels; summed in each
  assert cost.operations(_graph(strided, [4, 8, 8, 5])) == forward

  def with_gradients(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(strided(x) ** 2)
    return tape.gradient(loss, [x, kernel])

  assert cost.operations(_graph(with_gradients, [4, 8, 8, 5])) == 3 * forward
  one = lambda x: with_gradients(x)[0]  # noqa: E731
  assert cost.operations(_graph(one, [4, 8, 8, 5])) == 2 * forward  # the other is not computed
  assert cost.operations(_graph(lambda x: x @ tf.zeros([6, 2]), [3, 6])) == 2 * 3 * 6 * 2
  turned = lambda x: tf.matmul(x, tf.zeros([3, 2]), transpose_a=True)  # noqa: E731
  assert cost.operations(_graph(turned, [3, 6])) == 2 * 6 * 3 * 2
  apart = lambda x: tf.nn.depthwise_conv2d(x, tf.zeros([3, 3, 5, 2]), [1] * 4, "SAME")  # noqa: E731
  assert cost.operations(_graph(apart, [1, 8, 8, 5])) == 2 * (8 * 8 * 10) * 9


@pytest.mark.parametrize(
  "equation, shapes, product",
  [
    ("abc,cd->abd", [(2, 3, 4), (4, 5)], 2 * 3 * 4 * 5),
    ("BTNH,BSNH->BNTS", [(2, 7, 3, 4), (2, 7, 3, 4)], 2 * 3 * 7 * 7 * 4),
    ("...ab,...bc->...ac", [(6, 2, 3, 4), (1, 1, 4, 5)], 6 * 2 * 3 * 4 * 5),
    ("abc->ca", [(2, 3, 4)], 0),  # nothing is multiplied
  ],
)
def test_operations_of_einsums(equation, shapes, product):
  graph = _graph(lambda *x: tf.raw_ops.Einsum(inputs=x, equation=equation), *shapes)
  assert cost.operations(graph) == 2 * product


def test_operations_of_loops_and_functions():
  inner = tf.function(lambda x: x @ tf.ones([6, 6]))

  def looped(x):
    return tf.while_loop(lambda i, _: i < 5, lambda i, y: (i + 1, inner(y)), (0, x))[1]

  assert cost.operations(_graph(looped, [3, 6]), loops=5) == 5 * 2 * 3 * 6 * 6


def test_bytes_that_wait_for_the_backward_pass():
  """Two dense layers with ReLUs: their inputs and outputs, each once."""
  first, second = tf.Variable(tf.ones([6, 50])), tf.Variable(tf.ones([50, 30]))

  def step(x):
    with tf.GradientTape() as tape:
      hidden = tf.nn.relu(x @ first)
      loss = tf.reduce_sum(tf.nn.relu(hidden @ second))
    return tape.gradient(loss, [first, second])

  # The activations after each ReLU; of the sum, a scalar's shape at most.
  expected = 4 * (100 * 50 + 100 * 30)
  assert expected <= cost.held(_graph(step, [100, 6])) <= expected + 64


@pytest.mark.parametrize("steps, restarts", [(4, 1), (2, 3), *slow((1, 1))])
def test_operations_of_a_training_step(steps, restarts):
  """In passes: each view and adversary forward and back, K steps forward and back in the input.

  Each of several attempts also ends with a forward pass.
  """
  keras.utils.set_random_seed(0)
  backbone = networks.convnet((16, 16, 1), width=16, layers=3)
  encoder = networks.GaussianEncoder(backbone, 4, loc="dense")
  attack = attacks.PGD(attacks.Linf(0.1), steps=steps, restarts=restarts)
  task = pretexts.SimCLR(projector=4, projection=2)
  learner = tiny_trainer(robustness.Urkle(), attack, task, encoder=encoder)
  one = cost.operations(_graph(lambda x: encoder.network(x)["loc"], [1, 16, 16, 1]))
  graph = _graph(lambda x: learner.train_step({"views": x}), [8, 2, 16, 16, 1])
  found = cost.operations(graph, loops=steps, restarts=restarts) / 8 / one
  # Of an image: 4 members forward and two ways back, 2 clean references, 2 x K forward and back;
  # the first layer has no way back to the image in the training pass.
  attempts = restarts * (2 * 2 * steps + 2 * (restarts > 1))
  assert found == pytest.approx(4 * 3 + 2 + attempts, rel=0.1)


@pytest.mark.full
def test_the_forecast_of_a_training(tmp_path):
  run = tmp_path / "run"
  found = forecast.forecast(timed_steps=2, output_dir=str(run), **TINY)
  assert list(tmp_path.iterdir()) == []
  assert found["steps"] == 50 * 4
  assert found["seconds"] == pytest.approx(found["compile_seconds"] + 200 * found["step_seconds"])
  assert found["step_seconds"] > 0
  assert found["memory"] < 50 * 2**20 < found["peak_memory"] < found["available_memory"]
  assert found["warnings"] == []
  encoder = networks.GaussianEncoder(networks.convnet((8, 8, 1), width=4, layers=2), 8, loc="dense")
  assert found["parameters"] == sum(np.prod(v.shape) for v in encoder.network.variables)
  text = "\n".join(forecast.describe(found, 16))
  assert f"{found['parameters']:,} of the encoder" in text
  assert "200 steps" in text
  assert "warning" not in text


@pytest.mark.parametrize("platform, unit", [("linux", 2**10), ("darwin", 1)])  # man getrusage
def test_the_peak_is_in_bytes(monkeypatch, platform, unit):
  said = types.SimpleNamespace(ru_maxrss=2**30 // unit)
  monkeypatch.setattr(resource, "getrusage", lambda who: said)
  monkeypatch.setattr(sys, "platform", platform)
  assert forecast._peak() == 2**30


def test_a_step_in_the_middle_is_timed_after_one_that_compiles(monkeypatch):
  now, feeds = [0.0], []

  def step(feed):
    now[0] += next(feed)
    return {"loss": 0.0}

  optimizer = types.SimpleNamespace(iterations=tf.Variable(0))
  fields = {"make_train_function": lambda: None, "train_function": step, "optimizer": optimizer}
  learner = types.SimpleNamespace(clock=tf.Variable(0.0), **fields)
  job = types.SimpleNamespace(learner=learner, steps=200, steps_per_epoch=40)
  job.distributed = lambda start: feeds.append(start) or [10.0, 0.1, 0.2, 0.3]
  monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(forecast, "_peak", lambda: 95)
  given = {"warnings": ["one"], "available_memory": 100, "minutes": 2}
  found = forecast._measured(job, 3, given)
  figures = [found[name] for name in ("step_seconds", "compile_seconds", "seconds", "epochs")]
  assert figures == pytest.approx([0.2, 9.8, 9.8 + 200 * 0.2, 5])
  assert [learner.optimizer.iterations.numpy(), learner.clock.numpy()] == [100, 0.5]
  assert (len(found["warnings"]), found["peak_memory"]) == (2, 95)
  job.steps = None  # by the clock
  found = forecast._measured(job, 3, given | {"available_memory": 110})
  assert (found["steps"], found["epochs"], feeds) == (600, 15, [100, 0])
  assert found["warnings"] == ["one"]


@pytest.mark.parametrize("gpus", [[], ["one"]])  # beside a CPU's estimate stands what is taken
@pytest.mark.parametrize("fits", [True, False])
def test_memory_disk_and_operations_by_hand(monkeypatch, gpus, fits):
  """Of 1,000 weights, 200 of a head, a number of 8 bytes and two moments of each weight.

  Two of four replicas are another process's; the step's graph is that of this one's.
  """
  weights, head, *moments = (tf.Variable(tf.zeros([n])) for n in (1000, 200, 1000, 1000, 200, 200))
  number = tf.Variable(0, dtype=tf.int64)
  network = types.SimpleNamespace(variables=[weights], count_params=lambda: 1000)
  learner = types.SimpleNamespace(
    variables=[weights, head, number],
    trainable_variables=[weights, head],
    optimizer=types.SimpleNamespace(variables=[number, *moments]),
    attack=types.SimpleNamespace(steps=5, restarts=3),
    encoder=types.SimpleNamespace(network=network),
    pretext=types.SimpleNamespace(variables=[weights, head]),
  )
  extended, asked = types.SimpleNamespace(worker_devices=["a", "b"]), []
  scope = types.SimpleNamespace(num_replicas_in_sync=4, extended=extended)
  settings = {"minutes": None, "epochs": 2, "accumulate": 6, "output_dir": "here"}
  job = types.SimpleNamespace(learner=learner, scope=scope, settings=settings, steps=9)
  state = 4 * (1200 + 2 * 1200) + 2 * 8
  memory, disk = state + 2 * 4 * 1200 + 600 // 2, 4 * state + 3 * 4 * 1000
  monkeypatch.setattr(forecast, "_graph", lambda job: "graph")
  monkeypatch.setattr(cost, "held", lambda graph: 600)
  monkeypatch.setattr(cost, "operations", lambda *given: asked.append(given) or 700)
  monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
  monkeypatch.setattr(forecast, "_peak", lambda: 50)
  room = memory + (0 if gpus else 50) - (not fits)
  monkeypatch.setattr(forecast, "_available_memory", lambda: room)
  monkeypatch.setattr(forecast, "_free_disk", lambda folder: disk - (not fits))
  found = forecast._static(job)
  figures = [found[name] for name in ("memory", "disk", "operations", "head_parameters")]
  assert figures == [memory, disk, 700 * 4 // 2, 200]
  assert asked == [("graph", 5, 6, 3)]
  assert len(found["warnings"]) == (0 if fits else 2)


@pytest.mark.parametrize("said, wanted", [("81559\n40536\n", 40536 * 2**20), ("[N/A]", None)])
def test_the_memory_is_that_of_the_smallest_gpu(monkeypatch, said, wanted):
  monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"])
  run = lambda query, **options: types.SimpleNamespace(stdout=said)  # noqa: E731
  monkeypatch.setattr(forecast.subprocess, "run", run)
  assert forecast._available_memory() == wanted


def test_a_container_may_have_less_memory_than_its_machine(monkeypatch):
  said = {"memory.max": "max\n", "memory.limit_in_bytes": "1000\n"}
  monkeypatch.setattr(pathlib.Path, "read_text", lambda path: said[path.name])
  assert forecast._available_memory() == 1000
  said["memory.limit_in_bytes"] = "max\n"
  assert forecast._available_memory() > 2**28


def test_the_disk_is_that_of_a_folder_to_come(monkeypatch, tmp_path):
  usage = lambda path: types.SimpleNamespace(free=str(path))  # noqa: E731
  monkeypatch.setattr(shutil, "disk_usage", usage)
  monkeypatch.setenv("HOME", str(tmp_path))
  for folder in (tmp_path / "a" / "b", "~/a"):
    assert forecast._free_disk(folder) == str(tmp_path)
  assert forecast._free_disk(None) is None


def test_a_description_by_hand():
  found = {"parameters": 1234, "head_parameters": 56, "operations": 4.8e9, "warnings": ["x"]}
  found |= {"memory": 2**21, "available_memory": None, "peak_memory": 2**22}
  found |= {"disk": 3 * 2**20, "free_disk": 5 * 2**20, "step_seconds": 0.5}
  found |= {"compile_seconds": 30, "seconds": 1230, "steps": 2400, "epochs": 12.34, "minutes": 20}
  assert forecast.describe(found, 16) == [
    "parameters  1,234 of the encoder, 56 of its heads",
    "one step    4.8 GFLOP, 0.30 an image; 0.5 s measured: 32 images/s, 10 GFLOP/s",
    "memory      2 MiB estimated, of unknown; 4 MiB measured",
    "disk        3 MiB estimated, of 5 MiB free",
    "whole run   about 12.3 epochs, 2,400 steps, by the clock: about 20:30, 0:30 of it before the "
    "first",
    "warning: x",
  ]


def test_what_does_not_fit_is_said_before_it_is_tried(monkeypatch):
  monkeypatch.setattr(forecast, "_available_memory", lambda: 2**20)
  monkeypatch.setattr(forecast, "_free_disk", lambda folder: 2**10)
  monkeypatch.setattr(forecast, "_measured", lambda *args: pytest.fail("it took a step"))
  found = forecast.forecast(**TINY)
  assert [text.split(" needs ")[0] for text in found["warnings"]] == ["the step", "the run"]
  assert found["seconds"] is None
  lines = forecast.describe(found, 16)
  assert sum(line.startswith("warning: ") for line in lines) == 2
  refuses("timed_steps must be a whole number of at least 1", forecast.forecast, 0)


def test_a_dry_run_finds_the_home_folder_as_the_training_does(monkeypatch):
  monkeypatch.setenv("HOME", "/the/home")
  refuses("--init_from=/the/home/run holds", forecast.forecast, **{**TINY, "init_from": "~/run"})
