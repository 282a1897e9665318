"""What a protocol is to `adapt`, and what it is given."""

import dataclasses

import keras
import numpy as np

from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.networks.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Task:
  """A classifier to be made.

  Attributes:
    encoder: the exported encoder, as loaded.
    classifier: encoder and fresh head: what is to be trained.
    source: the labelled images.
    chosen: int64 [m]: the positions in `source` of the labels that may be used, ascending.
    labels: int64 [m]: these labels.
    validation: a `Source` to report the accuracy on, or None.
    augment: spec of the augmentation of the training images.
    augment_copies: how many augmented copies of each image.
    optimizer: spec of the optimiser.
    learning_rate: its highest value.
    weight_decay: decoupled.
    batch_size: images a step.
    epochs: passes over the labelled images.
    seed: everything random is a function of it.
    log_every: steps between rows of metrics; there is one at each epoch's end too.
  """

  encoder: export.ExportedEncoder
  classifier: Classifier
  source: sources.Source
  chosen: np.ndarray
  labels: np.ndarray
  validation: sources.Source | None
  augment: str
  augment_copies: int
  optimizer: str
  learning_rate: float
  weight_decay: float
  batch_size: int
  epochs: int
  seed: int
  log_every: int

  @property
  def head(self) -> keras.Model:
    """The classifier's head."""
    return self.classifier.head


class Protocol:
  """How labels make a classifier of an encoder.  One file each, found by its name."""

  def check(self, task):
    """Raises `UserError` if an option of the task is wrong; called before anything is written.

    Args:
      task: a `Task`.
    """

  def fit(self, task, run):
    """Trains `task.classifier` in place.

    Args:
      task: a `Task`.
      run: a `runs.Run`; rows of metrics are appended to it.

    Returns:
      The last row of metrics, a dict of numbers.
    """
    raise NotImplementedError
