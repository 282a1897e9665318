"""RoCL: its attack's objective and its loss, against plain loops and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import refuses
from norms import assert_inside
from plain_losses import nt_xent_loop
from small_models import settled, tiny_encoder, tiny_trainer, worst_of_corners

import urkle_tf
from urkle_tf import attacks, networks, pretexts, robustness
from urkle_tf.pretexts.simclr import nt_xent

EPSILON = 0.05


def _trainer():
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=5)
  return settled(tiny_trainer(robustness.RoCL(), attack, optimizer=keras.optimizers.SGD(0.01)))


@pytest.fixture(scope="module")
def trainer():
  return _trainer()


@pytest.fixture(scope="module")
def views():
  return tf.constant(np.random.default_rng(2).uniform(size=(6, 2, 8, 8, 1)), tf.float32)


def _embed(trainer, images):
  loc = trainer.encoder.network(images, training=False)["loc"]
  return trainer.pretext.projector(loc, training=False).numpy()


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_nt_xent_among_given_negatives_is_the_plain_loop(rng, denominator):
  tuples, negatives = rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 2, 4))
  found = nt_xent(
    tf.constant(tuples, tf.float32), 0.3, denominator, tf.constant(negatives, tf.float32)
  )
  np.testing.assert_allclose(found, nt_xent_loop(tuples, negatives, 0.3, denominator), rtol=1e-5)


def test_objective_is_the_contrast_of_the_adversary_and_the_other_view(trainer, views):
  near = np.clip(views[:, 0] + 0.03, 0, 1)
  before = [v.numpy() for v in trainer.variables]
  objective = trainer.robustness.objective(trainer.encoder, trainer.pretext, views, None)
  found = objective(tf.constant(near))
  clean = np.stack([_embed(trainer, views[:, i]) for i in range(2)], 1)
  tuples = np.stack([_embed(trainer, near), clean[:, 1]], 1)
  np.testing.assert_allclose(found, nt_xent_loop(tuples, clean), rtol=2e-4)
  same(trainer.variables, before)


def test_examples_are_attacked_each_on_its_own(trainer, views):
  """Another image's neighbour changes nothing: its negatives are clean constants."""
  objective = trainer.robustness.objective(trainer.encoder, trainer.pretext, views, None)
  near = views[:, 0].numpy()
  before = objective(tf.constant(near)).numpy()
  near[3] += 0.05
  changed = objective(tf.constant(near)).numpy() != before
  assert changed.tolist() == [False, False, False, True, False, False]


def test_the_attack_raises_the_objective_inside_the_ball(trainer, views):
  objective = trainer.robustness.objective(trainer.encoder, trainer.pretext, views, None)
  found, _ = trainer.adversaries(views, None, tf.constant([0, 1]))
  assert found.shape == (6, 1, 8, 8, 1)
  found, clean = found[:, 0], views[:, 0]
  assert_inside(found, clean, "linf", EPSILON)
  assert np.all(objective(found) > objective(clean))
  assert np.all(objective(found) > worst_of_corners(objective, clean, EPSILON))


def test_loss_by_hand():
  """All members of an image alike, two images at right angles, no projector.

  Over three views D(a) = 3 e^0, so log 3 - 2; over two log 2 - 2; at temperature 1/2.
  """
  loc = tf.constant([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])
  members = networks.Representations(tfp.distributions.Normal(loc, tf.ones_like(loc)), loc)
  pretext = pretexts.SimCLR(projector=0)
  pretext.attach(tiny_encoder(2))
  total = sum(
    weight * pretext.loss(members.take(chosen), None)["nt_xent"]
    for weight, chosen in robustness.RoCL().tuples(2, 1)
  )
  np.testing.assert_allclose(total, [np.log(3) - 2 + (np.log(2) - 2) / 256] * 2, rtol=1e-6)


def test_a_steps_loss_is_the_sum_of_both_terms(views):
  """Recomputed outside of the trainer, from the adversary that it finds."""
  trainer = _trainer()
  seed = urkle_tf.distribution.fold(urkle_tf.distribution.fold([0, 0], 0), 1)
  adversary, _ = trainer.adversaries(views, None, seed, 0)
  before = [v.numpy() for v in trainer.variables]
  images = np.concatenate([views, adversary], 1).reshape(-1, 8, 8, 1)
  loc = trainer.encoder(images, training=True).loc.numpy().reshape(6, 3, 6)
  expected = 0.0
  for weight, members in ((1.0, [0, 1, 2]), (1 / 256, [1, 2])):  # (t1, t2, t1') and (t2, t1')
    z = trainer.pretext.projector(loc[:, members].reshape(-1, 6), training=True)
    z = z.numpy().reshape(6, len(members), 4)
    expected += weight * nt_xent_loop(z, z).mean()
  for variable, value in zip(trainer.variables, before, strict=True):
    variable.assign(value)
  row = trainer.train_step({"views": views})
  np.testing.assert_allclose(row["loss"], expected, rtol=1e-4)
  scale = trainer.encoder.network.get_layer("raw_scale")
  assert not scale.kernel.numpy().any()  # z = loc: nothing moves the scale


def test_three_views_are_refused():
  refuses("two views", robustness.RoCL().check, pretexts.SimCLR(consistency=1))
