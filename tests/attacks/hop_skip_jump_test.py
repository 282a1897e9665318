"""HopSkipJump against closed forms, and beside other libraries."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from norms import DUAL, norms, total
from small_models import digits, sequential

from urkle_tf import distribution
from urkle_tf.attacks import HopSkipJump, from_norm, hop_skip_jump, losses

SEED = [1, 2]


def affine(rng, count=6):
  """Images inside of the box, and a hyperplane that none of them is beyond."""
  x = rng.uniform(0.4, 0.6, size=(count, 4, 4, 1)).astype(np.float32)
  w = rng.normal(size=(4, 4, 1)).astype(np.float32)
  w -= w.mean() - 0.1  # noise of the box lies beyond it often enough
  return x, w, float((x * w).sum((1, 2, 3)).max()) + 0.3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distance_is_that_of_the_hyperplane(rng, norm):
  x, w, level = affine(rng)
  attack = HopSkipJump(from_norm(norm, 1e-4), queries=3000)
  run = tf.function(lambda z: attack.run(lambda y: total(w * y) - level, z, SEED), autograph=False)
  found, info = run(x)
  away = (level - (x * w).sum((1, 2, 3))) / np.linalg.norm(w.ravel(), DUAL[norm])
  farther = info["distance"].numpy() / away
  assert 1 - 1e-4 <= farther.min() <= farther.max() <= 1.05
  assert (norms(found - x, norm) <= 1e-4 + 1e-7).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_sees_signs_alone_stays_in_the_box_and_keeps_to_its_budget(rng, norm):
  x, w, level = affine(rng)
  away = (level - (x * w).sum((1, 2, 3))) / np.linalg.norm(w.ravel(), DUAL[norm])
  epsilon = float(np.median(away[1:])) * (2 if norm == "l1" else 1.02)
  x[0] += np.float32(0.4) * np.sign(w)  # broken as it is
  x = np.clip(x, 0, 1)
  seen = []

  def objective(z):
    tf.py_function(lambda points: seen.append(points.numpy()), [z], [])
    return scale * tf.sign(total(w * z) - level)

  attack, scale = HopSkipJump(from_norm(norm, epsilon), queries=700), tf.Variable(1.0)
  run = tf.function(lambda z: attack.run(objective, z, SEED), autograph=False)
  found, info = run(x)
  assert 100 < len(seen) <= 700
  assert all(0 <= points.min() <= points.max() <= 1 for points in seen)
  np.testing.assert_array_equal(found[0], x[0])
  assert info["distance"][0] == 0
  fallen = info["distance"].numpy() <= epsilon
  assert norm == "l1" or 0 < fallen[1:].sum() < 5  # l1's steps are those of l2
  assert (total(w * found).numpy()[fallen] > level).all()
  farther = np.minimum(1.02 * info["distance"], epsilon)[fallen]
  np.testing.assert_allclose(norms(found - x, norm)[fallen], farther, rtol=1e-4)
  assert (norms(found - x, norm) <= epsilon + 1e-6).all()
  scale.assign(7.0)
  np.testing.assert_array_equal(found, run(x)[0])
  # One image's points do not depend on the others': it is as if these had fallen at once.
  mask = np.arange(len(x)).reshape(-1, 1, 1, 1) < 2
  np.testing.assert_array_equal(found[:2], run(np.where(mask, x, x[:1]))[0][:2])


def test_estimates_grow_with_the_root_of_their_number():
  found = hop_skip_jump.evaluations(5000, 3072, "l2")
  assert found[:4] == [100, 141, 173, 200]
  # 20 starts, 18 bisections (log2 of 3072^1.5 is 17.4) and 2 of the result; 8 + 18 an iteration.
  assert 20 + 18 + 2 + sum(found) + 26 * len(found) <= 5000
  assert hop_skip_jump.evaluations(165, 3072, "l2") == []
  assert hop_skip_jump.evaluations(166, 3072, "l2") == [100]  # 20 + 18 + 2 + 100 + 26
  cases = {(64, "linf"): 12, (400, "l1"): 13, (64, "l2"): 10, (3072, "linf"): 20}
  assert {case: hop_skip_jump._bisections(*case) for case in cases} == cases


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_direction_is_the_contrast_of_the_broken_and_the_unbroken(rng, norm):
  """At a boundary, at a corner of the box, very near to the image, and where all is broken."""
  points = rng.uniform(0.3, 0.7, size=(4, 2, 3, 1)).astype(np.float32)
  points[1] = [[[0], [1], [0]], [[1], [0.5], [0]]]
  points[2, 0, 0] = 1 - 1e-5
  distance, count, w = np.float32([0.6, 0.6, 1e-9, 0.6]), 9, rng.normal(size=(2, 3, 1))
  level = (points * w).sum((1, 2, 3)) + np.float32([0.01, 0.01, 0, -9])
  objective = lambda z: total(np.float32(w) * z) - np.float32(level)  # noqa: E731
  way = hop_skip_jump._Way(from_norm(norm, 0.1), objective, tf.constant(points))
  seed = tf.constant([5, 6])
  found = way.direction(tf.constant(points), tf.constant(distance), count, seed).numpy()
  for i, size in enumerate(np.maximum(distance / 6, 1e-5 * 6**0.5)):
    changes, signs = [], []
    for number in range(count):
      key = distribution.fold(seed, number)
      draw = distribution.normal(key, points.shape)
      if norm == "linf":
        draw = distribution.uniform(key, points.shape, -1, 1)
      noise = draw[i].numpy() / np.linalg.norm(draw[i].numpy())
      moved = np.clip(points[i] + size * noise, 0, 1)
      changes.append((moved - points[i]) / size)
      signs.append(1 if (w * moved).sum() > level[i] else -1)
    assert (len(set(signs)) == 2) == (i < 3)
    weights = signs - np.mean(signs) if i < 3 else np.float64(signs)
    wanted = np.tensordot(weights, changes, 1)
    wanted = np.sign(wanted) if norm == "linf" else wanted / np.linalg.norm(wanted)
    np.testing.assert_allclose(found[i], wanted, atol=2e-2 if i == 2 else 1e-4)


def test_a_jump_is_halved_until_it_is_broken():
  broken_up_to = tf.constant([0.53, 0.5032, 0.5031, 0.95])
  points = tf.fill([4, 1, 1, 1], 0.5)
  objective = lambda z: broken_up_to - total(z)  # noqa: E731
  way = hop_skip_jump._Way(from_norm("l2", 0.1), objective, points)
  found = way.jump(points, tf.ones_like(points), tf.fill([4], 0.4))
  wanted = 0.5 + 0.4 * np.array([1 / 16, 1 / 128, 0, 1])  # eight tries
  np.testing.assert_allclose(np.ravel(found), wanted, atol=1e-6)


def test_starts_are_blocks_of_noise_and_the_first_broken_one_counts():
  """Of two images of 8 x 4, the first falls at once, the second at the seventh noise or never."""
  for falls, tried in ((7, 8), (99, 20)):
    seen = []

    def objective(z, seen=seen, falls=falls):
      seen.append(z.numpy())
      return tf.constant([len(seen) - 1.5, len(seen) - falls - 0.5])

    images = tf.zeros([2, 8, 4, 1])
    start, found = hop_skip_jump._Way(from_norm("linf", 0.1), objective, images).start(SEED)
    assert len(seen) == tried
    np.testing.assert_array_equal(start, [seen[1][0], seen[7][1] if tried == 8 else images[1]])
    np.testing.assert_array_equal(found, [True, tried == 8])
  blocks = [len(np.unique(points[0])) for points in seen[1:]]
  assert blocks == [32, 1, 2 * 2, 4 * 4, 32] * 3 + [32, 1, 2 * 2, 4 * 4]
  assert len(np.unique(seen[3][0, :4, :2])) == 1
  assert seen[6].min() < 0.1 < 0.9 < seen[6].max()


def test_steps_fall_with_the_root_of_their_number_until_all_are_near(monkeypatch):
  counts, sizes, seeds = [], [], set()

  def direction(self, point, away, count, seed):
    counts.append(int(count))
    seeds.add(tuple(seed.numpy()))
    return tf.zeros_like(point)

  def jump(self, point, direction, size):  # no nearer, and in the end farther away
    sizes.append(float(size[0]))
    return point + (0.5 * tf.one_hot([[1]], 4)[..., None] if len(sizes) == 3 else 0.0)

  monkeypatch.setattr(hop_skip_jump._Way, "direction", direction)
  monkeypatch.setattr(hop_skip_jump._Way, "jump", jump)
  images = tf.fill([1, 1, 4, 1], 0.2)
  objective = lambda z: z[:, 0, 0, 0] - 0.6  # noqa: E731
  _, info = HopSkipJump(from_norm("l2", 0.1), queries=600).run(objective, images, SEED)
  assert (counts, len(seeds)) == ([100, 141, 173], 3)
  np.testing.assert_allclose(sizes, info["distance"] / np.sqrt([1, 2, 3]), rtol=1e-2)
  HopSkipJump(from_norm("linf", 0.5), queries=600).run(objective, images, SEED)
  assert len(counts) == 3  # 0.4 is within epsilon


@pytest.mark.full
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_farther_than_foolbox(norm):
  foolbox = pytest.importorskip("foolbox")
  keras.utils.set_random_seed(0)
  images, labels = digits()
  hidden = keras.layers.Dense(32, "relu")
  network = sequential((8, 8, 1), keras.layers.Flatten(), hidden, keras.layers.Dense(10))
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  network.compile(keras.optimizers.Adam(1e-2), loss)
  network.fit(images[:1400], labels[:1400], batch_size=64, epochs=8, verbose=0)
  right = np.flatnonzero(network(images[1400:]).numpy().argmax(1) == labels[1400:])[:20] + 1400
  x, y = tf.constant(images[right]), tf.constant(labels[right])
  attack = HopSkipJump(from_norm(norm, 1e-6), queries=2500)
  margin = lambda z: losses.margin(network(z), y)  # noqa: E731
  run = tf.function(lambda x: attack.run(margin, x, SEED)[1], autograph=False)
  ours = run(x)["distance"].numpy()
  model = foolbox.TensorFlowModel(network, bounds=(0, 1), device="CPU:0")
  options = {"steps": 10, "max_gradient_eval_steps": 400, "constraint": norm}
  attack, criterion = foolbox.attacks.HopSkipJumpAttack, foolbox.criteria.Misclassification(y)
  theirs = attack(**options).run(model, x, criterion)
  theirs = norms(theirs.numpy() - x.numpy(), norm)
  assert np.median(ours / theirs) < 1.1
