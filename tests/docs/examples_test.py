"""The examples that show Urkle in models and loops of others: each does what it says."""

import importlib

import pytest

EXAMPLES = ("robust_classifier", "robust_regression", "robust_simclr")


def example(name):
  """An example as a module."""
  return importlib.import_module(f"examples.{name}")


@pytest.mark.full
def test_a_classifier_gains_robustness(capsys):
  found = example("robust_classifier").main(epochs=4)
  assert found[True][1] > found[False][1] + 0.05
  assert found[True][0] > 0.6
  assert capsys.readouterr().out.count("% attacked") == 2


@pytest.mark.full
def test_a_regression_model_gains_robustness(capsys):
  found = example("robust_regression").main(epochs=4)
  assert found[True][1] < 0.8 * found[False][1]
  assert found[True][0] < 2.2  # a constant guess is off by 2.5
  assert capsys.readouterr().out.count(" attacked") == 2


@pytest.mark.full
def test_a_simclr_loop_gains_robustness(capsys):
  found = example("robust_simclr").main(epochs=3)
  assert found[0.01] < 0.8 * found[0.0]
  assert capsys.readouterr().out.count("epoch 3") == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_says_how_it_is_run(name):
  assert f"  python examples/{name}.py\n" in example(name).__doc__
