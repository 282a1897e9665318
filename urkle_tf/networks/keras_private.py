"""The private parts of Keras that this package builds on: all of them, and here alone.

A Keras without one of them is refused when this is imported, in one line, and not in the middle
of a training or in silence.
"""

import keras

from urkle_tf import errors

WORKS = ">=3.15,<3.16"  # the versions with all of these parts; setup.py asks for the same

# (where, name) of each part.
_PARTS = (
  ("layers.Layer", "_flatten_layers"),
  ("layers.Layer", "_get_own_losses"),
  ("layers.Layer", "_clear_losses"),
  ("layers.Layer", "_assert_input_compatibility"),
  ("layers.BatchNormalization", "_moments"),
  ("Model", "_maybe_symbolic_build"),
  ("optimizers.Optimizer", "_all_reduce_sum_gradients"),
  ("optimizers.Optimizer", "_get_variable_index"),
  ("src.backend", "AutocastScope"),
  ("src.models.functional.Functional", "_run_through_graph"),
  ("src.models.functional.Functional", "_standardize_inputs"),
)


def check():
  """Raises `UserError` if this Keras lacks one of the parts."""
  for place, name in _PARTS:
    part = keras
    for step in (*place.split("."), name):
      part = getattr(part, step, None)
    if part is None:
      raise errors.UserError(
        f"Keras {keras.__version__} lacks keras.{place}.{name}, which urkle_tf builds on: install "
        f"a Keras that works, pip install 'keras{WORKS}'"
      )


check()

from keras.src import backend  # noqa: E402  (only of a Keras that has it)
from keras.src.models.functional import Functional  # noqa: E402


def layers(model, itself=True):
  """All layers of a model, those inside others too.

  Args:
    model: a Keras layer or model.
    itself: whether it is among them.
  """
  return list(model._flatten_layers(include_self=itself))


class OwnLosses(keras.layers.Layer):
  """A layer that keeps the losses it adds itself, instead of `add_loss`."""

  def own_losses(self):
    """The losses that were added since they were last forgotten, a list of scalars."""
    raise NotImplementedError

  def forget_losses(self):
    """Forgets them."""
    raise NotImplementedError

  def _get_own_losses(self):
    return self.own_losses()

  def _clear_losses(self):
    super()._clear_losses()
    self.forget_losses()


class Built(keras.Model):
  """A model that is built already.

  Keras would read a batch before it trains all the same, which fails on several workers.
  """

  def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Nothing is left to build."""


# --- Batch norms ---


def replace_moments(norm, function):
  """From now on a batch norm finds its moments with another function.

  Args:
    norm: a `keras.layers.BatchNormalization`.
    function: (inputs, mask) -> (mean, variance), both [channels].
  """
  norm._moments = function


def stock_moments(norm, inputs, mask):
  """The moments (mean, variance) as Keras finds them."""
  return type(norm)._moments(norm, inputs, mask)


def reduction_axes(norm):
  """The axes that a batch norm, which is built, averages over."""
  return norm._reduction_axes


# --- Optimizers ---


def take_whole_gradients(optimizer):
  """From now on the gradients that an optimizer is given are the sum over all replicas already.

  Keras would sum them over the replicas once more, which is as much to send again; and where it
  clips, it clips each replica's share before it sums them, which is another gradient.

  Args:
    optimizer: a Keras optimizer.
  """
  getattr(optimizer, "inner_optimizer", optimizer)._all_reduce_sum_gradients = list


def position(optimizer, variable):
  """The number of a variable among those that an optimizer was built for."""
  return optimizer._get_variable_index(variable)


# --- Graphs of functional models ---


def functional(model):
  """The functional model that a model is or stands for; None if it computes in another way."""
  if type(model) is keras.Sequential:
    return model._functional
  plain = isinstance(model, Functional) and type(model).call is Functional.call
  return model if plain else None


def nodes(model):
  """The nodes of a functional model's graph: each one use of an operation."""
  return [node for depth in model._nodes_by_depth.values() for node in depth]


def run(model, inputs, calls):
  """Runs a functional model's graph with other functions in the place of its operations.

  Args:
    model: a functional model.
    inputs: as the model takes them.
    calls: {id of an operation: the function that is called in its stead}.

  Returns:
    What the model does.
  """
  model._assert_input_compatibility(inputs)
  outputs = model._run_through_graph(
    model._standardize_inputs(inputs), operation_fn=lambda operation: calls[id(operation)]
  )
  return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs


def uncast():
  """A context in which variables are read in their own dtype, whatever the layer around."""
  return backend.AutocastScope(None)
