"""The interface between a protocol and `adapt`."""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import attacks, errors, export
from urkle_tf.data import augment as augmentation
from urkle_tf.data import compatibility, sources
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor
from urkle_tf.training import optimizers, preemption


@dataclasses.dataclass(frozen=True)
class Task:
  """A classifier or a regressor to train.

  Labels that are numbers are standardised to (label - offset) / spread, and the predictions during
  training too, so no option depends on the target's units.

  Attributes:
    folder: the folder of the exported encoder.
    encoder: the exported encoder, as loaded.
    model: the encoder with a fresh head, to be trained.
    source: the labelled images.
    chosen: int64 [m], the positions in `source` of the labels that may be used, ascending.
    labels: these labels, int64 [m] of classes or float32 [m, 1] of numbers.
    validation: a `Source` for everything that is reported and chosen during training, or None.
    augment: spec of the augmentation of the training images.
    augment_copies: the number of augmented copies of each image, if they are made in advance.
    noise: the standard deviation of Gaussian noise on images, in pixel units; 0 for none.
    optimizer: spec of the optimiser.
    learning_rate: the highest learning rate.
    weight_decay: the decoupled weight decay; None if it must be chosen.
    batch_size: images per step.
    epochs: passes over the labelled images.
    seed: the seed of all randomness.
    log_every: steps between rows of metrics; there is one at each epoch's end too.
    attack: the `attacks.PGD` of an adversarial protocol or a robust choice, else None.
    select: the criterion for the weight decay, "clean" or "robust"; None if it is given.
    offset: the mean of the numbers, in the target's units; 0 for classes.
    spread: their standard deviation; 1 for classes.
    watch: a `preemption.Watch`, checked after each step; a signal ends the training.
  """

  folder: pathlib.Path
  encoder: export.ExportedEncoder
  model: Classifier | Regressor
  source: sources.Source
  chosen: np.ndarray
  labels: np.ndarray
  validation: sources.Source | None
  augment: str
  augment_copies: int
  optimizer: str
  learning_rate: float
  weight_decay: float | None
  batch_size: int
  epochs: int
  seed: int
  log_every: int
  attack: attacks.PGD | None = None
  select: str | None = None
  noise: float = 0.0
  offset: float = 0.0
  spread: float = 1.0
  watch: preemption.Watch = dataclasses.field(default_factory=preemption.Watch)

  @property
  def head(self) -> keras.Model:
    """The model's head."""
    return self.model.head

  @property
  def weights(self) -> list[keras.Variable]:
    """The variables of encoder and head."""
    network: keras.Model = self.model.network
    return [*network.variables, *self.head.variables]

  @property
  def classifies(self) -> bool:
    """Whether labels are classes."""
    return isinstance(self.model, Classifier)

  @property
  def measure(self) -> str:
    """What `score` returns: "accuracy", or "rmse" in the target's units."""
    return "accuracy" if self.classifies else "rmse"

  @property
  def measures(self) -> tuple[str, str]:
    """The names of the scores on held-out images: clean, and under attack."""
    return f"validation_{self.measure}", f"validation_robust_{self.measure}"

  def standardised(self, labels):
    """Labels of the data as the loss takes them: int [n] unchanged, or float32 [n, 1]."""
    if self.classifies:
      return labels
    return tf.reshape((tf.cast(labels, tf.float32) - self.offset) / self.spread, [-1, 1])

  def loss(self, outputs, labels):
    """-log p(y) for logits (or log-probabilities), or half the squared error.

    Args:
      outputs: float32 [n, outputs] of the model or its head.
      labels: as `standardised` returns them.

    Returns:
      float32 [n].
    """
    if self.classifies:
      return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs)
    return tf.reduce_sum(tf.square(outputs - labels), -1) / 2

  def merit(self, outputs, labels):
    """The values that `score` averages: hits, or squared errors in the target's units; [n]."""
    if self.classifies:
      hits = tf.argmax(outputs, 1, output_type=tf.int64) == tf.cast(labels, tf.int64)
      return tf.cast(hits, tf.float32)
    return self.spread**2 * tf.reduce_mean(tf.square(outputs - labels), -1)

  def score(self, mean):
    """The accuracy, or the root mean squared error, for a mean of `merit`."""
    return float(mean) if self.classifies else float(mean) ** 0.5

  def better(self, score, other):
    """Whether a score is better than another: higher accuracy, or lower error."""
    return score > other if self.classifies else score < other


class Protocol:
  """A way to make a predictor from an encoder and labels.  Each is a file, found by its name.

  Attributes:
    adversarial: whether it trains on attacked images; its task then has an `attack`.
    frozen: whether the encoder does not change, and only the head learns.
    noisy: whether it can learn from images with Gaussian noise.
    defaults: the defaults of the settings that depend on the protocol; None lets the protocol
      choose the weight decay on held-out images.
  """

  adversarial = frozen = noisy = False
  defaults: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "weight_decay": 1e-4,
    "batch_size": 512,
    "epochs": 50,
  }

  def check(self, task):
    """Raises `UserError` if an option of the task is wrong; called before anything is written.

    Args:
      task: a `Task`.
    """
    augmentation.from_spec(task.augment).check(views=1)
    if not task.noise >= 0 or (task.noise and not self.noisy):
      raise errors.UserError(
        f"--noise={task.noise:g} must be at least 0, and only --protocol=slf takes it"
      )
    optimizers.build(task.optimizer, task.learning_rate, 1, weight_decay=task.weight_decay or 0.0)
    if task.attack is not None:
      task.attack.threat.check(tf.zeros([1, *task.model.image_shape]))
    if task.validation is not None and task.select is None:  # a choice leaves them out itself
      compatibility.check_held_out(task.validation, task.source, self.seen(task))

  def seen(self, task):
    """The positions in `task.source` of the images that it trains on, int64 [n]."""
    return task.chosen

  def fit(self, task, run):
    """Trains `task.model` in place.

    Args:
      task: a `Task`.
      run: a `runs.Run`; rows of metrics are appended to it.

    Returns:
      The row of metrics of the model's current weights, a dict of numbers.
    """
    raise NotImplementedError
