"""Writes the Keras files of an export, networks and heads, for further training."""

import keras
from absl import logging

from urkle_tf import errors
from urkle_tf.networks import keras_private


def save(model, file):
  """Saves a Keras model, and returns it as read back.

  So what is checked is what is exported, and the copy is outside of any distribution strategy.
  """
  try:
    model.save(file)
    copy = keras.saving.load_model(file, compile=False, safe_mode=False)
  except (ValueError, TypeError, NotImplementedError) as error:
    raise errors.UserError(
      f"{model.name!r} cannot be saved and read back ({errors.reason(error)}): give its own "
      "classes get_config and keras.saving.register_keras_serializable"
    ) from error
  if others := sorted(
    {
      type(layer).__name__
      for layer in keras_private.layers(copy, itself=False)
      if not _stock(layer)
    }
  ):
    logging.warning(
      "%s has layers that are not stock Keras (%s): loading it needs their code; the SavedModel "
      "does not",
      file.name,
      ", ".join(others),
    )
  return copy


def _stock(layer):
  return type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)
