"""Supervised training: a head on z and labels (Urkle paper, eq. 2)."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import compatibility, pipeline
from urkle_tf.networks import heads
from urkle_tf.networks.folding import fold
from urkle_tf.pretexts.base import Pretext, squared_distance


class Supervised(Pretext):
  """Predicts the label from one z per image: -log p(y|z).

  For classification, this is the cross-entropy of the head's softmax.  For regression, it is the
  squared error ||y - f(z)||^2 / 2, from a Gaussian of variance 1 without its constant.

  Args:
    task: "classification", labels int [n], or "regression", labels float [n] or [n, outputs].
    outputs: the number of classes, or of numbers to predict; None for the data set's classes (1 for
      regression).
    width: units of the head's hidden layers.
    layers: dense layers of the head; 3 in the paper's MNIST net, 1 is linear.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone, latent_dim=16, loc="dense")
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.Supervised(outputs=10))
  ```
  """

  views = 1
  needs_labels = True
  loc = "dense"
  strength = {"beta": 0.25}
  positives = True
  predicts = True
  targeted = True

  def __init__(self, task="classification", outputs=None, width=256, layers=3):
    super().__init__(name="supervised")
    errors.one_of("task", task, ("classification", "regression"))
    self.classifies = task == "classification"
    errors.whole(1, "supervised", width=width, layers=layers)
    if outputs is not None:
      errors.whole(2 if self.classifies else 1, "supervised", outputs=outputs)
    self.outputs = outputs if outputs or self.classifies else 1
    self._hidden = [width] * (layers - 1)
    self.terms = ("cross_entropy",) if self.classifies else ("squared_error",)

  def adopt(self, source):
    """Takes the number of classes from the data."""
    compatibility.check_labelled(source)
    known = pipeline.first(source, 1)[1] if source.labels is None else source.labels
    compatibility.check_no_gaps(source, known)
    if self.classifies and source.class_names is None:
      raise errors.UserError(
        f"the labels of {source.name!r} are numbers ({source.target}): give "
        '--pretext="supervised(task=regression)"'
      )
    if self.classifies:
      classes = len(source.class_names)
      if self.outputs not in (None, classes):
        raise errors.UserError(
          f"supervised: outputs={self.outputs}, but {source.name!r} has {classes} classes: leave "
          "outputs out"
        )
      self.outputs = classes

  def attach(self, encoder):
    """Makes the head: dense layers with batch norm and ReLU in between."""
    if self.outputs is None:
      raise errors.UserError("supervised: give the number of classes, Supervised(outputs=10)")
    self.network = heads.mlp(encoder.latent_dim, [*self._hidden, self.outputs], "head")
    if self.classifies:
      self.head = self.network

  def prepare(self, views, batch):
    """The labels, [n]."""
    if "label" not in batch:
      raise errors.UserError('the supervised pretext needs labels: give batches with a "label"')
    labels = tf.convert_to_tensor(batch["label"])
    return tf.cast(labels, tf.int64) if labels.dtype.is_integer else labels

  def predict(self, z, training=False):
    """Logits, or predicted numbers: float32 [m, outputs]."""
    return self.network(z, training=training)

  def inference(self):
    """As `predict`, with the head's batch norms folded."""
    return fold(self.network)

  def divergence(self, prediction, other):
    """KL[p(y|prediction) || p(y|other)] of the softmaxes, or the squared difference."""
    return (softmax_divergence if self.classifies else squared_distance)(prediction, other)

  def loss(self, representations, aux, training=True):
    """{"cross_entropy": [n]} or {"squared_error": [n]}, the mean over the members."""
    prediction = self.predict(representations.flat, training)
    if self.classifies:
      return {"cross_entropy": cross_entropy(representations, prediction, aux)}
    truth = tf.reshape(tf.cast(representations.repeat(aux), tf.float32), tf.shape(prediction))
    return {"squared_error": representations.mean(squared_distance(prediction, truth) / 2)}


def cross_entropy(representations, logits, labels):
  """The cross-entropy of a tuple's members with the label of their image, their mean.

  Args:
    representations: a `Representations` of n images.
    logits: float32 [m, classes], from `representations.flat`.
    labels: integers [n].

  Returns:
    float32 [n].
  """
  labels = representations.repeat(labels)
  if labels.shape.rank not in (1, None) or not labels.dtype.is_integer:
    raise errors.UserError(
      f"labels must be one class number for each image, got {labels.dtype.name} of shape "
      f"{labels.shape}: give labels[:, 0] of a column, and argmax(labels, 1) of one-hot labels"
    )
  values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
  return representations.mean(values)


def softmax_divergence(logits, other):
  """KL[softmax(logits) || softmax(other)], both float32 [m, classes] -> float32 [m]."""
  before, after = tf.nn.log_softmax(logits), tf.nn.log_softmax(other)
  return tf.reduce_sum(tf.exp(before) * (before - after), -1)
