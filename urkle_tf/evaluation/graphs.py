"""Any function of images as a graph: logits below the softmax, gradients across steps.

The graph of a traced function is rewritten, but its values never change: the result is a tensor
that the function computes anyway, and only gradients are replaced.
"""

import collections
import functools
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants  # no public name inlines functions

from urkle_tf import distribution

# Elementwise in their first input, with a gradient of zero or None in TensorFlow.
_STEPS = {
  *("Round", "Rint", "Floor", "Ceil", "Sign", "StopGradient", "PreventGradient"),
  *("QuantizeAndDequantize", "QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3"),
  *("QuantizeAndDequantizeV4", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars"),
  "FakeQuantWithMinMaxVarsPerChannel",
}
# These read only shape and type.
_BLIND = {"Shape", "ShapeN", "Rank", "Size", "ZerosLike", "OnesLike"}
# Of comparisons: whether the result rises with the first input, and with the second.
_COMPARISONS = {"Greater": (1, -1), "GreaterEqual": (1, -1), "Less": (-1, 1), "LessEqual": (-1, 1)}
_PASSING = {"Identity", "IdentityN", "EnsureShape", "Snapshot", "StopGradient", "PreventGradient"}
_PREFIX = "imported"
_RANDOM = {
  "RandomStandardNormal": "StatelessRandomNormal",
  "RandomUniform": "StatelessRandomUniform",
  "TruncatedNormal": "StatelessTruncatedNormal",
}


@tf.RegisterGradient("UrkleStraightThrough")
def _straight_through(op, *gradients):
  return [gradients[0]] + [None] * (len(op.inputs) - 1)


@tf.RegisterGradient("UrkleFloorDiv")
def _floor_div(op, gradient):
  # As of a division, for one divisor per tensor or per entry; the divisor gets no gradient.
  return [gradient / op.inputs[1] if op.inputs[0].shape == op.outputs[0].shape else None, None]


def _bridge(sign, op, gradient, *_):
  return [gradient, sign * gradient] + [None] * (len(op.inputs) - 2)


def _select_bridge(sign, op, gradient, *_):
  _, _, chosen, other = op.inputs
  return [gradient, sign * gradient * (chosen - other), None, None]


def _nearest_bridge(sign, op, gradient, *_):
  # Of several thresholds for a value, the nearest counts, since it is crossed first.
  _, values, thresholds = op.inputs
  axes = _spread(values, gradient)
  away = tf.abs(values - thresholds)
  nearest = away == tf.reduce_min(away, axes, keepdims=True)
  of_values = tf.reduce_sum(tf.where(nearest, gradient, 0.0), axes, keepdims=True)
  return [gradient, sign * of_values, None]


for _function in (_bridge, _select_bridge, _nearest_bridge):
  for _sign in (1, -1):  # whether the result of a comparison rises or falls with the value
    _name = f"Urkle{_function.__name__}{_sign}"
    tf.RegisterGradient(_name)(functools.partial(_function, float(_sign)))


class Graph:
  """A function images [n, h, w, c] -> float [n, classes], traced and inlined.

  Args:
    function: of one float32 tensor.
    image_shape: (height, width, channels).

  Attributes:
    output: the name of the output's tensor.
    seeded: whether `run`'s seed decides (some of) the function's own random numbers.
    bridged: types of the operations across which `run(..., bridged=True)` carries gradients.

  Raises:
    Exception: of any type, if TensorFlow cannot rewrite the function.
  """

  def __init__(self, function, image_shape):
    self._spec = tf.TensorSpec([None, *image_shape], tf.float32, name="images")
    self._concrete = tf.function(function, autograph=False).get_concrete_function(self._spec)
    definition = convert_to_constants._run_inline_graph_optimization(
      self._concrete, lower_control_flow=False, aggressive_inlining=False
    )
    self._compiled: dict[tuple, Callable] = {}
    self.output = self._concrete.outputs[0].name
    self._images = self._concrete.inputs[0].name
    self._nodes = {node.name: node for node in definition.node}
    self._on_path = self._between()
    self.seeded = self._seed(definition)
    for node in definition.node:
      # Custom gradients belong to another graph and cannot be called here.
      node.attr.pop("_gradient_op_type", None)
    self._plain = definition
    self._nodes = {node.name: node for node in definition.node}
    self._on_path = self._between()
    self._types = self._types_of(definition)
    self._crossing, self.bridged = self._add_bridges(definition)

  def run(self, tensor=None, bridged=False):
    """A function that computes a tensor of the graph.

    Args:
      tensor: its name; None for the output.
      bridged: whether gradients are carried across steps (straight-through).

    Returns:
      A function (images float32 [n, h, w, c], seed int32 [2] or None) -> the tensor.
    """
    key = (tensor or self.output, bridged)
    if key not in self._compiled:
      self._compiled[key] = self._imported(self._crossing if bridged else self._plain, key[0])
    compute = self._compiled[key]

    def run(images, seed=None):
      if seed is None:
        seed = distribution.fresh_seed()
      return compute(images, tf.cast(seed, tf.int32))

    return run

  def scores(self, classes, most=16):
    """Tensors that could be scores like the output, the nearest to it first.

    Args:
      classes: the size of the output's last axis.
      most: how many at most.

    Returns:
      Names of float tensors [n, classes] that depend on the images and that the output depends on,
      without the output itself.
    """
    found: list[str] = []
    seen, queue = {self.output.split(":")[0]}, collections.deque([self.output])
    while queue and len(found) < most:
      node = self._nodes[queue.popleft().split(":")[0]]
      for tensor in _inputs(node):
        name = tensor.split(":")[0]
        if name in seen or name not in self._on_path:
          continue
        seen.add(name)
        queue.append(tensor)
        if self._nodes[name].op not in _PASSING and self._is_like_output(tensor, classes):
          found.append(tensor)
    return found

  def _is_like_output(self, tensor, classes):
    found = self._types.get(_full(tensor))
    matrix = found is not None and found.dtype.is_floating and found.shape.rank == 2
    return matrix and found.shape[1] == classes

  def _node_of(self, tensor):
    return self._nodes.get(tensor.lstrip("^").split(":")[0])

  def _between(self):
    """Names of the nodes that depend on the images and that the output depends on."""
    self._needed = _reached(self.output, self._sources)
    readers = collections.defaultdict(list)
    for name in self._needed:
      for source in self._sources(name):
        if self._nodes[name].op not in _BLIND:
          readers[source].append(name)
    return _reached(self._images, readers.__getitem__) & self._needed

  def _sources(self, name):
    """Names of the nodes that a node reads."""
    names = (source.split(":")[0] for source in _inputs(self._nodes[name]))
    return [name for name in names if name in self._nodes]

  def _seed(self, definition):
    """Makes random operations read the seeds of `run`; returns whether there are any."""
    number = 0
    for node in list(definition.node):
      if node.name not in self._needed:
        continue
      place = f"urkle_seed_{number}"
      if node.op in _RANDOM:
        node.op = _RANDOM[node.op]
        node.input.insert(1, place)
        for name in [name for name in node.attr if name not in ("dtype", "T")]:
          del node.attr[name]
      elif node.op == "StatelessRandomGetKeyCounter" and self._reads_state(node.input[0]):
        node.input[0] = place
      else:
        continue
      node.attr["Tseed"].type = tf.int32.as_datatype_enum
      seed = definition.node.add()
      seed.name, seed.op = place, "Placeholder"
      seed.attr["dtype"].type = tf.int32.as_datatype_enum
      seed.attr["shape"].shape.dim.add().size = 2
      number += 1
    return number > 0

  def _reads_state(self, tensor):
    """Whether a tensor depends on a variable and not on the images."""
    found = _reached(tensor, self._sources)
    state = any(self._nodes[name].op == "ReadVariableOp" for name in found)
    return state and not found & self._on_path

  def _imported(self, definition, tensor):
    """A definition as a concrete function (images, seed) -> the tensor of that name."""
    concrete = self._concrete
    captures = list(zip(concrete.inputs[1:], concrete.captured_inputs, strict=True))
    names = {node.name for node in definition.node}
    seeds = [name for name in names if name.startswith("urkle_seed_")]

    def compute(images, seed):
      graph = tf.compat.v1.get_default_graph()
      given = {self._images: images}
      for inner, outer in captures:
        given[inner.name] = graph.capture(outer)
      for name in seeds:
        given[f"{name}:0"] = distribution.fold(seed, int(name.rsplit("_", 1)[1]))
      given = {name: value for name, value in given.items() if name.split(":")[0] in names}
      return tf.graph_util.import_graph_def(definition, given, [_full(tensor)], name=_PREFIX)[0]

    seed = tf.TensorSpec([2], tf.int32, name="seed")
    return tf.function(compute, autograph=False).get_concrete_function(self._spec, seed)

  def _types_of(self, definition):
    """{tensor: TensorSpec} of the graph, with the captured variables."""
    graph = self._imported(definition, self.output).graph
    types = {
      output.name.removeprefix(f"{_PREFIX}/"): tf.TensorSpec(output.shape, output.dtype)
      for operation in graph.get_operations()
      if operation.name.startswith(f"{_PREFIX}/")
      for output in operation.outputs
    }
    return types | {self._images: self._spec}

  def _add_bridges(self, definition):
    """(a copy with gradients across steps, names of what they cross)."""
    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(definition)
    crossed = set()
    bridges = {}
    for node in copy.node:
      if node.name not in self._on_path:
        continue
      if node.op in _STEPS and _inputs(node)[0].split(":")[0] in self._on_path:
        node.attr["_gradient_op_type"].s = b"UrkleStraightThrough"
        crossed.add(node.op)
      elif node.op == "FloorDiv" and self._types[f"{node.name}:0"].dtype.is_floating:
        node.attr["_gradient_op_type"].s = b"UrkleFloorDiv"
        crossed.add(node.op)
      elif found := self._bridge(node):
        bridges[node.name], names = found
        crossed |= names
    for node in copy.node:
      for i, source in enumerate(node.input):
        if source in bridges or (source.endswith(":0") and source[:-2] in bridges):
          node.input[i] = f"urkle_bridge_{source.split(':')[0]}"
    for name, (gradient, sources) in bridges.items():
      node = copy.node.add()
      node.name, node.op = f"urkle_bridge_{name}", "IdentityN"
      node.input.extend([name, *sources])
      for source in node.input:
        dtype = self._types[_full(source)].dtype.as_datatype_enum
        node.attr["T"].list.type.append(dtype)
      node.attr["_gradient_op_type"].s = gradient
    return copy, sorted(crossed)

  def _bridge(self, node):
    """The replacement for a node that turns integers or booleans back into floats.

    Returns:
      ((name of the gradient, further inputs), types of the crossed operations), if a float of the
      same shape went in; else None.
    """
    output = self._types.get(f"{node.name}:0")
    inputs = [source for source in _inputs(node) if source.split(":")[0] in self._on_path]
    if output is None or not output.dtype.is_floating or not inputs:
      return None
    if not all(_is_discrete(self._types[_full(source)].dtype) for source in inputs):
      return None  # its own gradient works
    select = node.op in ("Select", "SelectV2")
    queue, seen = collections.deque(inputs), set()
    while queue:
      tensor = queue.popleft()
      below = self._node_of(tensor)
      if below is None or below.name in seen or below.name not in self._on_path:
        continue
      seen.add(below.name)
      signs = _COMPARISONS.get(below.op, (1,) * len(below.input))
      for source, sign in zip(_inputs(below), signs, strict=False):
        if source.split(":")[0] not in self._on_path:
          continue
        there = self._types[_full(source)]
        if _is_discrete(there.dtype):
          queue.append(source)
        elif there.dtype == output.dtype and _same_shape(there, output):
          name = f"Urkle_select_bridge{sign}" if select else f"Urkle_bridge{sign}"
          values = _inputs(node)[1:] if select else []
          return (name.encode(), [source, *values]), {node.op, below.op}
        elif below.op in _COMPARISONS and node.op == "Cast" and _spread(there, output):
          (other,) = (name for name in _inputs(below) if name != source)
          name = f"Urkle_nearest_bridge{sign}"
          return (name.encode(), [source, other]), {node.op, below.op}
    return None


def _inputs(node):
  """Names of a node's data inputs."""
  return [name for name in node.input if not name.startswith("^")]


def _is_discrete(dtype):
  return dtype.is_integer or dtype.is_bool or dtype.is_quantized


def _reached(tensor, further):
  """The names of all nodes reached from a tensor's node, including it; `further` is one step."""
  found, stack = set(), [tensor.split(":")[0]]
  while stack:
    name = stack.pop()
    if name not in found:
      found.add(name)
      stack += further(name)
  return found


def _full(tensor):
  return tensor if ":" in tensor else f"{tensor}:0"


def _spread(one, other):
  """The axes along which `one` is broadcast to `other`; [] if it cannot be, or is not known."""
  if one.shape.rank is None or one.shape.rank != other.shape.rank:
    return []
  pairs = list(zip(one.shape[1:], other.shape[1:], strict=True))
  if None in other.shape[1:] or any(a not in (1, b) for a, b in pairs):
    return []
  return [axis + 1 for axis, (a, b) in enumerate(pairs) if a != b]


def _same_shape(one, other):
  known = one.shape.rank is not None and one.shape.rank == other.shape.rank
  return known and one.shape[1:] == other.shape[1:] and one.shape.is_compatible_with(other.shape)
