"""NT-Xent against a plain loop, keras-cv and cases worked by hand."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from urkle_tf import errors, networks, pretexts
from urkle_tf.pretexts.simclr import nt_xent


def _loop(z, temperature, denominator):
  """Equation 9, term by term."""
  z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  n, t, _ = z.shape
  losses = []
  for i in range(n):
    pairs = []
    for a in range(t):
      for b in range(t):
        if a == b:
          continue
        total = 0.0
        for j in range(n):
          for c in range(t):
            if (denominator == "negatives" and j == i) or (j == i and c == a):
              continue
            total += np.exp(z[i, a] @ z[j, c] / temperature)
        pairs.append(-np.log(np.exp(z[i, a] @ z[i, b] / temperature) / total))
    losses.append(np.mean(pairs))
  return losses


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_plain_loop(rng, denominator, members, temperature):
  z = rng.normal(size=(5, members, 7))
  loss = nt_xent(tf.constant(z, tf.float32), temperature, denominator)
  np.testing.assert_allclose(loss, _loop(z, temperature, denominator), rtol=1e-4)


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


def test_nt_xent_does_not_see_the_length_of_z(rng):
  z = rng.normal(size=(4, 2, 3)).astype("float32")
  np.testing.assert_allclose(nt_xent(1e3 * z), nt_xent(z), rtol=1e-4)


def test_negatives_are_gathered_from_all_replicas(rng, mirrored):
  z = rng.normal(size=(6, 4, 5)).astype("float32")
  halves = mirrored.experimental_distribute_values_from_function(
    lambda context: tf.constant(z[3 * context.replica_id_in_sync_group :][:3])
  )
  losses = mirrored.run(tf.function(nt_xent), (halves,))
  both = tf.concat(mirrored.experimental_local_results(losses), 0)
  np.testing.assert_allclose(both, nt_xent(tf.constant(z)), rtol=1e-5)


def test_pretext_projects_the_sampled_z(rng):
  encoder = networks.GaussianEncoder(networks.convnet((8, 8, 1), 4, 2), 6)
  pretext = pretexts.SimCLR(projector=8, projection=5)
  pretext.attach(encoder)
  normal = encoder(rng.uniform(size=(8, 8, 8, 1)).astype("float32"))
  noise = rng.normal(size=(8, 6)).astype("float32")
  drawn = networks.Representations.of(normal, 2, noise)
  loss = pretext.loss(drawn, None)["nt_xent"]
  z = np.asarray(normal.loc + normal.scale * noise)
  projected = pretext.projector(z, training=True).numpy().reshape(4, 2, 5)
  np.testing.assert_allclose(loss, _loop(projected, 0.5, "negatives"), rtol=1e-4)
  still = networks.Representations.of(normal, 2)
  np.testing.assert_allclose(still.z, np.asarray(normal.loc).reshape(4, 2, 6))


@pytest.mark.parametrize(
  "options, words", [({"temperature": 0.0}, "temperature"), ({"denominator": "al"}, "'all'")]
)
def test_wrong_options(options, words):
  with pytest.raises(errors.UserError, match=words):
    pretexts.SimCLR(**options)
