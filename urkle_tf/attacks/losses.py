"""The losses that an attack on a classifier maximises, from scores, per example.

Scores are logits or log-probabilities, float32 [n, classes].  These differ by a constant per
example, which does not affect any loss here.  The worse the classification, the larger each loss.

```python
from urkle_tf.attacks import losses

scores = logits(images)
everyone = losses.cross_entropy(scores, labels)  # float32 [n], and so are the others
margins = losses.margin(scores, labels)  # positive where the classification is wrong
ratios = losses.dlr(scores, labels)
targets = losses.wrong_class(scores, labels, rank=0)  # int32 [n], the likeliest wrong class
margins = losses.targeted_margin(scores, labels, targets)
ratios = losses.targeted_dlr(scores, labels, targets)
```
"""

import tensorflow as tf

from urkle_tf import errors


def cross_entropy(scores, labels):
  """-log p_y, with p the softmax of the scores.

  Args:
    scores: float32 [n, classes], logits or log-probabilities.
    labels: int [n].

  Returns:
    float32 [n].
  """
  return -_of(tf.nn.log_softmax(scores), labels)


def margin(scores, labels):
  """max_{j != y} z_j - z_y: positive where the classification is wrong (Carlini and Wagner, 2017).

  Args:
    scores: float32 [n, classes].
    labels: int [n].

  Returns:
    float32 [n].
  """
  return tf.reduce_max(_wrong(scores, labels), 1) - _of(scores, labels)


def dlr(scores, labels):
  """The difference of logits ratio (Croce and Hein, 2020, Reliable evaluation, eq. 6).

      -(z_y - max_{j != y} z_j) / (z_(1) - z_(3))

  with z_(k) the k-th largest score.  Unlike the cross-entropy, it does not change when the logits
  are scaled, and its gradient does not vanish.

  Args:
    scores: float32 [n, classes].
    labels: int [n].

  Returns:
    float32 [n], in [-1, 0] if the classification is right, above 0 otherwise.

  Raises:
    UserError: for fewer than 3 classes.
  """
  _check_classes(scores, "the DLR loss", 3, "cross_entropy or margin")
  top = tf.math.top_k(scores, 3).values
  return margin(scores, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(scores, labels, targets):
  """z_t - z_y: if positive, class t beats the right one.

  Args:
    scores: float32 [n, classes].
    labels: int [n].
    targets: int [n]: wrong classes.

  Returns:
    float32 [n].
  """
  return _of(scores, targets) - _of(scores, labels)


def targeted_dlr(scores, labels, targets):
  """The targeted difference of logits ratio (Croce and Hein, 2020, eq. 7).

      -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)

  Args:
    scores: float32 [n, classes].
    labels: int [n].
    targets: int [n]: wrong classes.

  Returns:
    float32 [n].

  Raises:
    UserError: for fewer than 4 classes.
  """
  _check_classes(scores, "the targeted DLR loss", 4, "targeted_margin")
  top = tf.math.top_k(scores, 4).values
  spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
  return targeted_margin(scores, labels, targets) / (spread + 1e-12)


def wrong_class(scores, labels, rank):
  """The most likely wrong class (rank 0), the second most likely (rank 1), and so on.

  Args:
    scores: float32 [n, classes], of the clean images.
    labels: int [n].
    rank: an int or int32 scalar in [0, classes - 2].

  Returns:
    int32 [n].
  """
  order = tf.math.top_k(_wrong(scores, labels), scores.shape[1]).indices
  return tf.gather(order, rank, axis=1)


def _of(scores, classes):
  return tf.gather(scores, _numbers(classes), batch_dims=1)


def _wrong(scores, labels):
  """The scores, with minus infinity for the label."""
  right = tf.one_hot(
    _numbers(labels), scores.shape[1], on_value=True, off_value=False, dtype=tf.bool
  )
  return tf.where(right, tf.constant(-float("inf"), scores.dtype), scores)


def _numbers(classes):
  """Classes of any integer type as int64 [n]; raises `UserError` for another shape."""
  numbers = tf.cast(classes, tf.int64)
  if not numbers.shape.is_compatible_with([None]):
    raise errors.UserError(
      f"labels must be one class number for each image, got shape {numbers.shape}: give "
      "tf.argmax(labels, 1) of one-hot labels"
    )
  return numbers


def _check_classes(scores, what, needed, instead):
  if scores.shape[1] < needed:
    raise errors.UserError(
      f"{what} needs at least {needed} classes, but there are {scores.shape[1]}: use {instead}"
    )
