"""tools/benchmark.py on a tiny cell: its figures exist and agree with each other."""

import importlib.util
import json
import resource
import sys

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from tools import benchmark as script

TINY = [
  *("--encoder=convnet(width=4, layers=2)", "--image_size=8", "--channels=1", "--latent_dim=4"),
  *("--batch_size=6", "--attack_steps=1", "--steps=2", "--timings=3", "--strategy=one"),
]


@pytest.fixture(scope="module")
def benchmark():
  # Importing this library closes the stream that absl logs to, unless that is sys.stderr, which
  # capsys replaces: import it before.
  if importlib.util.find_spec("art"):
    importlib.import_module("art.attacks.evasion")
    importlib.import_module("art.estimators.classification")
  return script


def _printed(benchmark, capsys, *arguments):
  benchmark.main([*TINY, *arguments])
  return json.loads(capsys.readouterr().out)  # one JSON object and nothing else


@pytest.mark.full
def test_figures_agree(benchmark, capsys):
  found = _printed(benchmark, capsys, "--attacked=1", "--precision=mixed_bfloat16")
  numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
  # Another test of this process may have taken more memory before; a batch may be there in time.
  assert numbers.pop("step_memory_mib") >= 0
  assert 0 <= numbers.pop("waiting_share") < 1
  assert all(value > 0 for value in numbers.values())
  assert found["passes"] == 3 * (2 + 1) + 1 + 2 * 1 * 1  # two views, one adversary, one step
  share = found["passes"] * found["step_images_per_second"] / found["forward_images_per_second"]
  # The median of ratios is not the ratio of medians, but near it.
  assert found["share_of_ceiling"] == pytest.approx(share, rel=0.9)
  assert found["compile_seconds"] > found["step_seconds"]  # tracing takes far longer than a step
  now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  assert 100 < found["peak_memory_mib"] <= now
  alone = _printed(benchmark, capsys, "--part=input")
  assert alone["images_per_core_second"] > 0


def test_another_system_is_refused(benchmark, monkeypatch):
  """Its getrusage has other units (macOS), and it has no /proc."""
  monkeypatch.setattr(sys, "platform", "darwin")
  refuses("run it on Linux", benchmark.main, TINY)


def test_passes_of_a_step(benchmark):
  """4K + 14 of two attacked views, about 2K + 10 of one, K + ... of none."""
  assert [benchmark.passes(2, 2, k) for k in (1, 5, 7)] == [18, 34, 42]
  assert [benchmark.passes(2, 1, k) for k in (1, 5, 12)] == [12, 20, 34]
  assert benchmark.passes(2, 0, 0) == 6


def test_ratios_are_those_within_a_turn(benchmark, monkeypatch):
  """A machine that is ten times slower in one turn of three changes no ratio."""
  now, slow = [0.0], [1.0]
  monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
  calls = []

  def contender(name, seconds):
    def call():
      calls.append(name)
      # The first 2 calls are not timed; a turn makes 2 calls of each.
      slow[0] = 10.0 if 6 <= len(calls) - 1 < 10 else 1.0
      now[0] += seconds * slow[0]
      return 0

    return call

  found = benchmark._turns({"a": contender("a", 1.0), "b": contender("b", 3.0)}, 2, 3)
  assert found == {"a": [2.0, 20.0, 2.0], "b": [6.0, 60.0, 6.0]}
  assert calls == ["a", "b", "a", "a", "b", "b", "b", "b", "a", "a", "a", "a", "b", "b"]


def test_our_attack_and_theirs_do_the_same_work(benchmark):
  """Every contender evaluates this many gradients, and the attacks move as far."""
  options = benchmark._arguments(TINY)
  classifier = benchmark._classifier(options)
  images = tf.constant(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32))
  labels = tf.constant([0, 1, 2, 3])
  found = benchmark._contenders(classifier, images, labels, 0.1, 4)
  gradient = np.asarray(found.pop("model")())
  np.testing.assert_allclose(found.pop("model_folded")(), gradient, rtol=1e-3, atol=1e-5)
  for adversaries in (np.asarray(attack()) for attack in found.values()):
    assert 0.099 < np.abs(adversaries - images).max() <= 0.1 + 1e-6
    assert 0 <= adversaries.min() <= adversaries.max() <= 1
