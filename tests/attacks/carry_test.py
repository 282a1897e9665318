"""Attacks that begin with what the step before found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import tiny_trainer

from urkle_tf import attacks, distribution, robustness
from urkle_tf.networks.kl import kl_objective

LINF, L2 = attacks.Linf(0.1), attacks.L2(0.5)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_start_is_moved_by_epsilon_and_projected(threat, rng):
  images = tf.constant(rng.uniform(size=(5, 4, 4, 1)), tf.float32)
  direction = rng.normal(size=(4, 4, 1)).astype(np.float32)
  attack = attacks.PGD(threat, steps=1, step_size=0.0)  # which stays where it starts
  objective = lambda x: tf.reduce_sum(x, [1, 2, 3])  # noqa: E731
  found, _ = attack.run(objective, images, [1, 2], carried=tf.constant(direction))
  start = threat.random_start(images, distribution.fold([1, 2], 0)).numpy()
  unit = np.sign(direction) if threat is LINF else direction / np.linalg.norm(direction)
  expected = threat.project(start + threat.epsilon * unit, images)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  nothing, _ = attack.run(objective, images, [1, 2], carried=tf.zeros([4, 4, 1]))
  np.testing.assert_allclose(nothing, start, atol=1e-6)


def _trainer(attack):
  return tiny_trainer(robustness.Urkle(), attack, optimizer=keras.optimizers.SGD(0.05))


def _views(steps=3, n=8):
  views = np.random.default_rng(0).uniform(size=(steps * n, 2, 8, 8, 1)).astype("float32")
  return tf.data.Dataset.from_tensor_slices({"views": views}).batch(n, drop_remainder=True)


def test_a_step_keeps_the_mean_perturbation_for_the_next():
  attack = attacks.RSFGSM(LINF, carry=True)
  trainer = _trainer(attack)
  batches = list(_views())
  for number, batch in enumerate(batches):
    views, before = batch["views"], trainer._carried.numpy()
    flat = tf.reshape(views, [-1, 8, 8, 1])
    objective = kl_objective(trainer.encoder, flat)
    seed = distribution.fold(distribution.fold([0, 0], number), 1)
    by_hand, _ = attack.run(objective, flat, seed, carried=tf.constant(before))
    trainer.step(batch)
    expected = tf.reduce_mean(by_hand - flat, 0)
    np.testing.assert_allclose(trainer._carried.numpy(), expected, atol=1e-5)
    assert np.abs(before).max() > 0 or number == 0
  assert any(variable is trainer._carried for variable in trainer.variables)  # checkpoints


@pytest.mark.full
def test_one_replica_and_two_carry_the_same(mirrored):
  found = []
  for scope in (tf.distribute.get_strategy(), mirrored):
    with scope.scope():
      trainer = _trainer(attacks.PGD(LINF, steps=2, carry=True))
    history = trainer.fit(_views(), verbose=0).history
    found.append((history["kl"], trainer._carried.numpy()))
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-4)
  np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)
