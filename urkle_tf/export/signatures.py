"""Writes the SavedModel of an export, whose signatures check their images."""

import functools

import keras
import tensorflow as tf
from absl import logging


def _guarded(function):
  """A signature that checks its images' shape when it is called.

  TensorFlow's own signatures do not: images with other channels would crash the server, and images
  of another size would be read wrongly.
  """

  @functools.wraps(function)  # the arguments' names are the signature's
  def guarded(images, *others):
    # If the shape were static, TensorFlow would remove the check.
    unknown = tf.raw_ops.PlaceholderWithDefault(input=images, shape=tf.TensorShape(None))
    wanted = images.shape[1:]
    message = f"images must be [n, {', '.join(map(str, wanted))}]"
    right = tf.debugging.assert_equal(tf.shape(unknown)[1:], wanted.as_list(), message=message)
    with tf.control_dependencies([right]):
      return function(tf.identity(images), *others)

  return guarded


def save(folder, models, endpoints):
  """Writes a SavedModel.

  Args:
    folder: a `pathlib.Path`.
    models: Keras models whose variables it holds.
    endpoints: {name: (function, [tf.TensorSpec of each argument])}; the shape of arguments named
      "images" is checked when they are served.
  """
  archive = keras.export.ExportArchive()
  for model in models:
    archive.track(model)
  traced: dict = {}  # a function with two names is traced and written once
  for name, (function, signature) in endpoints.items():
    if function in traced:
      archive.add_endpoint(name, traced[function])
      continue
    served = _guarded(function) if signature[0].name == "images" else function
    traced[function] = archive.add_endpoint(name, served, input_signature=signature)
    traced[function].get_concrete_function()
  verbosity, level = logging.get_verbosity(), tf.get_logger().level
  logging.set_verbosity(logging.WARNING)  # TensorFlow logs every renamed input
  tf.get_logger().setLevel("WARNING")  # and the folder's temporary name
  try:
    archive.write_out(str(folder), verbose=False)
  finally:
    logging.set_verbosity(verbosity)
    tf.get_logger().setLevel(level)
