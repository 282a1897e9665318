"""The examples that show Urkle in models and loops of others: each does what it says."""

import pytest

from examples import robust_classifier, robust_regression, robust_simclr

pytestmark = pytest.mark.full


def test_a_classifier_gains_robustness():
  found = robust_classifier.main(epochs=4)
  assert found[True][1] > found[False][1] + 0.05
  assert found[True][0] > 0.6


def test_a_regression_model_gains_robustness():
  found = robust_regression.main(epochs=4)
  assert found[True][1] < 0.8 * found[False][1]
  assert found[True][0] < 2.2  # a constant guess is off by 2.5


def test_a_simclr_loop_gains_robustness():
  found = robust_simclr.main(epochs=3)
  assert found[0.01] < 0.8 * found[0.0]
