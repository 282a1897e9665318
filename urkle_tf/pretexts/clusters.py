"""Pseudo-labels: predict the cluster in which a frozen teacher sees the clean image."""

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.data import pipeline
from urkle_tf.networks import heads
from urkle_tf.networks.folding import fold
from urkle_tf.pretexts._taught import Taught
from urkle_tf.pretexts.supervised import cross_entropy, softmax_divergence

_IMAGES, _BATCH = 10_000, 250  # from which the clusters are found, and those read at a time


class Clusters(Taught):
  """Predicts, from one z per image, the cluster of the teacher's embedding of the clean view.

      -log p(c|z),   c = argmin_k || t / |t| - centre_k ||,   t = teacher(view)

  with a linear head on z.  The centres are those of k-means on the directions of the teacher's
  embeddings of 10,000 images of the data set, drawn without augmentation, or of all if it has
  fewer.  They are found before training, and are part of the checkpoint.

  So a teacher that learned without labels gives every scheme that needs a label one:
  `adversarial_training` attacks -log p(c|z), and `trades` the divergence of its softmax.  Such
  pseudo-labels are those of DynACL++ (Luo et al., 2023), which continues with adversarial training
  on them.  While `distil` asks for the whole embedding, also under attack, this asks only for what
  tells clusters apart.

  For the teacher, what it sees and what is refused, see `Distil`.

  Args:
    teacher: as in `Distil`.
    count: the number of clusters, at least 2.
    start: whether the student's encoder starts from the teacher's weights.
    targets: "loc" or "pooled".

  Raises:
    UserError: as `Distil`, or if the images, or their different embeddings, are fewer than the
      clusters.

  ```python
  backbone.save("teacher.keras")  # any Keras model from images to an embedding
  pretext = urkle_tf.pretexts.Clusters(teacher="teacher.keras", count=4)
  pretext.find(images)  # `pretrain` draws them from the data set
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.AdversarialTraining()
  trainer = urkle_tf.Trainer(encoder, pretext, scheme, attack)
  ```
  """

  views = 1
  predicts = True
  targeted = True
  terms: tuple[str, ...] = ("cross_entropy",)

  def __init__(self, teacher, count=50, start=False, targets="loc"):
    super().__init__(teacher, start, targets)
    errors.whole(2, "clusters", count=count)
    self.count = count
    self._found = None

  def adopt(self, source):
    """Finds the clusters in images of the data."""
    super().adopt(source)
    found = source.batches(_BATCH, drop_remainder=False).take(_IMAGES // _BATCH)
    self._cluster(pipeline.to_float(batch["image"]) for batch in found)

  def find(self, images):
    """Finds the clusters by k-means; before `attach`.

    Args:
      images: float32 [n, h, w, c] in [0, 1], n at least `count`.
    """
    self._cluster([images])

  def _cluster(self, batches):
    from sklearn import cluster  # takes a second

    directions = _directions(tf.constant(self.embed(batches), tf.float32)).numpy()
    if len(directions) < self.count:
      raise errors.UserError(
        f"clusters: count={self.count}, but there are only {len(directions)} images: give a "
        "smaller count"
      )
    different = len(np.unique(directions, axis=0))
    if different < self.count:
      raise errors.UserError(
        f"clusters: count={self.count}, but the teacher {self._path!r} has only {different} "
        "different embeddings of these images: give a smaller count, or another teacher"
      )
    k_means = cluster.KMeans(self.count, n_init=3, random_state=0)
    self._found = k_means.fit(directions).cluster_centers_

  def attach(self, encoder):
    """As in `Distil`; makes the head."""
    if self._found is None:
      raise errors.UserError("clusters: call find(images) before the Trainer is made")
    super().attach(encoder)
    self._centres = distribution.state(self._found)
    self.network = heads.mlp(encoder.latent_dim, [self.count], "head")

  def prepare(self, views, batch):
    """The clusters of the clean views, int64 [n]."""
    directions = _directions(super().prepare(views, batch)[:, 0])
    centres = tf.convert_to_tensor(self._centres.value)
    nearness = 2 * tf.matmul(directions, centres, transpose_b=True)
    return tf.argmax(nearness - tf.reduce_sum(tf.square(centres), 1), 1)

  def predict(self, z, training=False):
    """Logits of the clusters, float32 [m, count]."""
    return self.network(z, training=training)

  def inference(self):
    """As `predict`."""
    return fold(self.network)

  def divergence(self, prediction, other):
    """KL[p(c|prediction) || p(c|other)] of the softmaxes."""
    return softmax_divergence(prediction, other)

  def loss(self, representations, aux, training=True):
    """{"cross_entropy": [n]}, the mean over the members."""
    logits = self.predict(representations.flat, training)
    return {"cross_entropy": cross_entropy(representations, logits, aux)}


def _directions(embeddings):
  return tf.math.l2_normalize(embeddings, -1)
