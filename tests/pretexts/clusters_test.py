"""Pseudo-labels: the clusters of a teacher's embeddings, and their cross-entropy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refused, refuses
from small_models import RUN, representations, rows_of, sequential, tiny_encoder

import urkle_tf
from urkle_tf import pretexts

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
  """A teacher whose embedding is the image itself."""
  path = tmp_path_factory.mktemp("teacher") / "pixels.keras"
  sequential(SHAPE, keras.layers.Flatten()).save(path)
  return str(path)


def _attached(teacher, images, **options):
  pretext = pretexts.Clusters(teacher, **options)
  pretext.find(images)
  pretext.attach(tiny_encoder(6))
  return pretext


def test_images_of_one_direction_are_one_cluster(rng, pixels):
  """Three patterns, of any brightness, with a little noise."""
  patterns = rng.uniform(size=(3, *SHAPE)) > 0.5
  truth = np.arange(60) % 3
  images = patterns[truth] * rng.uniform(0.2, 0.9, (60, 1, 1, 1))
  images = (images + rng.uniform(0, 0.02, images.shape)).astype("float32")
  found = _attached(pixels, images, count=3).prepare(tf.constant(images[:, None]), {}).numpy()
  names = [found[truth == k][0] for k in range(3)]
  assert sorted(names) == [0, 1, 2]
  np.testing.assert_array_equal(found, np.array(names)[truth])


def test_each_image_belongs_to_the_nearest_centre_and_each_centre_is_a_mean(rng, pixels):
  images = rng.uniform(size=(50, *SHAPE)).astype("float32")
  pretext = _attached(pixels, images, count=5)
  (centres,) = (v.numpy() for v in pretext.weights if v.shape == (5, 64))
  again = pretexts.Clusters(pixels, count=5)
  for _ in range(2):  # whatever was drawn before, since every worker finds its own
    again.find(images)
    np.testing.assert_allclose(again._found, centres, atol=1e-6)
  rows = [image.ravel() / np.linalg.norm(image) for image in images]
  nearest = [np.argmin([np.linalg.norm(row - centre) for centre in centres]) for row in rows]
  np.testing.assert_array_equal(pretext.prepare(tf.constant(images[:, None]), {}), nearest)
  for k in range(5):
    mean = np.mean([row for row, cluster in zip(rows, nearest, strict=True) if cluster == k], 0)
    np.testing.assert_allclose(centres[k], mean, atol=1e-5)


def test_the_loss_is_the_plain_loop(rng, pixels):
  images = rng.uniform(size=(20, *SHAPE)).astype("float32")
  pretext = _attached(pixels, images, count=4)
  kernel, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
  pretext.network.set_weights([kernel, bias])
  z, clusters = rng.normal(size=(5, 2, 6)).astype("float32"), np.array([3, 0, 2, 2, 1])
  expected = np.zeros(5)
  for i in range(5):
    for m in range(2):
      exponentials = np.exp(z[i, m] @ kernel + bias)
      expected[i] -= np.log(exponentials[clusters[i]] / exponentials.sum()) / 2
  found = pretext.loss(representations(z), tf.constant(clusters))
  np.testing.assert_allclose(found["cross_entropy"], expected, rtol=1e-4)
  logits = np.log(np.float32([[[0.7, 0.1, 0.1, 0.1]], [[0.25, 0.25, 0.25, 0.25]]]))
  divergence = 0.7 * np.log(0.7 / 0.25) + 0.3 * np.log(0.1 / 0.25)
  np.testing.assert_allclose(pretext.divergence(*logits), [divergence], rtol=1e-5)


def test_a_student_that_starts_from_its_teacher_learns_its_clusters(exported, tmp_path):
  options = {**RUN, "dataset": "digits", "split": "train", "epochs": 4, "latent_dim": 6}
  options |= {"learning_rate": 0.02, "robustness": "none", "augment": "none"}
  options["encoder"] = "convnet(width=8, layers=3)"
  pretext = f"clusters(teacher={exported}, count=5, start=true)"
  urkle_tf.pretrain(output_dir=str(tmp_path), pretext=pretext, **options)
  first, *_, last = (row["cross_entropy"] for row in rows_of(tmp_path))
  assert last < 0.5 * first


def test_what_cannot_be_clustered_ends_in_one_line(rng, pixels, tmp_path):
  images = rng.uniform(size=(6, *SHAPE)).astype("float32")
  with refused("clusters: count must be a whole number of at least 2"):
    pretexts.Clusters(pixels, count=1)
  pretexts.Clusters(pixels, count=6).find(images)
  refuses("count=7, but there are only 6 images", pretexts.Clusters(pixels, count=7).find, images)
  with refused("has only 2 different embeddings"):
    pretexts.Clusters(pixels, count=3).find(np.repeat(images[:2], 3, 0))
  infinite = sequential(SHAPE, keras.layers.Flatten(), keras.layers.Rescaling(np.inf))
  infinite.save(tmp_path / "t.keras")
  refuses("NaN or infinite", pretexts.Clusters(str(tmp_path / "t.keras")).find, images)
  refuses("call find", pretexts.Clusters(pixels).attach, tiny_encoder(6))
