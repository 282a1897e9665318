"""The Keras files of an export: networks and heads, to train on."""

import pathlib

import keras
import tensorflow as tf
from absl import logging

from urkle_tf import errors
from urkle_tf.export import foreign_models, trust
from urkle_tf.networks import presets


def save(model, file):
  """Saves a Keras model and returns it as it was read back: what is checked is what is shipped.

  The copy also lives outside of any distribution strategy.
  """
  try:
    model.save(file)
    copy = keras.saving.load_model(file, compile=False, safe_mode=False)
  except (ValueError, TypeError, NotImplementedError) as error:
    reason = " ".join(str(error).split())[:300]
    raise errors.UserError(
      f"the model {model.name!r} cannot be saved and read back ({reason}); give its own classes "
      "get_config and register them with keras.saving.register_keras_serializable"
    ) from error
  if others := sorted({type(layer).__name__ for layer in _layers(copy) if not _stock(layer)}):
    logging.warning(
      "%s has layers that are not stock Keras (%s): loading it needs them; the SavedModel does not",
      file.name,
      ", ".join(others),
    )
  return copy


def _layers(model):
  return model._flatten_layers(include_self=False)


def _stock(layer):
  return type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)


def load_network(folder, metadata):
  """An export's network, images -> {"loc", "scale"}, which fits its metadata."""
  if presets.is_named(folder):
    return presets.encoder(folder).network
  gives = dict.fromkeys(("loc", "scale"), (None, metadata["latent_dim"]))
  return _load(folder, "network.keras", (None, *metadata["image_size"]), gives)


def load_head(folder, metadata, outputs):
  """An export's head, z -> [n, outputs], which fits its metadata."""
  if presets.is_named(folder):
    return presets.head(folder)
  return _load(folder, "head.keras", (None, metadata["latent_dim"]), (None, outputs))


def _load(folder, name, takes, gives):
  """Loads a Keras file of an export, whose input and outputs must have these shapes."""
  file = pathlib.Path(folder) / name
  if not file.is_file():
    raise errors.UserError(f"{str(folder)!r} lacks {name}: export again")
  try:
    model = keras.saving.load_model(file, compile=False, safe_mode=not trust.is_granted())
    shapes = lambda tensors: tf.nest.map_structure(lambda tensor: tuple(tensor.shape), tensors)  # noqa: E731
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    inputs, outputs = shapes(tf.nest.flatten(model.inputs)), shapes(output)
  except Exception as error:  # zip, HDF5 and Keras raise many kinds for a damaged file
    if foreign_models.is_code(error):
      raise errors.UserError(
        f"{str(file)!r} holds Python code (a Lambda layer), which is not run from a file: "
        + trust.HINT
      ) from error
    raise errors.UserError(f"cannot read {str(file)!r}: {foreign_models.reason(error)}") from error
  if (inputs, outputs) != ([takes], gives):
    raise errors.UserError(
      f"{str(file)!r} does not fit its metadata.json: it maps {inputs} to {outputs}, and not "
      f"{takes} to {gives}; export again"
    )
  return model
