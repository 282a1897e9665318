"""HopSkipJump against closed forms, and beside other libraries."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from norms import DUAL, norms, total
from small_models import digits, sequential

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
  assert hop_skip_jump.evaluations(140, 3072, "l2") == []


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
