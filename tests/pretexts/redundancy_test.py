"""Barlow Twins and VICReg: losses against plain loops, cases worked by hand, global batches."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from small_models import learn_digits, representations, tiny_encoder

from urkle_tf import networks, pretexts
from urkle_tf.pretexts.barlow_twins import cross_correlation


def _bare(pretext):
  """The pretext without a projector: what its loss makes of z itself."""
  pretext.projector = lambda z, training: z
  return pretext


def _loss(pretext, z):
  return pretext.loss(representations(z + 9.0, z=z), None)  # loc counts for nothing


def _barlow_loop(z, redundancy):
  """Equation 1 of Barlow Twins, term by term, over d, averaged over pairs of members."""
  n, members, d = z.shape
  standard = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
  diagonal, others = [], []
  for a, b in itertools.combinations(range(members), 2):
    c = standard[:, a].T @ standard[:, b] / n
    diagonal.append(np.sum((1 - np.diag(c)) ** 2) / d)
    others.append(redundancy * np.sum((c - np.diag(np.diag(c))) ** 2) / d)
  return {"invariance": np.mean(diagonal), "redundancy": np.mean(others)}


def _vicreg_loop(z, weights):
  """Algorithm 1 of VICReg for each pair of members."""
  _, members, d = z.shape
  values = {"invariance": [], "variance": [], "covariance": []}
  for a, b in itertools.combinations(range(members), 2):
    values["invariance"].append(np.mean((z[:, a] - z[:, b]) ** 2))
    variance = covariance = 0.0
    for m in (a, b):
      deviation = np.sqrt(np.var(z[:, m], axis=0, ddof=1) + 1e-4)
      variance += np.mean(np.maximum(0, 1 - deviation))
      cov = np.cov(z[:, m].T)
      covariance += sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    values["variance"].append(variance)
    values["covariance"].append(covariance)
  shares = np.array(weights) / np.sum(weights)
  return {k: w * np.mean(v) for (k, v), w in zip(values.items(), shares, strict=True)}


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("kind", ["barlow_twins", "vicreg"])
def test_losses_are_the_plain_loop(rng, kind, members):
  shared = rng.normal(size=(9, 1, 5))
  z = 0.7 * shared + 0.5 * rng.normal(size=(9, members, 5)) + rng.normal(size=5)
  if kind == "vicreg":
    weights = (2.0, 3.0, 0.5)
    loss, expected = _loss(_bare(pretexts.VICReg(*weights)), z), _vicreg_loop(z, weights)
  else:
    loss, expected = _loss(_bare(pretexts.BarlowTwins(0.3)), z), _barlow_loop(z, 0.3)
  assert tuple(loss) == tuple(expected)
  for name, value in expected.items():
    assert value > 0
    np.testing.assert_allclose(loss[name], np.full(9, value), rtol=1e-4, err_msg=name)


def test_cross_correlation_is_numpys(rng):
  first, second = rng.normal(size=(2, 30, 4)) * [[[1.0]], [[7.0]]] + 3
  expected = np.corrcoef(first.T, second.T)[:4, 4:]
  found = cross_correlation(tf.constant(first, tf.float32), tf.constant(second, tf.float32))
  np.testing.assert_allclose(found, expected, atol=1e-5)


# Two dimensions over four images: of mean 0 and variance 1, and uncorrelated.
CORNERS = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])


@pytest.mark.parametrize(
  "other, invariance, redundancy",
  [
    (CORNERS, 0.0, 0.0),  # C = identity
    (-CORNERS, 4.0, 0.0),  # C = -identity: (1 + 1)^2
    (CORNERS[:, ::-1], 1.0, 1.0),  # C = ((0, 1), (1, 0)): lambda (1 + 1) / d
    (CORNERS[:, :1] * [1, 1], 0.5, 0.5),  # C = ((1, 1), (0, 0))
  ],
)
def test_barlow_twins_by_hand(other, invariance, redundancy):
  loss = _loss(_bare(pretexts.BarlowTwins(0.25)), np.stack([CORNERS, 10 * other + 3], 1))
  np.testing.assert_allclose(loss["invariance"], [invariance] * 4, atol=1e-4)
  np.testing.assert_allclose(loss["redundancy"], [0.25 * redundancy] * 4, atol=1e-4)


def test_vicreg_by_hand():
  pretext = _bare(pretexts.VICReg())  # 25, 25 and 1 of 51
  collapsed = _loss(pretext, np.ones((4, 2, 3)))  # sqrt(0 + 1e-4) = 0.01
  np.testing.assert_allclose(collapsed["invariance"], 0.0)
  np.testing.assert_allclose(collapsed["variance"], 25 / 51 * 2 * 0.99, rtol=1e-5)
  np.testing.assert_allclose(collapsed["covariance"], 0.0, atol=1e-8)
  # Both views are one line in two dimensions: Var = Cov = 4/3, c = 2 (4/3)^2 / 2 for each.
  line = np.repeat(CORNERS[:, None, :1], 2, 1) * [1, 1]
  loss = _loss(pretext, line)
  np.testing.assert_allclose(loss["variance"], 0.0)
  np.testing.assert_allclose(loss["covariance"], 2 * 16 / 9 / 51, rtol=1e-5)
  # Views that are 2 apart in one of two dimensions.
  apart = np.stack([CORNERS, CORNERS + [0, 2]], 1)
  np.testing.assert_allclose(_loss(pretext, apart)["invariance"], 25 / 51 * 4 / 2, rtol=1e-5)


def test_unrelated_views_start_near_one_in_any_dimension(rng):
  """The weight of a KL term beside it means the same for any width and batch."""
  for n, d in ((64, 8), (64, 128), (256, 32)):
    loss = _loss(_bare(pretexts.BarlowTwins()), rng.normal(size=(n, 2, d)))
    assert float(loss["invariance"][0]) == pytest.approx(1.0, abs=0.15)
    floor = 0.0051 * (d - 1) / n
    assert float(loss["redundancy"][0]) == pytest.approx(floor, rel=0.3)


@pytest.mark.parametrize("kind", [pretexts.VICReg, *slow(pretexts.BarlowTwins)])
def test_two_replicas_are_one_batch(rng, on_two, kind):
  """Values and gradients are those of the global batch."""
  z, pretext = rng.normal(size=(8, 4, 3)).astype("float32"), _bare(kind())

  def step(z):
    with tf.GradientTape() as tape:
      tape.watch(z)
      terms = _loss(pretext, z)
      share = tf.add_n([tf.reduce_mean(v) for v in terms.values()])
      share /= tf.distribute.get_replica_context().num_replicas_in_sync
    return terms, tape.gradient(share, z)

  terms, gradient = step(tf.constant(z))
  found, both = on_two(step, z)
  np.testing.assert_allclose(both, gradient, rtol=1e-4, atol=1e-6)
  for name, values in found.items():
    np.testing.assert_allclose(values, terms[name], rtol=1e-5)


@pytest.mark.parametrize("kind", [pretexts.BarlowTwins, pretexts.VICReg])
def test_the_sampled_z_is_projected(rng, kind):
  encoder = tiny_encoder()
  pretext = kind(projector=8, projection=5)
  pretext.attach(encoder)
  normal = encoder(rng.uniform(size=(12, 8, 8, 1)).astype("float32"))
  noise = rng.normal(size=(12, 6)).astype("float32")
  loss = pretext.loss(networks.Representations.of(normal, 2, noise), None)
  z = pretext.projector(normal.loc + normal.scale * noise, training=True)
  z = np.float64(z).reshape(6, 2, 5)
  loop = _barlow_loop(z, 0.0051) if kind is pretexts.BarlowTwins else _vicreg_loop(z, (25, 25, 1))
  for name, value in loop.items():
    np.testing.assert_allclose(loss[name][0], value, rtol=1e-3, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("kind", [pretexts.BarlowTwins, pretexts.VICReg])
def test_digits_are_learnt_and_nothing_collapses(kind):
  before, after, rank = learn_digits(kind(projector=64, projection=64))
  assert after > before + 0.1
  assert rank > 3
