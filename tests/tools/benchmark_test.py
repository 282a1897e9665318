"""tools/benchmark.py on a tiny cell: its figures exist and agree with each other."""

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

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
  assert found["passes"] == 3 * (2 + 1) + 1 + 2 * 1 * 1  # two views, one adversary, one step
  share = found["passes"] * found["step_images_per_second"] / found["forward_images_per_second"]
  # The median of ratios is not the ratio of medians, but near it.
  assert found["share_of_ceiling"] == pytest.approx(share, rel=0.9)
  for part in ("step", "input"):
    batch = found[f"{part}_images_per_second"] * found[f"{part}_seconds"]
    assert batch == pytest.approx(6)
  alone = _printed(benchmark, capsys, "--part=input")
  assert alone["images_per_core_second"] > 0


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
    change = np.abs(adversaries - images)
    assert 0.099 < change.max() <= 0.1 + 1e-6
    assert adversaries.min() >= 0
    assert adversaries.max() <= 1
