"""Any model, a SavedModel or a `.keras` file, as a function of images."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from concurrent import futures

import keras
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants  # no public name freezes functions
from tensorflow.python.saved_model import loader_impl  # nor reads a model without loading it

from urkle_tf import errors
from urkle_tf.networks import foreign, policies
from urkle_tf.networks.foreign import EMBEDDING, SCORES
from urkle_tf.networks.saved import trust

_SIGNATURES = ("serving_default", "serve")


@dataclasses.dataclass
class Loaded:
  """A model that was read but not checked yet.

  Attributes:
    function: float32 [n, h, w, c] -> the wanted output.
    image_size: (height, width, channels), each None if the model accepts any.
    format: "SavedModel" or "Keras".
    fingerprint: a hash of its files.
    path: where it was read from.
    network: the Keras model underneath; None for a SavedModel, and after `freeze`.
    about: what was put on top of an encoder to make it a classifier; None for other models.
  """

  function: Callable
  image_size: tuple
  format: str
  fingerprint: str
  path: str
  network: keras.Model | None = None
  about: str | None = None

  def size_for(self, image_shape):
    """The images' size: that of `image_shape` where the model accepts any."""
    return tuple(
      there if own is None else own for own, there in zip(self.image_size, image_shape, strict=True)
    )


def is_foreign(path):
  """Whether a path is a `.keras` file, or the folder of a SavedModel made elsewhere."""
  path = pathlib.Path(os.path.expanduser(path))
  if path.suffix == ".keras":
    return True
  return (path / "saved_model.pb").is_file() and not (path / "metadata.json").is_file()


def load(path, wanted=SCORES):
  """Reads a model.

  Args:
    path: a `.keras` file (read in safe mode), or the folder of a SavedModel with a signature
      of one batch of images: `serving_default`, `serve`, or the only one of that kind.
    wanted: the `Output` to look for.

  Returns:
    A `Loaded`.

  Raises:
    UserError: if there is no such model.
  """
  path = pathlib.Path(os.path.expanduser(path))
  if not path.exists():
    raise errors.UserError(f"no file {str(path)!r}: give a .keras file or an export's folder")
  if path.suffix == ".keras" and path.is_file():
    function, shape, model = _keras_model(path, wanted)
    return Loaded(function, shape, "Keras", _fingerprint([path]), str(path), model)
  function, shape = _saved_model(path, wanted)
  files = [path / "saved_model.pb", *sorted(path.glob("variables/*"))]
  return Loaded(function, shape, "SavedModel", _fingerprint(files), str(path))


def _fingerprint(files):
  digest = hashlib.sha256()
  for file in files:
    with open(file, "rb") as opened:
      while block := opened.read(1 << 20):
        digest.update(block)
  return digest.hexdigest()[:16]


def call(function, images, path):
  """A model's outputs for images, as float32 NumPy values.

  Args:
    function: the function of a `Loaded`.
    images: float32 [n, h, w, c].
    path: where it was read from, for the message.

  Raises:
    UserError: if it fails.
  """
  try:
    return tf.cast(function(images), tf.float32).numpy()
  except (tf.errors.OpError, ValueError, TypeError) as error:
    raise _failed(path, images.shape[1:], error) from error


def freeze(loaded, image_shape):
  """A model with its weights as constants.

  Args:
    loaded: a `Loaded`.
    image_shape: (height, width, channels).

  Returns:
    A `Loaded` for images of that shape, whose function holds no variables.  It may be called
    anywhere, including replicas and compiled steps.

  Raises:
    UserError: if the model fails on such images.
  """
  spec = tf.TensorSpec([None, *image_shape], tf.float32)

  def trace():
    found = tf.function(loaded.function, autograph=False).get_concrete_function(spec)
    return convert_to_constants.convert_variables_to_constants_v2(found)

  try:
    constant = outside_strategies(trace)
  except (tf.errors.OpError, ValueError, TypeError) as error:
    raise _failed(loaded.path, image_shape, error) from error
  function = lambda images: tf.nest.flatten(constant(tf.cast(images, tf.float32)))[0]  # noqa: E731
  shape = tuple(image_shape)
  return dataclasses.replace(loaded, function=function, image_size=shape, network=None)


def outside_strategies(function, *arguments):
  """Calls a function outside any `tf.distribute` scope, so that its variables are plain."""
  with futures.ThreadPoolExecutor(1) as another_thread:  # a scope belongs to its thread
    return another_thread.submit(function, *arguments).result()


def _failed(path, image_shape, error):
  shape = "x".join(map(str, image_shape))
  return errors.UserError(f"{path!r} fails on images of {shape}: {errors.reason(error)}")


def read_keras(path, advice="; a SavedModel works too (model.export(FOLDER))"):
  """Reads the Keras model of a `.keras` file, in safe mode.

  Args:
    path: the file.
    advice: the end of the message if it cannot be read.

  Raises:
    UserError: if it cannot be read, or holds Python code that is not trusted.
  """
  try:
    return keras.saving.load_model(path, compile=False, safe_mode=not trust.is_granted())
  except Exception as error:  # zip, HDF5 and Keras raise many kinds
    fault = f"cannot read {str(path)!r}: {errors.reason(error)}"
    if "unsafe" in str(error) or "lambda" in str(error).lower():
      fault = (
        f"{str(path)!r} holds Python code (a Lambda layer) or a SavedModel (a TFSMLayer), which is "
        f"not run from a file: {trust.HINT}"
      )
    raise errors.UserError(fault + advice) from error


def _keras_model(path, wanted):
  model = read_keras(path)
  shape = foreign.image_shape(model, path)
  if shape is None:
    raise errors.UserError(
      f"{str(path)!r} does not declare its input: give a SavedModel of it (model.export(FOLDER); "
      "for an encoder or a classifier of urkle_tf, export_encoder or export_classifier)"
    )
  if wanted is EMBEDDING:
    policies.precise_attention(model)
    model = foreign.take(model)
  dtype = model.inputs[0].dtype
  function = lambda images: wanted.of(path, model(tf.cast(images, dtype), training=False))  # noqa: E731
  return function, shape, model


def _saved_model(path, wanted):
  try:
    trust.check_graph(path, _operations(path))  # loading runs parts of it already
    loaded = tf.saved_model.load(str(path))
  except errors.UserError:
    raise
  except Exception as error:  # many kinds, from the file system to missing operations
    raise errors.UserError(f"cannot read {str(path)!r}: {errors.reason(error)}") from error
  signatures = dict(getattr(loaded, "signatures", {}))
  fit = {name: found for name, found in signatures.items() if _takes_images(found)}
  names = [name for name in _SIGNATURES if name in fit] or (list(fit) if len(fit) == 1 else [])
  if not names:
    listing = "; ".join(map(_describe, signatures, signatures.values()))
    raise errors.UserError(
      f"{str(path)!r} needs a signature serving_default(float32 [n, h, w, c]) -> {wanted.what}; "
      + (f"it has: {listing}" if listing else "it has none: write it with model.export(FOLDER)")
    )
  signature = fit[names[0]]
  ((argument, spec),) = signature.structured_input_signature[1].items()
  shapes = {name: found.shape for name, found in signature.structured_outputs.items()}
  output = wanted.choose(path, shapes)
  shape = [None] * 4 if spec.shape.rank is None else spec.shape.as_list()
  foreign.check_batch(path, shape[0])

  def function(images, loaded=loaded):  # whose variables live as long as it does
    return signature(**{argument: tf.cast(images, spec.dtype)})[output]

  return function, tuple(shape[1:])


def _operations(path):
  """The names of the operations in a SavedModel's graphs."""
  for graph in loader_impl.parse_saved_model(str(path)).meta_graphs:
    yield from (node.op for node in graph.graph_def.node)
    for function in graph.graph_def.library.function:
      yield from (node.op for node in function.node_def)


def _takes_images(signature):
  positional, named = signature.structured_input_signature
  if positional or len(named) != 1:
    return False
  (spec,) = named.values()
  return spec.dtype.is_floating and spec.shape.rank in (4, None)


def _describe(name, signature):
  """A signature as text: serving_default(x: float32 [None, 4]) -> y: float32 [None, 2]."""
  show = lambda specs: ", ".join(  # noqa: E731
    f"{key}: {spec.dtype.name} {foreign.shown(spec.shape)}" for key, spec in specs.items()
  )
  _, named = signature.structured_input_signature
  return f"{name}({show(named)}) -> {show(signature.structured_outputs)}"
