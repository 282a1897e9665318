"""Takes a batch in parts, one after the other, and averages their gradients."""

import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.training import batches

LOOP = "accumulated"  # the name by which `cost.operations` finds the loop


def check(parts, pretext):
  """Raises `UserError` if a pretext's batches cannot be taken in parts."""
  errors.at_least(1, None, accumulate=parts)
  if parts > 1 and pretext.couples:
    raise errors.UserError(
      f"--accumulate: the loss of {pretext.name} compares the images of a batch: give a smaller "
      "--batch_size, or --remat"
    )


def mean(compute, views, batch, seed, parts):
  """Applies a function to equal parts of a batch, and returns the mean.

  If the loss is a mean over examples, this equals the result for the whole batch, with the memory
  of one part.  Batch norms see one part at a time.

  Args:
    compute: (views, batch, seed) -> (gradients, a list of tensors; {name: float32 scalar}).
    views: float32 [n, v, h, w, c].
    batch: a dict of tensors of n rows.
    seed: int32 [2], the seed of the first part; the others derive theirs from it.
    parts: a divisor of n.
  """
  if parts == 1:
    return compute(views, batch, seed)

  said = (
    f"a batch of a replica does not divide into accumulate={parts} equal parts: give batches that "
    "do, and drop a smaller last one"
  )
  if views.shape[0] is None:
    divides = tf.shape(views)[0] % parts == 0
    views, batch = batches.checked((views, batch), divides, said)
  elif views.shape[0] % parts:
    raise errors.UserError(said)

  def split(rows):
    rows = tf.convert_to_tensor(rows)
    size = rows.shape[0] // parts if rows.shape[0] else -1
    return tf.reshape(rows, [parts, size, *rows.shape[1:]])

  views, batch = tf.nest.map_structure(split, (views, batch))

  def of_part(i, seed):
    pick = lambda rows: rows[i]  # noqa: E731
    gradients, shown = compute(*tf.nest.map_structure(pick, (views, batch)), seed)
    return [tf.convert_to_tensor(gradient) for gradient in gradients], shown

  def more(i, total):
    found = of_part(i, distribution.fold(seed, i))
    return i + 1, tf.nest.map_structure(tf.add, total, found)

  state = (tf.constant(1), of_part(0, seed))
  if distribution.replicas() > 1:  # a loop of the graph cannot exchange batch norms' statistics
    for _ in range(1, parts):
      state = more(*state)
  else:
    state = tf.while_loop(lambda i, _: i < parts, more, state, parallel_iterations=1, name=LOOP)
  _, total = state
  return tf.nest.map_structure(lambda value: value / parts, total)


def of_all_replicas(gradients, values):
  """The sum of the replicas' gradients, and the means of their values, in one exchange.

  Args:
    gradients: a list of tensors.
    values: {name: float32 scalar}.
  """
  replicas = distribution.replicas()
  if replicas == 1:
    return gradients, values
  *gradients, row = distribution.total([*gradients, tf.stack(list(values.values()))])
  return gradients, dict(zip(values, tf.unstack(row / replicas), strict=True))
