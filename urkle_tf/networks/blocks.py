"""The blocks of a network, from its input to its output: residual blocks, and layers in a row."""

from typing import Any, NamedTuple

import keras

from urkle_tf.networks import keras_private


class Block(NamedTuple):
  """The part between two points of a network where a single tensor carries everything.

  Attributes:
    layers: its layers with weights.
    nodes: its nodes in a functional model's graph, in order; empty for a part within a layer.
    entry: the tensor of that graph before the nodes.
    exit: the tensor after them.
  """

  layers: list
  nodes: Any = ()
  entry: Any = None
  exit: Any = None


def blocks(model):
  """The blocks of a model, in order.

  A functional model is cut wherever a single tensor is alive: after each residual block, and
  between layers in a row.  Nested models are cut too, and so are layers that hold several layers of
  one type, such as a transformer's encoder.  Other parts of such a layer belong to the adjacent
  block.

  Args:
    model: a Keras model or layer, built.

  Returns:
    A list of `Block` with weights.
  """
  graph = keras_private.functional(model) if isinstance(model, keras.Model) else None
  if graph is not None:
    return [block for part in segments(graph) for block in within(part)]
  children = [child for child in keras_private.children(model) if child.variables]
  kinds = [type(child) for child in children if keras_private.children(child)]
  row = max(kinds, key=kinds.count, default=None)  # the first of several
  if row is None or kinds.count(row) < 2:
    return blocks(children[0]) if len(children) == 1 else [Block([model])]
  found: list[Block] = []
  before: list = []
  for child in children:
    if type(child) is row:
      found.append(Block([*before, child]))
      before = []
    else:
      (found[-1].layers if found else before).append(child)
  return found


def within(part):
  """The blocks of a part of a graph: those of the only layer with weights, or itself."""
  inner = blocks(part.layers[0]) if len(part.layers) == 1 else []
  return inner if len(inner) > 1 else [part] * bool(part.layers)


def segments(graph):
  """The parts of a functional model's graph between single tensors, a list of `Block`.

  Layers without a kernel (batch norms, activations, pooling) belong to the part before them.

  Args:
    graph: a functional model.
  """
  nodes = [node for node in keras_private.nodes(graph) if not node.is_input]
  last = {id(tensor): i for i, node in enumerate(nodes) for tensor in node.input_tensors}
  last |= {id(tensor): len(nodes) for tensor in graph.outputs}
  alive = {id(tensor): tensor for tensor in graph.inputs}
  found, start, entry = [], 0, graph.inputs[0]
  for i, node in enumerate(nodes):
    alive |= {id(tensor): tensor for tensor in node.outputs}
    alive = {key: tensor for key, tensor in alive.items() if last.get(key, -1) > i}
    if len(alive) == 1 or i + 1 == len(nodes):
      (tensor, *_) = alive.values()
      found.append(_block(nodes[start : i + 1], entry, tensor))
      start, entry = i + 1, tensor
  merged = found[:1]
  for part in found[1:]:
    if any(len(variable.shape) > 1 for layer in part.layers for variable in layer.variables):
      merged.append(part)
    else:
      merged[-1] = _block([*merged[-1].nodes, *part.nodes], merged[-1].entry, part.exit)
  return merged


def _block(nodes, entry, tensor):
  layers = {id(node.operation): node.operation for node in nodes}.values()
  return Block([x for x in layers if getattr(x, "variables", None)], nodes, entry, tensor)
