"""What a pretext task is to the trainer."""

import keras
import tensorflow as tf


class Pretext(keras.layers.Layer):
  """What is learnt: a loss over tuples of representations of the same image.

  A pretext owns its heads (made in `attach`, so that every variable exists before the first
  step), and turns representations into per-example losses.  It knows nothing of attacks.

  Attributes:
    views: how many augmented views of an image it wants.
    needs_labels: whether its batches must hold "label".
    stochastic: whether it consumes the sampled z by itself, whatever the robustness term.
    samples: whether it may be given a sampled z at all.
    positives: whether its tuples may grow, so that adversaries join them as positives.
    predicts: whether there is a prediction for every image: `predict` and `divergence`.
    anchors: whether `prepare` returns the embeddings [n, v, d] of a frozen original, for
      `urkle(anchor=original)`.
    contrastive: whether its loss tells an image from others: `embedding` and `contrast`.
    couples: whether an example's loss depends on the others of its batch, beside batch norms.
    pictures: whether predictions are images, to be looked at.
    loc: where loc lies if the user does not say (`GaussianEncoder`).
    strength: of `urkle`, if the user does not say: {"k": ...} or {"beta": ...}.
    terms: names of the entries that `loss` returns.
    head: after `attach`, a Keras model from z to class logits that is worth shipping, or None.

  ```python
  class Short(urkle_tf.pretexts.Pretext):
    terms = ("length",)

    def loss(self, representations, aux, training=True):
      return {"length": tf.reduce_mean(tf.square(representations.z), [1, 2])}  # [n]

  trainer = urkle_tf.Trainer(urkle_tf.GaussianEncoder(backbone), Short())
  ```
  """

  views = 2
  needs_labels = False
  stochastic = False
  samples = True
  positives = False
  predicts = False
  anchors = False
  contrastive = False
  couples = False
  pictures = False
  loc = "sphere"
  strength = {"k": 8.0}
  terms: tuple[str, ...] = ()
  head: keras.Model | None = None

  def adopt(self, source):
    """Takes from a data `Source` what the heads need to know; called before `attach`."""

  def attach(self, encoder):
    """Makes the heads for a `GaussianEncoder`; called once, by the trainer.

    Where the encoder has two `streams` already, heads with batch norms need a twin too.
    """

  def prepare(self, views, batch):
    """Returns what needs no gradient (targets, labels).

    Args:
      views: float32 [n, v, h, w, c] in [0, 1].
      batch: the batch's dict.

    Returns:
      None, or a tensor of n rows.
    """
    del views, batch

  def loss(self, representations, aux, training=True):
    """The loss of a tuple.

    Args:
      representations: a `Representations` of [n, t, d_z].
      aux: what `prepare` returned.
      training: the mode of the heads' batch norms.

    Returns:
      {term: float32 [n]}, one value an example.
    """
    raise NotImplementedError

  def weight(self, term):
    """What a term weighs in the loss, a number or float32 scalar; read after `loss` was called."""
    del term
    return 1.0

  def predict(self, z, training=False):
    """What is predicted of z, float32 [m, d_z] -> [m, ...]; only where `predicts`."""
    raise NotImplementedError

  def inference(self):
    """`predict` in inference mode, with the weights as they are now, for an attack's loop."""
    return self.predict

  def divergence(self, prediction, other):
    """How far `other` is from `prediction`, both [m, ...] -> float32 [m], at least 0."""
    raise NotImplementedError

  def embedding(self, stream):
    """What of z is contrasted, in inference mode, with the weights as they are now.

    Only where `contrastive`.

    Args:
      stream: one of the encoder's.

    Returns:
      A function of z, float32 [m, d_z] -> float32 [m, d], for an attack's loop.
    """
    raise NotImplementedError

  def contrast(self, embeddings, others):
    """The loss of tuples among given negatives, for an attack; only where `contrastive`.

    Args:
      embeddings: float32 [n, t, d], this replica's tuples.
      others: float32 [N, s, d], embeddings of all replicas' images; those of a tuple's own image
        are no negatives of it.

    Returns:
      float32 [n].
    """
    raise NotImplementedError

  def after_step(self, encoder, progress):
    """Moves averages once the step has been applied.

    Args:
      encoder: the `GaussianEncoder`.
      progress: how much of the training lay behind the step, float32 scalar in [0, 1].
    """


def squared_distance(rows, others):
  """||a - b||^2 over all but the first axis: [n, ...] twice -> float32 [n]."""
  difference = tf.square(rows - others)
  return tf.reduce_sum(difference, list(range(1, len(difference.shape))))
