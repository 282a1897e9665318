"""The certified bound of Proposition 1 where every part of it has a closed form."""

import math

import keras
import numpy as np
import pytest
from small_models import array_source, linear_head, sequential

from urkle_tf import networks
from urkle_tf.evaluation import certificate
from urkle_tf.evaluation.context import Context
from urkle_tf.evaluation.measurements.certificate import Certificate
from urkle_tf.networks.classifier import Classifier


@pytest.fixture(scope="module")
def measured():
  """A function of the evaluation's radius to the part, with M = 3.

  Loc is 3 x - 4 y of two grey pixels, sigma 0.5, and the head gives each of four classes the same
  probability.
  """
  flat = sequential((1, 2, 1), keras.layers.Flatten())
  options = {"min_scale": 0.5, "max_scale": 0.5, "loc": "dense", "preprocess": lambda x: x}
  encoder = networks.GaussianEncoder(flat, 1, **options)
  encoder.network.get_layer("raw_loc").set_weights([np.array([[3.0], [-4.0]])])
  model = Classifier(encoder.network, linear_head(np.zeros((1, 4)), np.zeros(4)))
  source = array_source(np.full((3, 1, 2, 1), 128, np.uint8), np.arange(3), 4)

  def measure(epsilon):
    context = Context(source, "linf", [epsilon], model, encoder.network, batch_size=2)
    return certificate.measure(context, Certificate([0.02, 0.09], 3.0, steps=5, examples=3))

  return measure


# The loss is log 4 whatever z is; of 3 images and 200 samples each, Hoeffding adds the rest.
LOSS = math.log(4) + 3 * math.sqrt(math.log(1000) / (2 * 3 * 200))


def test_each_part_is_its_closed_form(measured):
  """KL = (7 epsilon)^2 / (2 sigma^2), so that M sqrt(KL / 2) = 7 M epsilon."""
  found = measured(0.1)
  assert found["clean_loss"] == pytest.approx(LOSS, rel=1e-5)
  for row, epsilon in zip(found["rows"], (0.02, 0.09), strict=True):
    assert row["kl"] == pytest.approx((7 * epsilon) ** 2 / (2 * 0.5**2), rel=1e-4)
    assert row["found"] == pytest.approx(row["kl"], rel=1e-3)
    assert row["value"] == pytest.approx(LOSS + 3 * 7 * epsilon, rel=1e-4)
  assert [row["vacuous"] for row in found["rows"]] == [False, True]
  # LOSS + 21 epsilon < 3, to the last of 12 halvings of log(0.1 / 1e-7).
  largest = (3 - LOSS) / 21
  assert largest * (1 - 4e-3) <= found["largest_epsilon"] <= largest * (1 + 1e-4)
  assert (found["M"], found["alpha"], found["examples"]) == (3.0, 0.001, 3)


def test_no_epsilon_beyond_the_evaluations_is_looked_for(measured):
  assert measured(0.03)["largest_epsilon"] == 0.03


def test_the_largest_epsilon():
  """0 where even the smallest is too large."""
  assert certificate._largest(lambda epsilon: False, 0.1) == 0
  assert certificate._largest(lambda epsilon: epsilon < 0.01, 0.1) == pytest.approx(0.01, rel=4e-3)
