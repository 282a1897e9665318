"""Takes any Keras model of images as a network from images in [0, 1] to an embedding."""

import dataclasses

import keras
from absl import logging

from urkle_tf import errors
from urkle_tf.networks import keras_private, pixels

POOLS = ("token", "mean")
_CLASS_TOKENS = ("class_token", "cls_token", "class_embedding")  # weights of KerasHub and others
# Layers after which the axes mean what they did.
_SAME_AXES = tuple(
  getattr(keras.layers, name)
  for name in ("Activation", "Add", "Dropout", "ELU", "Identity", "LeakyReLU", "PReLU", "ReLU")
)


@dataclasses.dataclass(frozen=True)
class Output:
  """The kind of output to look for in a model.

  Attributes:
    what: a name and a shape, for messages.
    ranks: the ranks that it may have.
    names: names that mark it among outputs of these ranks; the first match is taken.
  """

  what: str
  ranks: tuple[int, ...]
  names: tuple[str, ...]

  def choose(self, path, shapes):
    """The name of the wanted output.

    Args:
      path: the model's path, for the message.
      shapes: {name: shape}; a shape of unknown rank fits.

    Raises:
      UserError: if no output stands out.
    """
    ranks = {name: _rank(shape) for name, shape in shapes.items()}
    fit = [name for name, rank in ranks.items() if rank in (*self.ranks, None)]
    if len(fit) == 1:
      return fit[0]
    for name in self.names:
      if name in fit:
        return name
    listing = ", ".join(f"{name} {shown(shape)}" for name, shape in sorted(shapes.items()))
    raise errors.UserError(
      f"{str(path)!r} has several outputs ({listing}), and none is named "
      f"{' or '.join(self.names[:2])}: rename the one with {self.what}"
    )

  def of(self, path, found):
    """The wanted tensor of what a model returned; arguments and errors as in `choose`."""
    found = _named(found)
    if not isinstance(found, dict):
      return found
    return found[self.choose(path, {name: tensor.shape for name, tensor in found.items()})]


SCORES = Output(
  "scores [n, classes]", (2,), ("logits", "probabilities", "predictions", "scores", "output_0")
)
EMBEDDING = Output(
  "an embedding [n, d]",
  (2, 3, 4),
  ("embedding", "loc", "features", "pooled_output", "sequence_output", "output_0"),
)


def _named(found):
  """What a model returned, with the names output_0, output_1, ... for a list of tensors."""
  if isinstance(found, list | tuple):
    return {f"output_{i}": tensor for i, tensor in enumerate(found)}
  return found


def _rank(shape):
  return shape.rank if hasattr(shape, "rank") else len(shape)


def shown(shape):
  """A shape as text: [None, 10], or [...] if its rank is unknown."""
  return "[...]" if _rank(shape) is None else "[" + ", ".join(map(str, tuple(shape))) + "]"


def image_shape(model, name=None):
  """(height, width, channels) of a model's images; None if it does not say.

  Args:
    model: a Keras model.
    name: its name in messages; by default the model's own.

  Raises:
    UserError: if it takes anything other than one batch of float images.
  """
  inputs, name = getattr(model, "inputs", None), str(name or model.name)
  if not inputs:
    return None
  if len(inputs) != 1 or len(inputs[0].shape) != 4:
    shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
    raise errors.UserError(
      f"{name!r} must take one batch of images [n, h, w, c], but takes {shapes}: give the part of "
      "it that does, keras.Model(images, embedding)"
    )
  check_batch(name, inputs[0].shape[0])
  check_dtype(name, inputs[0].dtype)
  return tuple(inputs[0].shape[1:])


def check_dtype(name, dtype):
  """Raises `UserError` if a model takes images of integers, to which Keras would cast ours."""
  if not keras.backend.is_float_dtype(dtype):
    raise errors.UserError(
      f"{name!r} takes {dtype} images, but must take float32: build it on a keras.Input of float32"
    )


def check_name(model, around):
  """Raises `UserError` if a model has the name of one of the layers around it."""
  if model.name in around:
    raise errors.UserError(
      f"the model cannot be named {model.name!r}, like a layer around it: set model.name to "
      "another name"
    )


def check_default():
  """Raises `UserError` if layers would take images to be channels-first by default."""
  if keras.config.image_data_format() != "channels_last":
    raise errors.UserError(
      "images are channels-last, but Keras's default is channels_first: call "
      'keras.config.set_image_data_format("channels_last"), or change ~/.keras/keras.json'
    )


def check_maps(model, number=0):
  """Raises `UserError` if a model's output of a number is feature maps with channels on axis 1."""
  if _channels_first(model, number):
    raise errors.UserError(
      f"{model.name!r} returns feature maps [n, d, h, w], but channels must come last: put "
      "keras.layers.Permute((2, 3, 1)) behind it"
    )


def _channels_first(model, number):
  """Whether the last layer that says where the channels of an output are has them on axis 1."""
  graph = keras_private.functional(model)
  if graph is None or len(graph.outputs[number].shape) != 4:
    return False
  made = {id(tensor): node for node in keras_private.nodes(graph) for tensor in node.outputs}
  node = made[id(graph.outputs[number])]
  while isinstance(node.operation, _SAME_AXES):
    node = made[id(node.input_tensors[0])]
  layer = node.operation
  if isinstance(layer, keras.Model):
    return _channels_first(layer, 0)
  if isinstance(layer, keras.layers.BatchNormalization):
    return layer.axis == 1
  return getattr(layer, "data_format", None) == "channels_first"


def check_batch(name, size):
  """Raises `UserError` if a model's first axis is of a fixed size."""
  if size is not None:
    raise errors.UserError(
      f"{str(name)!r} takes only batches of {size}: build and export it with a free first axis"
    )


def take(model, shape=None, preprocess=None, pool=None, output=None, back=None):
  """Turns a model into a network of images in [0, 1].

  Args:
    model: a Keras model, functional, sequential or subclassed, from one batch of images to
      features [n, d], feature maps [n, h, w, d] or tokens [n, t, d]; or to several named outputs.
    shape: (height, width, channels) of the images; None for the model's own.
    preprocess: how to turn images in [0, 1] into what it expects, as in `pixels.folding`; None to
      detect it.
    pool: "token" for the first token, "mean" for the mean of all; None for the class token, if the
      model has one.
    output: the name or number of the output; None to detect it.
    back: a layer that brings the images to [0, 1] first.

  Returns:
    A functional Keras model, images -> [n, d], or feature maps [n, h, w, d]; the model is one
    layer of it.

  Raises:
    UserError: if the model does not fit, or it is not clear which output or token to take.
  """
  own = image_shape(model)
  shape = own if shape is None else tuple(shape)
  if shape is None:
    raise errors.UserError(f"{model.name!r} does not declare its image size: give image_size")
  fold, said = pixels.chosen(model, preprocess, shape)
  if said:
    logging.info("%s gets its pixels as declared by %s", model.name, said)
  check_name(model, ("images",))
  images = keras.Input(shape, name="images")
  values = fold(images if back is None else back(images))
  if own is not None and not isinstance(model, keras.Sequential):  # it may take {"images": ...}
    values = keras.tree.pack_sequence_as(model.input, [values])
  try:
    found = model(values)
  except Exception as error:  # layers raise many kinds for a shape that does not fit
    size = "x".join(map(str, shape))
    raise errors.UserError(
      f"{model.name!r} fails on images of {size}: {errors.reason(error)}"
    ) from error
  wanted = _output(model, found, output)
  check_maps(model, [id(tensor) for tensor in keras.tree.flatten(found)].index(id(wanted)))
  features = _pooled(model, wanted, pool)
  return keras.Model(images, features, name="taken")


def _output(model, found, wanted):
  """One tensor of what a model returned."""
  if wanted is None:
    return EMBEDDING.of(model.name, found)
  found = _named(found)
  if not isinstance(found, dict):
    if wanted != 0:
      raise errors.UserError(f"{model.name!r} has one output: leave output={wanted!r} out")
    return found
  if isinstance(wanted, int):
    wanted = f"output_{wanted}"
  errors.one_of(f"output of {model.name}", wanted, found)
  return found[wanted]


def _pooled(model, features, pool):
  """[n, d] of tokens [n, t, d]; features and feature maps as they are."""
  if pool is not None:
    errors.one_of("pool", pool, POOLS)
  rank = len(features.shape)
  if rank not in EMBEDDING.ranks or features.shape[-1] in (None, 1):
    raise errors.UserError(
      f"{model.name!r} returns {list(features.shape)}, but must return features [n, d], feature "
      "maps [n, h, w, d] or tokens [n, t, d]"
    )
  if rank != 3:
    if pool is not None:
      raise errors.UserError(f"{model.name!r} returns no tokens [n, t, d]: leave out pool={pool!r}")
    return features
  if pool is None:
    if not any(variable.name in _CLASS_TOKENS for variable in model.variables):
      raise errors.UserError(
        f"{model.name!r} returns tokens {list(features.shape)} and has no class token: give "
        'robustify pool="token" (the first one) or pool="mean" (the mean of all)'
      )
    pool = "token"
  if pool == "mean":
    return keras.layers.GlobalAveragePooling1D(dtype="float32")(features)
  return keras.ops.take(features, 0, axis=1)
