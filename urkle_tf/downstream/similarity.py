"""URRL's fine-tuning: trains the whole network, and keeps the representation near its start."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import errors, export
from urkle_tf.downstream import _training
from urkle_tf.downstream.base import Protocol
from urkle_tf.networks.kl import kl
from urkle_tf.networks.tuples import flat
from urkle_tf.training.trainer import Trainer


class _Tuned(export.ExportedEncoder):
  """An encoder that learns in inference mode: the moving averages of its batch norms stay."""

  def call(self, images, training=None):
    return super().call(images, training=False)


class _Near(_training.Given):
  """The given head's loss, and how far the representation has moved from its start.

  Args:
    task: a `Task`.
    weight: the weight of the second term.
  """

  def __init__(self, task, weight):
    super().__init__(task)
    self.stochastic = task.model.stochastic
    self.terms = (*self.terms, "similarity")
    self._weight = weight
    self._before = export.load_encoder(task.folder).frozen()

  def prepare(self, views, batch):
    """(labels, loc, scale); loc and scale are those of the encoder before fine-tuning."""
    before = self._before(flat(views))
    return super().prepare(views, batch), before.loc, before.scale

  def loss(self, representations, aux, training=True):
    """The head's loss and {"similarity": [n]}, times its weight."""
    labels, loc, scale = aux
    now = representations.normal  # [n, 1, d_z]
    if self.stochastic:
      before = tfp.distributions.Normal(loc[:, None], scale[:, None])
      distance = kl(before, now) / loc.shape[-1]
    else:
      cosine = tf.math.l2_normalize(now.loc, -1) * tf.math.l2_normalize(loc, -1)[:, None]
      distance = 1 - tf.reduce_sum(cosine, -1)
    found = super().loss(representations, labels, training)
    return found | {"similarity": self._weight * tf.reduce_mean(distance, 1)}


class Similarity(Protocol):
  """Clean fine-tuning of encoder and head, with URRL's task-agnostic similarity term.

      -log p(y|z) + weight d(x),   d(x) = 1 - cos(loc(x), loc_0(x))

  If the encoder's z is random, d(x) = KL[p_0(z|x) || p(z|x)] / d_z, in nats per dimension.  Near
  the start both are about |loc - loc_0|^2 / (2 d_z), the latter divided by scale^2, so similar
  weights suit both.  p_0 and loc_0 belong to the exported encoder, which stays frozen.  There is no
  adversarial training and by default no augmentation.  With weight 0 it is plain fine-tuning.

  Only the abstract and introduction of the URRL paper are public.  They say that a task-agnostic
  similarity regularisation during fine-tuning keeps the robustness of a representation, without
  adversarial training or further augmentation.  They do not say what is similar to what, or how it
  is measured.  This is our reading.

  The encoder's batch norms keep the statistics of pre-training, while their scales and shifts are
  tuned.  So at every step the encoder that is trained is the one that will be served, and d = 0 at
  the start.  Images that were augmented in pre-training and are plain now cannot move the
  representation through new statistics.

  Args:
    weight: at least 0.
  """

  defaults = {**Protocol.defaults, "learning_rate": 1e-3, "batch_size": 128, "epochs": 15}

  def __init__(self, weight=1.0):
    errors.at_least(0, "similarity", weight=weight)
    self._weight = weight

  def fit(self, task, run):
    encoder = _Tuned(task.encoder.network, task.encoder.metadata, name="tuned")
    learner = Trainer(encoder, _Near(task, self._weight), seed=task.seed)
    return _training.train(task, run, learner, task.weights)
