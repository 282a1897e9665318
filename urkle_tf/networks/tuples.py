"""Tuples of an example's members (views, adversaries), and rows: one image or embedding each."""

import tensorflow as tf


def flat(tuples):
  """The members one after the other, example-major: [n, t, ...] -> [n * t, ...]."""
  return tf.reshape(tuples, [-1, *tuples.shape[2:]])


def folded(rows, members):
  """The reverse of `flat`, for tuples of t members: [n * t, ...] -> [n, t, ...]."""
  return tf.reshape(rows, [-1, members, *rows.shape[1:]])
