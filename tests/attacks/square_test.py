"""Square against its published schedule and shapes, and known maxima."""

import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from norms import NORMS, assert_inside, norms, recorded, total

from urkle_tf.attacks import Linf, Square, from_norm, square

RADIUS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
SEED = [1, 2]


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(2).uniform(size=(4, 6, 6, 2)).astype(np.float32)


def test_shares_are_the_published_ones():
  found = square.shares(10000)
  for query, halvings in [
    *[(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (201, 3), (501, 4), (1001, 5), (2001, 6)],
    *[(4001, 7), (6001, 8), (8000, 8), (8001, 9), (9999, 9)],
  ]:
    assert found[query] == 0.8 / 2**halvings
  assert square.shares(5000)[100] == 0.8 / 4  # a smaller budget goes through all of it
  assert square.shares(5000)[4999] == 0.8 / 512
  assert square.shares(1) == [0.8]


def test_template_by_hand():
  """5 x 5: a hill of 2 x 5 above, one of 3 x 5 below, of the same energy each."""
  found = square.template(5, 2)
  assert np.linalg.norm(found) == pytest.approx(1)
  assert np.linalg.norm(found[:2]) == pytest.approx(np.sqrt(0.5))
  assert (found[:2] > 0).all()
  assert (found[2:] < 0).all()
  # Weights by distance from the middle: 1 + 1/4 + 1/9, 1/4 + 1/9, 1/9.
  lower = np.array([[4, 13, 13, 13, 4], [4, 13, 49, 13, 4], [4, 13, 13, 13, 4]])
  np.testing.assert_allclose(found[2:] / found[3, 2], lower / 49, rtol=1e-5)
  upper = np.array([[4, 13, 13, 13, 4], [4, 13, 49, 13, 4]])
  np.testing.assert_allclose(found[:2] / found[1, 2], upper / 49, rtol=1e-5)
  assert abs(square.template(3, 1)).sum() == pytest.approx(1)
  np.testing.assert_array_equal(abs(square.template(1, 2)), [[1]])


@pytest.mark.parametrize("norm", NORMS)
def test_asks_only_forwards_stays_inside_and_never_falls(images, norm):
  target = np.random.default_rng(3).normal(size=images.shape).astype(np.float32)
  objective, seen = recorded(lambda z: total(tf.round(3 * z * target)))  # no gradient anywhere
  attack = Square(from_norm(norm, RADIUS[norm]), queries=60)
  y, info = attack.run(objective, images, SEED)
  assert len(seen) == 60
  values = np.stack([values for values, _ in seen])
  np.testing.assert_array_equal(info["objective"], values.max(0))
  np.testing.assert_array_equal(y, [seen[k][1][i] for i, k in enumerate(values.argmax(0))])
  for _, points in seen:
    assert_inside(points, images, norm, RADIUS[norm])
  # Every proposal differs from the best before it in the pixels of at most two squares.
  best, best_values = seen[0][1].copy(), values[0].copy()
  sides = [min(max(round(np.sqrt(p * 36)), 1), 6) for p in square.shares(60)]
  for number in range(1, 60):
    changed = (seen[number][1] != best).any(-1)
    if norm == "linf":
      for mask in changed:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
          assert rows[-1] - rows[0] < sides[number]
          assert columns[-1] - columns[0] < sides[number]
    higher = values[number] > best_values
    best[higher], best_values[higher] = seen[number][1][higher], values[number][higher]
  assert (values.max(0) > values[0]).all()


def test_the_start_of_linf_is_vertical_stripes(images):
  x = 0.2 + 0.6 * images  # away from the bounds
  y = Square(Linf(0.1), queries=1)(lambda z: total(z), x, SEED).numpy()
  change = (y - x).round(5)
  assert set(np.unique(change)) == set(np.float32([-0.1, 0.1]).round(5))
  np.testing.assert_array_equal(change, change[:, :1] + 0 * change)
  assert (change[0] != change[1]).any()
  assert (change[..., 0] != change[..., 1]).any()
  later = Square(Linf(0.1), queries=30)(lambda z: total(z), x, SEED) - x  # squares move by 0.2
  np.testing.assert_allclose(np.abs(later), np.full(x.shape, 0.1), rtol=1e-5)


@pytest.mark.parametrize("norm, order", [("l2", 2), ("l1", 1)])
def test_the_start_of_l2_and_l1_is_a_grid_of_hills(norm, order):
  """Five by five of them, up or down in each channel, some of them turned."""
  x = np.full((3, 16, 18, 2), 0.5, np.float32)
  y = Square(from_norm(norm, 0.3), queries=1)(lambda z: total(z), x, SEED).numpy() - x
  np.testing.assert_allclose(norms(y, norm), 0.3, rtol=1e-4)
  np.testing.assert_array_equal(y[:, 15:], 0)
  np.testing.assert_array_equal(y[:, :, 15:], 0)
  hills, size = square.template(3, order), 0.3 / (25 * 2) ** (1 / order)
  kinds = set()
  for image, row, column, channel in np.ndindex(3, 5, 5, 2):
    tile = y[image, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3, channel]
    near = [abs(tile / size - one).max() < 1e-3 for one in (hills, -hills, hills.T, -hills.T)]
    assert sum(near) == 1
    kinds.add(near.index(True))
  assert len(kinds) == 4


def test_hills_have_odd_sides_of_at_least_three_where_the_image_has_room():
  lengths = ((1.0, 6, 6), (3.6, 9, 9), (6.0, 6, 6), (9.0, 9, 7), (2.0, 1, 2))
  assert [square._Hills.side(*case) for case in lengths] == [3, 5, 5, 7, 1]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_proposal_by_hand(images, norm):
  """One image and channel after the other: the squares of section 3.4, cut out with slices."""
  order, side = {"l2": 2, "l1": 1}[norm], 3
  x = 0.2 + 0.6 * images
  threat = from_norm(norm, RADIUS[norm])
  proposals = square._Hills(threat, tf.constant(x), tf.range(len(x)))
  best = proposals.start(tf.constant(SEED))
  best = tf.concat([best[:2], x[2:] + 0.5 * (best[2:] - x[2:])], 0)  # with free budget
  seed = tf.constant([5, 6])
  draws = proposals.uniform(seed, 5 + 2).numpy()
  corners = np.stack([proposals.place(draws[:, i : i + 2], side) for i in (0, 2)], 1)
  found = proposals.propose(best, np.int32([5, side]), 1, seed).numpy()
  hills = square.template(side, order)
  for i in range(len(x)):
    offsets = np.float64(best[i]) - x[i]
    (top, left), (other_top, other_left) = corners[i]
    filled = np.s_[top : top + side, left : left + side]
    kept = offsets.copy()
    kept[filled] = kept[other_top : other_top + side, other_left : other_left + side] = 0
    free = max(RADIUS[norm] ** order - (abs(offsets) ** order).sum(), 0)
    for c in range(2):
      sign = -1 if draws[i, 5 + c] < 0.5 else 1
      there = offsets[filled][..., c]
      new = sign * (hills.T if draws[i, 4] < 0.5 else hills)
      new = new + there / np.linalg.norm(there.ravel(), order)
      had = (abs(offsets[..., c]) ** order).sum() - (abs(kept[..., c]) ** order).sum()
      size = (free / 2 + had) ** (1 / order)
      kept[filled + (c,)] = size * new / np.linalg.norm(new.ravel(), order)
    np.testing.assert_allclose(found[i], np.clip(x[i] + kept, 0, 1), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_l2_and_l1_use_the_whole_budget(images, norm):
  x = 0.4 + 0.2 * images
  epsilon = {"l2": 0.3, "l1": 1.0}[norm]
  for queries in (1, 30):
    y = Square(from_norm(norm, epsilon), queries=queries)(lambda z: total(z**2), x, SEED)
    np.testing.assert_allclose(norms(y - x, norm), epsilon, rtol=2e-2)


@pytest.mark.parametrize(
  "norm, share_of_maximum", [("linf", 0.97), *slow(("l2", 0.5), ("l1", 0.35))]
)
def test_comes_near_the_maximum_of_a_linear_objective(images, norm, share_of_maximum):
  """For linf to the corner itself; the hills of l2 and l1 cannot follow each pixel's sign."""
  x, epsilon = 0.4 + 0.2 * images, {"linf": 0.1, "l2": 0.3, "l1": 0.3}[norm]
  g = np.random.default_rng(6).normal(size=(6, 6, 2)).astype(np.float32)
  attack = Square(from_norm(norm, epsilon), queries=1500)
  y = tf.function(lambda x: attack(lambda z: total(g * z), x, SEED))(tf.constant(x))
  dual = {"linf": abs(g).sum(), "l2": np.linalg.norm(g), "l1": abs(g).max()}[norm]
  found = (g * (np.float64(y) - x)).sum((1, 2, 3)) / (epsilon * dual)
  assert (found > share_of_maximum).all()
  assert (found <= 1 + 1e-5).all()


def test_tiny_images(rng):
  x = rng.uniform(size=(2, 1, 2, 1)).astype(np.float32)
  for norm in NORMS:
    y = Square(from_norm(norm, 0.2), queries=5)(lambda z: total(z), x, SEED)
    assert (norms(y - x, norm) <= 0.2 + 1e-6).all()
