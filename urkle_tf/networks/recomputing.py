"""Recomputes activations in the backward pass instead of holding them until then."""

import contextlib
import weakref

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import blocks, keras_private

_AGAIN = "gradient_tape/recomputed/"  # `cost.held` counts this name as the backward pass
_parts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # graph: [(part, whether again)]


def recompute(network):
  """Makes the blocks of a network keep only their input, and recompute the rest.

  Only the input of each block (`networks.blocks`) is kept for the backward pass, which computes the
  rest of the block again.  This costs one more forward pass (Chen et al., 2016, Training Deep Nets
  with Sublinear Memory Cost).  Gradients do not change.  Functional models then run in inference
  mode, even if called with `training=True`.

  Args:
    network: a Keras model, such as the backbone of an encoder.

  Raises:
    UserError: if no part of it can be recomputed.
  """
  models = [layer for layer in keras_private.layers(network) if isinstance(layer, keras.Model)]
  rows = {
    id(layer): layer
    for model in models
    for block in blocks.blocks(model)
    for layer in block.layers
    if not block.nodes and layer is not model and keras_private.children(layer)
  }
  for layer in rows.values():
    layer.call = _of_layer(layer, layer.call)
  marked = [_mark(model) for model in models]
  if not rows and not any(marked):
    raise errors.UserError(f"--remat: {network.name!r} has no blocks to recompute: leave it out")


def _mark(model):
  """Makes a functional model recompute the blocks of its own graph; returns whether it has any."""
  graph = keras_private.functional(model)
  if graph is None or len(graph.inputs) != 1 or keras.tree.is_nested(graph.output):
    return False
  parts = [(part, _is_whole(part)) for part in blocks.segments(graph)]
  found = any(again for _, again in parts)
  if found:
    _parts[graph] = parts
    calls = {id(operation): in_inference_mode(operation) for operation in graph.operations}
    graph.call = lambda inputs, training=None, mask=None: run(graph, inputs, calls)
  return found


def _is_whole(part):
  """Whether a part of a graph is a block, and holds more than its output."""
  if blocks.within(part) != [part]:
    return False
  return len(part.nodes) > 1 or bool(keras_private.children(part.layers[0]))


def run(graph, inputs, calls):
  """As `keras_private.run`, with recomputed blocks."""
  if graph not in _parts:
    return keras_private.run(graph, inputs, calls)
  (value,) = keras_private.standardised(graph, inputs)
  for part, again in _parts[graph]:

    def compute(x, part=part):
      return keras_private.run_nodes(part.nodes, part.entry, x, calls)[id(part.exit)]

    value = _again(compute)(value) if again else compute(value)
  return value


def in_inference_mode(operation):
  """A layer as a function of its arguments, in inference mode; other operations unchanged."""
  if not isinstance(operation, keras.Layer):
    return operation
  return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})


def _of_layer(layer, call):
  """A layer's call, recomputed; every tensor among its arguments gets its gradient."""

  def recomputed(*args, **kwargs):
    flat = keras.tree.flatten((args, kwargs))
    places = [i for i, value in enumerate(flat) if tf.is_tensor(value)]

    def compute(*tensors):
      values = list(flat)
      for place, tensor in zip(places, tensors, strict=True):
        values[place] = tensor
      args_again, kwargs_again = keras.tree.pack_sequence_as((args, kwargs), values)
      with keras_private.cast_of(layer):
        return call(*args_again, **kwargs_again)

    if not places:  # symbolic
      return call(*args, **kwargs)
    return _again(compute)(*(flat[place] for place in places))

  return recomputed


def _again(function):
  """A function of tensors whose inner values are recomputed for its gradient."""
  passes = 0

  def counted(*tensors):
    nonlocal passes
    passes += 1
    with tf.name_scope(_AGAIN) if passes > 1 else contextlib.nullcontext():
      return function(*tensors)

  return tf.recompute_grad(counted)
