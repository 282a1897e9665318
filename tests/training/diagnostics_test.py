"""The figures that steps report besides their terms, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from norms import norms

from urkle_tf import attacks, robustness
from urkle_tf.training import attack_schedules, diagnostics


def of_urkle(weight=0.3):
  scheme = robustness.Urkle()
  scheme.weight = weight
  return diagnostics.Diagnostics(scheme, attack_schedules.Constant())


@pytest.mark.parametrize("attacked", [1, 2])
def test_figures_of_a_pass(rng, attacked):
  """Of six images with two views each, and the adversaries of the first view or of both."""
  loc = rng.normal(0.5, 2.0, size=(6, 2 + attacked, 3)).astype(np.float32)
  scale = rng.uniform(0.1, 1.0, size=loc.shape).astype(np.float32)
  found = of_urkle(0.3).of_pass(tfp.distributions.Normal(loc, scale), 2)
  loc, scale = np.float64(loc), np.float64(scale)
  first = loc[:, 0]
  eigenvalues = np.linalg.eigvalsh(np.cov(first.T))
  (m, n), (s, t) = ((x[:, :attacked], x[:, 2:]) for x in (loc, scale))
  wanted = {
    "sigma_min": scale.min(),
    "sigma_mean": scale.mean(),
    "sigma_max": scale.max(),
    "snr": np.mean(np.abs(loc) / scale),
    "sigma_over_spread": scale.mean() / np.sqrt(first.var(0).mean()),
    "loc_std": first.std(0).mean(),
    "effective_rank": eigenvalues.sum() ** 2 / np.sum(eigenvalues**2),
    "effective_k": 0.3 * np.mean(np.sum(loc**2, -1)) / np.mean(scale**2),
    "kl_mean_part": np.mean(np.sum((m - n) ** 2 / (2 * t**2), -1)),
    "kl_scale_part": np.mean(np.sum(np.log(t / s) + s**2 / (2 * t**2) - 0.5, -1)),
  }
  assert set(found) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.5)])
def test_figures_of_an_attack(rng, norm, epsilon):
  images = rng.uniform(size=(4, 2, 3, 3, 1)).astype(np.float32)
  adversaries = (images + rng.uniform(-0.1, 0.1, size=images.shape)).astype(np.float32)
  info = {"objective": tf.constant([1.0, 2.0, 6.0]), "zero_gradients": tf.constant(0.25)}
  given = tf.constant(images), tf.constant(adversaries), info
  found = of_urkle().of_attack(attacks.from_norm(norm, epsilon), *given)
  moved = norms((adversaries - images).reshape(8, 9), norm)
  assert set(found) == {"attack_objective", "zero_gradients", "attack_distance"}
  assert float(found["attack_objective"]) == 3
  assert float(found["zero_gradients"]) == 0.25
  assert float(found["attack_distance"]) == pytest.approx(moved.mean() / epsilon, rel=1e-4)
