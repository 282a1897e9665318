"""The interface between a pretext task and the trainer."""

import keras
import tensorflow as tf


class Pretext(keras.layers.Layer):
  """What is learnt: a loss over tuples of representations of the same image.

  A pretext owns its heads (made in `attach`, so that every variable exists before the first step),
  and turns representations into per-example losses.  It knows nothing about attacks.

  Attributes:
    views: how many augmented views of an image it needs.
    exact: whether batches with more views are refused, since `loss` would take them for
      adversaries.
    needs_labels: whether its batches must hold "label".
    stochastic: whether it uses a sampled z, whatever the robustness scheme.
    samples: whether it accepts a sampled z at all.
    positives: whether its tuples may grow, so that adversaries join them as positives.
    predicts: whether it has `predict` and `divergence`, a prediction for every image.
    targeted: whether its loss compares a prediction with a class, for `adversarial_training`.
    start: whether `attach` copies a teacher's weights into the encoder.
    anchors: whether `prepare` returns the embeddings [n, v, d] of a frozen original, for
      `urkle(anchor=original)`.
    contrastive: whether it has `embedding` and `contrast`, a loss that contrasts an image with
      others.
    couples: whether an example's loss depends on other examples of its batch, apart from batch
      norms.
    pictures: whether predictions are images that can be shown.
    loc: where loc lies by default (`GaussianEncoder`).
    strength: the default strength of `urkle`: {"k": ...} or {"beta": ...}.
    terms: names of the entries that `loss` returns.
    head: after `attach`, a Keras model from z to class logits that is exported too, or None.
    fingerprint: that of a frozen teacher, or None: another one cannot resume a run.

  ```python
  class Short(urkle_tf.pretexts.Pretext):
    terms = ("length",)

    def loss(self, representations, aux, training=True):
      return {"length": tf.reduce_mean(tf.square(representations.z), [1, 2])}  # [n]

  trainer = urkle_tf.Trainer(urkle_tf.GaussianEncoder(backbone), Short())
  ```
  """

  views = 2
  exact = False
  needs_labels = False
  stochastic = False
  samples = True
  positives = False
  predicts = False
  targeted = False
  start = False
  anchors = False
  contrastive = False
  couples = False
  pictures = False
  loc = "sphere"
  strength = {"k": 8.0}
  terms: tuple[str, ...] = ()
  head: keras.Model | None = None
  fingerprint: str | None = None

  def adopt(self, source):
    """Reads from a data `Source` what the heads need; called before `attach`."""

  def attach(self, encoder):
    """Makes the heads for a `GaussianEncoder`; called once, by the trainer.

    If the encoder already has two `streams`, heads with batch norms need a twin too.
    """

  def prepare(self, views, batch):
    """Returns what needs no gradient (targets, labels).

    Args:
      views: float32 [n, v, h, w, c] in [0, 1].
      batch: the batch's dict.

    Returns:
      None, or a tensor of n rows.
    """

  def loss(self, representations, aux, training=True):
    """The loss of a tuple.

    Args:
      representations: a `Representations` of [n, t, d_z].
      aux: what `prepare` returned.
      training: the mode of the heads' batch norms.

    Returns:
      {term: float32 [n]}, one value per example.
    """
    raise NotImplementedError

  def weight(self, term):
    """The weight of a term in the loss, a number or float32 scalar; read after calling `loss`."""
    return 1.0

  def predict(self, z, training=False):
    """The prediction from z, float32 [m, d_z] -> [m, ...]; only if `predicts`."""
    raise NotImplementedError

  def inference(self):
    """`predict` in inference mode, with the current weights, for an attack's loop."""
    return self.predict

  def divergence(self, prediction, other):
    """How far `other` is from `prediction`, both [m, ...] -> float32 [m], at least 0."""
    raise NotImplementedError

  def embedding(self, stream):
    """The embedding of z that is contrasted, in inference mode, with the current weights.

    Only if `contrastive`.

    Args:
      stream: one of the encoder's streams.

    Returns:
      A function of z, float32 [m, d_z] -> float32 [m, d], for an attack's loop.
    """
    raise NotImplementedError

  def contrast(self, embeddings, others):
    """The loss of tuples with given negatives, for an attack; only if `contrastive`.

    Args:
      embeddings: float32 [n, t, d], this replica's tuples.
      others: float32 [N, s, d], embeddings of all replicas' images. Those of a tuple's own image
        are not its negatives.

    Returns:
      float32 [n].
    """
    raise NotImplementedError

  def after_step(self, encoder, progress):
    """Moves averages after the update of the weights.

    Args:
      encoder: the `GaussianEncoder`.
      progress: the share of the training before the step, float32 scalar in [0, 1].
    """


def squared_distance(rows, others):
  """||a - b||^2 over all but the first axis: [n, ...] twice -> float32 [n]."""
  difference = tf.square(rows - others)
  return tf.reduce_sum(difference, list(range(1, len(difference.shape))))
