"""NT-Xent against a plain loop, keras-cv and cases worked by hand."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from plain_losses import nt_xent_loop
from scipy import special
from small_models import representations, tiny_encoder

from urkle_tf import networks, pretexts
from urkle_tf.pretexts.simclr import consistency, nt_xent


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_plain_loop(rng, denominator, members, temperature):
  z = rng.normal(size=(5, members, 7))
  loss = nt_xent(tf.constant(z, tf.float32), temperature, denominator)
  np.testing.assert_allclose(loss, nt_xent_loop(z, z, temperature, denominator), rtol=1e-4)


def test_nt_xent_is_keras_cvs_loss(rng):
  z = rng.normal(size=(6, 2, 8)).astype("float32")
  reference = keras_cv.losses.SimCLRLoss(temperature=0.5)(z[:, 0], z[:, 1])
  # keras-cv adds the two views' losses, we average over the pairs.
  np.testing.assert_allclose(np.mean(nt_xent(z, 0.5, "all")), reference / 2, rtol=1e-4)


def test_nt_xent_by_hand():
  # Two images on orthogonal axes, both views equal: -log(e^(1/0.5) / (2 e^0)) = log 2 - 2.
  z = tf.constant([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
  np.testing.assert_allclose(nt_xent(z), [np.log(2) - 2] * 2, rtol=1e-5)
  # SimCLR's denominator also holds the positive: log(e^2 + 2) - 2.
  np.testing.assert_allclose(nt_xent(z, 0.5, "all"), [np.log(np.e**2 + 2) - 2] * 2, rtol=1e-5)


def test_the_loss_falls_as_positives_meet(rng):
  """Equation 9 taken literally, without its -log, would push them apart."""
  z = rng.normal(size=(8, 2, 4)).astype("float32")
  z = tf.Variable(z)
  with tf.GradientTape() as tape:
    loss = tf.reduce_mean(nt_xent(z))
  moved = z - 0.1 * tape.gradient(loss, z)
  cosine = lambda v: np.mean(  # noqa: E731
    np.sum(tf.math.l2_normalize(v, -1)[:, 0] * tf.math.l2_normalize(v, -1)[:, 1], -1)
  )
  assert cosine(moved) > cosine(z)


def test_nt_xent_ignores_the_length_of_z(rng):
  z = rng.normal(size=(4, 2, 3)).astype("float32")
  np.testing.assert_allclose(nt_xent(1e3 * z), nt_xent(z), rtol=1e-4)


@pytest.mark.parametrize("term", [nt_xent, *slow(consistency)])
def test_negatives_are_gathered_from_all_replicas(rng, on_two, term):
  z = rng.normal(size=(6, 4, 5)).astype("float32")
  both = on_two(term, z)
  np.testing.assert_allclose(both, term(tf.constant(z)), rtol=1e-4)


def _divergences(z, temperature):
  """Jensen-Shannon, tuple by tuple, from the softmax over all embeddings of other images."""
  z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  found = []
  for i, members in enumerate(z):
    others = np.delete(z, i, axis=0).reshape(-1, z.shape[-1])
    p = special.softmax(members @ others.T / temperature, 1)
    found.append(special.rel_entr(p, p.mean(0)).sum(1).mean())
  return found


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_consistency_is_the_plain_loop(rng, members, temperature):
  z = rng.normal(size=(5, members, 4)).astype("float32")
  found = consistency(z, temperature)
  np.testing.assert_allclose(found, _divergences(z, temperature), rtol=1e-4, atol=1e-6)
  # Members that agree; and how much each of them may be turned about what the others are.
  same = np.repeat(z[:, :1], members, 1)
  np.testing.assert_allclose(consistency(same, temperature), 0, atol=1e-6)
  assert np.all(found > 1e-4)


def test_consistency_by_hand():
  # Three members of one image, each on top of another of three images, at a low temperature: each
  # is sure of another image, and the divergence is log 3.  The other images all agree.
  axes = np.eye(3, dtype="float32")
  z = np.stack([axes, *(np.repeat(axis[None], 3, 0) for axis in axes)])
  np.testing.assert_allclose(consistency(z, 0.05), [np.log(3), 0, 0, 0], atol=1e-6)


def test_consistency_has_gradients_that_lower_it(rng):
  z = tf.Variable(rng.normal(size=(6, 3, 4)).astype("float32"))
  with tf.GradientTape() as tape:
    loss = tf.reduce_mean(consistency(z, 0.1))
  gradient = tape.gradient(loss, z)
  assert np.all(np.isfinite(gradient))
  assert np.mean(consistency(z - 0.05 * gradient, 0.1)) < loss


def test_consistency_is_a_third_view_and_a_term(rng):
  encoder = tiny_encoder()
  normal = encoder(rng.uniform(size=(12, 8, 8, 1)).astype("float32"))
  three = networks.Representations.of(normal, 3)
  plain, more = (pretexts.SimCLR(projector=0, consistency=weight) for weight in (0, 12))
  assert (plain.views, plain.terms) == (2, ("nt_xent",))
  assert (more.views, more.terms) == (3, ("nt_xent", "consistency"))
  for pretext in (plain, more):
    pretext.attach(encoder)
  found, z = more.loss(three, None), np.asarray(normal.loc).reshape(4, 3, 6)
  np.testing.assert_allclose(found["nt_xent"], plain.loss(three, None)["nt_xent"])
  np.testing.assert_allclose(found["consistency"], 12 * np.array(_divergences(z, 0.5)), rtol=1e-3)


def test_four_views_and_a_projector_without_batch_norm(rng):
  encoder = tiny_encoder()
  pretext = pretexts.SimCLR(projector=8, projection=5, views=4, projector_norm=False)
  pretext.attach(encoder)
  assert pretext.views == 4
  normal = encoder(rng.uniform(size=(12, 8, 8, 1)).astype("float32"))
  loss = pretext.loss(networks.Representations.of(normal, 4), None)["nt_xent"]
  first, start, second, shift = (v.numpy() for v in pretext.projector.weights)
  projected = np.maximum(normal.loc.numpy() @ first + start, 0) @ second + shift
  np.testing.assert_allclose(pretext.embedding("adversarial")(normal.loc), projected, rtol=1e-4)
  projected = projected.reshape(3, 4, 5)
  np.testing.assert_allclose(loss, nt_xent_loop(projected, projected), rtol=1e-4)


def test_a_pretexts_options_reach_its_losses_and_its_contrast(rng):
  options = {"temperature": 0.2, "denominator": "all"}
  pretext = pretexts.SimCLR(projector=0, consistency=3.0, **options)
  z, others = rng.normal(size=(2, 5, 3, 4))
  found, wanted = pretext.loss(representations(z), None), nt_xent_loop(z, z, *options.values())
  np.testing.assert_allclose(found["nt_xent"], wanted, rtol=1e-4)
  np.testing.assert_allclose(found["consistency"], 3 * np.array(_divergences(z, 0.2)), rtol=1e-4)
  found = pretext.contrast(tf.constant(z, tf.float32), tf.constant(others, tf.float32))
  np.testing.assert_allclose(found, nt_xent_loop(z, others, *options.values()), rtol=1e-4)


def test_pretext_projects_the_sampled_z(rng):
  encoder = tiny_encoder()
  pretext = pretexts.SimCLR(projector=8, projection=5)
  pretext.attach(encoder)
  normal = encoder(rng.uniform(size=(8, 8, 8, 1)).astype("float32"))
  noise = rng.normal(size=(8, 6)).astype("float32")
  drawn = networks.Representations.of(normal, 2, noise)
  loss = pretext.loss(drawn, None)["nt_xent"]
  z = np.asarray(normal.loc + normal.scale * noise)
  projected = pretext.projector(z, training=True).numpy().reshape(4, 2, 5)
  np.testing.assert_allclose(loss, nt_xent_loop(projected, projected), rtol=1e-4)
  still = networks.Representations.of(normal, 2)
  np.testing.assert_allclose(still.z, np.asarray(normal.loc).reshape(4, 2, 6))
