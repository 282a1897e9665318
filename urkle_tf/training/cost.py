"""The cost of a traced function, counted in its graph: floating-point operations and memory."""

import math

from urkle_tf.attacks import base
from urkle_tf.training import accumulation

_LOOPS = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BACKWARD = "gradient_tape/"  # the prefix of the operations of a tape's gradient


def operations(graph, loops=1, parts=1, restarts=1):
  """The floating-point operations of convolutions and matrix products, two per multiply-add.

  Other operations are not counted; they take a few percent of a convolutional network's time.

  Args:
    graph: the graph of a concrete function, with static shapes.
    loops: how often the body of each loop runs, except for the loops below.
    parts: the number of parts of a batch (`accumulation.mean`).
    restarts: the number of attempts of an attack.

  Returns:
    An int.
  """
  total, named = 0, {accumulation.LOOP: parts - 1, base.RESTARTS: restarts}
  for op in _live(graph):
    if op.type in _LOOPS:
      own = op.name.rpartition("/")[2]
      times = next((n for name, n in named.items() if own.startswith(name)), loops)
      inner = _function(graph, op.get_attr("body").name)
      total += times * operations(inner, loops, parts, restarts)
    elif op.type in _CALLS:
      total += operations(_function(graph, op.get_attr("f").name), loops, parts, restarts)
    else:
      total += 2 * _multiplications(op)
  return total


def _multiplications(op):
  if op.type in ("MatMul", "BatchMatMulV2"):
    left = op.inputs[0].shape
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return _size(op.outputs[0]) * (left[-2 if transposed else -1] or 0)
  if op.type == "Einsum":
    return _summed(op)
  # For a convolution, the outputs of the forward pass times the products summed in each.
  if op.type in ("Conv2D", "DepthwiseConv2dNative"):
    outputs, kernel = op.outputs[0], op.inputs[1].shape
  elif op.type in ("Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"):
    outputs, kernel = op.inputs[2], op.inputs[1].shape
  elif op.type in ("Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"):
    outputs, kernel = op.inputs[2], op.outputs[0].shape
  else:
    return 0
  summed = math.prod(kernel[:2] if "Depthwise" in op.type else kernel[:3])
  return _size(outputs) * summed


def _summed(op):
  """The product of the sizes of all indices of an Einsum."""
  sizes: dict[str, int] = {}
  terms = op.get_attr("equation").decode().split("->")[0].split(",")
  for term, tensor in zip(terms, op.inputs, strict=True):
    before, dots, after = term.partition("...")
    wide = len(tensor.shape) - len(before) - len(after)
    between = [f".{place}" for place in range(wide, 0, -1)] if dots else []
    for name, size in zip([*before, *between, *after], tensor.shape, strict=True):
      sizes[name] = max(sizes.get(name, 0), size or 0)
  return math.prod(sizes.values()) if len(terms) > 1 else 0


def held(graph):
  """The bytes that the forward pass keeps for the backward pass.

  Args:
    graph: the graph of a concrete function, with static shapes.

  Returns:
    An int: the largest number among those of the graph itself and of the bodies of its loops.
  """
  tensors, most = {}, 0
  for op in _live(graph):
    if op.type in _LOOPS:
      most = max(most, held(_function(graph, op.get_attr("body").name)))
    elif op.type in _CALLS:
      most = max(most, held(_function(graph, op.get_attr("f").name)))
    elif op.name.startswith(_BACKWARD):
      for tensor in op.inputs:
        forward = not tensor.op.name.startswith(_BACKWARD)
        if forward and tensor.op.type not in ("Const", "ReadVariableOp", "Placeholder"):
          tensors[tensor.name] = _size(tensor) * tensor.dtype.size
  return max(most, sum(tensors.values()))


def _live(graph):
  """The operations that a result depends on; TensorFlow runs no others.

  For example, a convolution's gradient is always traced for both its image and its kernel.
  """
  waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
  found = {}
  while waiting:
    op = waiting.pop()
    if op.name not in found:
      found[op.name] = op
      waiting += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
  return list(found.values())


def _function(graph, name):
  return graph._get_function(name).graph


def _size(tensor):
  """The number of a tensor's entries; 0 if it is not known."""
  return math.prod(tensor.shape) if tensor.shape.is_fully_defined() else 0
