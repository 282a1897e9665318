"""The SavedModel of an export: its signatures, which look at what they are given."""

import functools

import keras
import tensorflow as tf
from absl import logging


def _guarded(function):
  """A signature that looks at its images' shape when it is called.

  TensorFlow's own do not: images of other channels would crash the process that serves them,
  and of another size they would be taken for what they are not.
  """

  @functools.wraps(function)  # the arguments' names are the signature's
  def guarded(images, *others):
    # Of a shape that is known TensorFlow would leave the question out.
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
    endpoints: {name: (function, [tf.TensorSpec of each argument])}; of arguments named "images"
      the shape is looked at when they are served.
  """
  archive = keras.export.ExportArchive()
  for model in models:
    archive.track(model)
  traced: dict = {}  # a function of two names is traced and written once
  for name, (function, signature) in endpoints.items():
    if function in traced:
      archive.add_endpoint(name, traced[function])
      continue
    served = _guarded(function) if signature[0].name == "images" else function
    traced[function] = archive.add_endpoint(name, served, input_signature=signature)
    traced[function].get_concrete_function()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input
  try:
    archive.write_out(str(folder), verbose=False)
  finally:
    logging.set_verbosity(verbosity)
