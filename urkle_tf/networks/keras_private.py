"""All private parts of Keras that this package uses; no other module uses any.

If Keras lacks one of them, importing this module fails with one line.  Otherwise a training would
fail later, or silently.
"""

import contextlib
import functools

import keras

from urkle_tf import errors

WORKS = ">=3.15,<3.16"  # the versions with all of these parts; setup.py asks for the same

_LAYER = "_flatten_layers _get_own_losses _clear_losses _assert_input_compatibility _losses"
_NAMES = {
  "layers.Layer": _LAYER,
  "layers.BatchNormalization": "_moments",
  "layers.MultiHeadAttention": "_compute_attention",
  "Model": "_maybe_symbolic_build",
  "optimizers.Optimizer": "_all_reduce_sum_gradients _get_variable_index _use_weight_decay",
  "src.backend": "AutocastScope",
  "src.models.functional.Functional": "_run_through_graph _standardize_inputs",
}
_PARTS = [(place, name) for place, names in _NAMES.items() for name in names.split()]


def check():
  """Raises `UserError` if this Keras lacks one of the parts, or does not run on TensorFlow."""
  if keras.config.backend() != "tensorflow":
    raise errors.UserError(
      f"urkle_tf needs Keras on TensorFlow, but here it runs on {keras.config.backend()}: set "
      "KERAS_BACKEND=tensorflow before Python starts, or change ~/.keras/keras.json"
    )
  for place, name in _PARTS:
    part = keras
    for step in place.split("."):
      part = getattr(part, step, None)
    if part is keras.layers.Layer:
      part = part()  # its losses are an instance's
    if not hasattr(part, name):
      raise errors.UserError(
        f"Keras {keras.__version__} lacks keras.{place}.{name}, which urkle_tf needs: install a "
        f"version that has it, pip install 'keras{WORKS}'"
      )


check()

from keras.src import backend  # noqa: E402  (only of a Keras that has it)
from keras.src.models.functional import Functional  # noqa: E402


def layers(model, itself=True):
  """All layers of a model, including nested ones.

  Args:
    model: a Keras layer or model.
    itself: whether to include the model.
  """
  return list(model._flatten_layers(include_self=itself))


def children(layer):
  """The direct children of a layer or model, in order."""
  return list(layer._flatten_layers(include_self=False, recursive=False))


class OwnLosses(keras.layers.Layer):
  """A layer that stores its losses itself, instead of with `add_loss`."""

  def own_losses(self):
    """The losses added since the last `forget_losses`, a list of scalars."""
    raise NotImplementedError

  def forget_losses(self):
    """Forgets them."""
    raise NotImplementedError

  def _get_own_losses(self):
    return self.own_losses()

  def _clear_losses(self):
    super()._clear_losses()
    self.forget_losses()


@contextlib.contextmanager
def losses_kept(layer):
  """A context in which calls change nothing about the losses of a layer and of those in it.

  Args:
    layer: a Keras layer or model; nothing happens for another callable.
  """
  parts = layers(layer) if isinstance(layer, keras.Layer) else []
  before = [list(part._losses) for part in parts]
  yield
  for part, losses in zip(parts, before, strict=True):
    part._losses[:] = losses


class Built(keras.Model):
  """A model that is built already.

  Otherwise Keras reads a batch before it trains, which fails on several workers.
  """

  def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Nothing is left to build."""


# --- Batch norms ---


def replace_moments(norm, function):
  """Makes a batch norm compute its moments with another function from now on.

  Args:
    norm: a `keras.layers.BatchNormalization`.
    function: (inputs, mask) -> (mean, variance), both [channels].
  """
  norm._moments = function


def stock_moments(norm, inputs, mask):
  """The moments (mean, variance) as Keras computes them."""
  return type(norm)._moments(norm, inputs, mask)


def moments(norm, inputs):
  """The moments (mean, variance) of a training pass, over all replicas."""
  return norm._moments(inputs, None)


def reduction_axes(norm):
  """The axes that a built batch norm averages over."""
  return norm._reduction_axes


# --- Attention ---


def replace_attention(layer, around):
  """Makes a layer compute its attention within another function from now on.

  Args:
    layer: a `keras.layers.MultiHeadAttention`.
    around: (compute, query, key, value, *args, **kwargs) -> what compute(query, key, value, ...)
      returns, (outputs, scores).
  """
  layer._compute_attention = functools.partial(around, layer._compute_attention)


def attention_parts(layer):
  """The layers that a `keras.layers.MultiHeadAttention` uses between its projections."""
  return [part for part in (layer._softmax, getattr(layer, "_dropout_layer", None)) if part]


# --- Optimizers ---


def take_whole_gradients(optimizer):
  """Marks the gradients that an optimizer gets as summed over all replicas already.

  Otherwise Keras would sum them over the replicas once more, which doubles the communication, and
  would clip each replica's share before the sum, which gives a different gradient.

  Args:
    optimizer: a Keras optimizer.
  """
  optimizer._all_reduce_sum_gradients = list


def decays(optimizer, variable):
  """Whether an optimizer's weight decay applies to a variable."""
  return optimizer._use_weight_decay(variable)


def position(optimizer, variable):
  """The position of a variable among those that an optimizer was built for."""
  return optimizer._get_variable_index(variable)


# --- Graphs of functional models ---


def functional(model):
  """The functional model that a model is or wraps; None if it computes in another way."""
  if type(model) is keras.Sequential:
    return model._functional
  plain = isinstance(model, Functional) and type(model).call is Functional.call
  return model if plain else None


def nodes(model):
  """The nodes of a functional model's graph, in order: each one use of an operation."""
  depths = sorted(model._nodes_by_depth, reverse=True)
  return [node for depth in depths for node in model._nodes_by_depth[depth]]


def run(model, inputs, calls):
  """Runs a functional model's graph with other functions instead of some operations.

  Args:
    model: a functional model.
    inputs: the model's inputs.
    calls: {id of an operation: the function to call instead}.

  Returns:
    The model's outputs.
  """
  outputs = model._run_through_graph(
    standardised(model, inputs), operation_fn=lambda operation: calls[id(operation)]
  )
  return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs


def standardised(model, inputs):
  """The input tensors of a functional model, a list, as it takes them."""
  model._assert_input_compatibility(inputs)
  return model._standardize_inputs(inputs)


def run_nodes(nodes, tensor, value, calls):
  """Runs some nodes of a functional model's graph.

  Args:
    nodes: the nodes in order; each reads `tensor` or the results of nodes before it.
    tensor: a symbolic tensor of the graph.
    value: the value of that tensor.
    calls: as in `run`.

  Returns:
    {id of a symbolic tensor: its value}.
  """
  values = {id(tensor): value}
  for node in nodes:
    args, kwargs = node.arguments.fill_in(values)
    found = keras.tree.flatten(calls[id(node.operation)](*args, **kwargs))
    values |= {id(output): given for output, given in zip(node.outputs, found, strict=True)}
  return values


def uncast():
  """A context in which variables are read in their own dtype, in any layer."""
  return backend.AutocastScope(None)


def cast_of(layer):
  """A context in which variables are read as a layer's call reads them."""
  low = layer.autocast and layer.compute_dtype != layer.variable_dtype
  return backend.AutocastScope(layer.compute_dtype if low else None)
