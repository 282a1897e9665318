"""How `tf.data` reads: on many cores, in a fixed order, and to an end that nobody waits for."""

import tensorflow as tf

_EXAMPLES = 128  # at a time: more than an input worker, which may be another machine, has cores


def each(dataset, function):
  """Maps a `tf.data.Dataset` of single examples on all cores; the results keep their order."""
  return dataset.map(function, num_parallel_calls=_EXAMPLES, deterministic=True)


def each_batch(dataset, function):
  """Maps a `tf.data.Dataset` of batches; the results keep their order.

  Up to 16 cores work on a batch each, which limits memory.
  """
  # Without its autotuner, tf.data takes this for the number of cores, up to 16.
  return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def without_autotuner(dataset):
  """A `tf.data.Dataset` whose iterators end at once.

  Beside tf.data's autotuner, an iterator's end can wait for the tuner's next turn, for up to a
  minute, and Python's garbage collection ends iterators at any time.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)
