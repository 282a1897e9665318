"""launch/benchmark.py on a tiny cell: its figures exist and agree with each other."""

import importlib.util
import json
import os
import pathlib
import resource

import pytest
import tensorflow as tf

FILE = pathlib.Path(__file__).parent.parent / "launch" / "benchmark.py"
TINY = [
  "--encoder=convnet(width=4, layers=2)",
  "--image_size=8",
  "--channels=1",
  "--latent_dim=4",
  "--batch_size=6",
  "--attack_steps=1",
  "--steps=2",
  "--timings=3",
  "--strategy=one",
]


@pytest.fixture(scope="module")
def benchmark():
  specification = importlib.util.spec_from_file_location("benchmark", FILE)
  module = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(module)
  return module


def _printed(benchmark, capsys, *arguments):
  benchmark.main([*TINY, *arguments])
  return json.loads(capsys.readouterr().out)  # one JSON object and nothing else


def test_figures_agree(benchmark, capsys):
  found = _printed(benchmark, capsys, "--attacked=1", "--precision=mixed_bfloat16")
  numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
  assert set(numbers) >= {
    "step_seconds",
    "step_images_per_second",
    "input_seconds",
    "input_images_per_second",
    "input_share_of_step",
    "compile_seconds",
    "peak_memory_mib",
  }
  assert all(value > 0 for value in numbers.values())
  for part in ("step", "input"):
    batch = found[f"{part}_images_per_second"] * found[f"{part}_seconds"]
    assert batch == pytest.approx(6)
  share = found["input_seconds"] / found["step_seconds"]
  assert found["input_share_of_step"] == pytest.approx(share)
  assert found["compile_seconds"] > found["step_seconds"]  # tracing takes far longer than a step
  now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  assert 100 < found["peak_memory_mib"] <= now
  assert found["machine"]["cores"] <= os.cpu_count()
  assert found["machine"]["tensorflow"] == tf.__version__
  assert found["settings"]["precision"] == "mixed_bfloat16"


def test_seconds_are_the_median(benchmark, monkeypatch):
  # Three timings of two calls each, of 2, 20 and 4 seconds.
  clock = iter([0.0, 2.0, 10.0, 30.0, 40.0, 44.0])
  monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
  calls = []
  assert benchmark._seconds(lambda: calls.append(1), 2, 3) == 2.0
  assert len(calls) == 6


def test_mistakes_end_in_one_line(benchmark, capsys):
  with pytest.raises(SystemExit) as ended:
    benchmark.main([*TINY, "--encoder=resnet19"])
  assert ended.value.code == 2
  printed = capsys.readouterr()
  assert printed.out == ""
  assert printed.err.startswith("error: ")
  assert printed.err.count("\n") == 1
