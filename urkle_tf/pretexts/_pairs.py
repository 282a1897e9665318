"""Members of a tuple, pair by pair.

A tuple holds the views first, then adversaries: member m comes from view m % views.
"""

import itertools

import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.networks.tuples import flat, folded


def through(head, members, training):
  """Passes every member through a head.

  Args:
    head: a Keras model, float32 [m, d] -> [m, e].
    members: float32 [n, t, d].
    training: the mode of the head's batch norms.

  Returns:
    float32 [n, t, e].
  """
  return folded(head(flat(members), training=training), members.shape[1])


def of_batch(projector, representations, training):
  """The projections of the whole batch, over all replicas, pair by pair.

  Returns:
    (all projections, float32 [t, N, e]; those of the first member of each pair, and of the second,
    both [pairs, N, e]; ones [n], for the examples of this replica).
  """
  z = through(projector, representations.z, training)
  members = tf.transpose(distribution.gather(z), [1, 0, 2])
  first, second = pairs(z.shape[1])
  return members, tf.gather(members, first), tf.gather(members, second), tf.ones_like(z[:, 0, 0])


def pairs(members):
  """All pairs of different members a < b: the list of all a, and the list of all b."""
  first, second = zip(*itertools.combinations(range(members), 2), strict=True)
  return list(first), list(second)


def cosine_to_other_views(predictions, targets):
  """The mean cosine of each member's prediction and the targets of the other views.

      1 / (t (v - 1))  sum_m  sum_{k != m % v}  cos(predictions_m, targets_k)

  An adversary is compared with the same targets as its view.

  Args:
    predictions: float32 [n, t, d], of all members.
    targets: float32 [n, v, d], of the v clean views, v at least 2.

  Returns:
    float32 [n].
  """
  others = 1 - _own(predictions, targets)
  return tf.reduce_sum(_cosines(predictions, targets) * others, [1, 2]) / tf.reduce_sum(others)


def distance_to_own_view(members, targets, clean=1.0, adversarial=1.0):
  """How far each member's direction is from the target of its view.

      1 / t  sum_m  w_m (1 - cos(members_m, targets_{m % v}))

  w_m is `clean` for the v views and `adversarial` for the adversaries.

  Args:
    members: float32 [n, t, d].
    targets: float32 [n, v, d], of the v clean views.
    clean: the weight of views.
    adversarial: the weight of adversaries.

  Returns:
    float32 [n].
  """
  count, views = members.shape[1], targets.shape[1]
  weights = [clean] * views + [adversarial] * (count - views)
  cosines = _cosines(members, targets) * _own(members, targets)
  weighted = cosines * tf.constant(weights, tf.float32)[:, None]
  return sum(weights) / count - tf.reduce_sum(weighted, [1, 2]) / count


def _cosines(rows, others):
  """[n, t, d] and [n, v, d] -> [n, t, v]."""
  rows, others = (tf.math.l2_normalize(tf.cast(x, tf.float32), -1) for x in (rows, others))
  return tf.einsum("ntd,nvd->ntv", rows, others)


def _own(members, targets):
  """1 if a member comes from a view, else 0: [t, v]."""
  views = targets.shape[1]
  return tf.one_hot(tf.range(members.shape[1]) % views, views)
