"""Backbones, by the spec that names them."""

import pathlib

import keras

from urkle_tf import errors, spec
from urkle_tf.networks import foreign, keras_private, policies
from urkle_tf.networks.convnet import convnet
from urkle_tf.networks.resnet import resnet18, resnet50
from urkle_tf.networks.saved import foreign_models

BACKBONES = {"convnet": convnet, "resnet18": resnet18, "resnet50": resnet50}

# KerasHub's positions of DINOv2 and SAM 3: computed again from others when a model is read, so that
# training them is lost.
_RESAMPLED = "interpolated_position_embeddings", "tiled_position_embeddings"


def backbone(text, image_shape):
  """Builds a backbone from a spec such as `"resnet18(width=16)"`.

  Args:
    text: the spec; or a `.keras` file of any model, with its weights (`foreign.take`).
    image_shape: (height, width, channels), static.

  Returns:
    A functional Keras model: images float [n, h, w, c] -> features [n, f], or feature maps
    [n, h', w', f].

  Raises:
    UserError: for an unknown name or option, images that are too small, a model that cannot be
      used, or if Keras's default is channels_first.

  ```python
  backbone = urkle_tf.networks.backbone("resnet18(width=16)", (32, 32, 3))
  features = backbone(images)  # float32 [n, 128]
  ```
  """
  foreign.check_default()
  if text.endswith(".keras"):
    return _from_file(text, image_shape)
  return spec.call(BACKBONES, text, "encoder", image_shape=image_shape)


def _from_file(file, image_shape):
  """A model made elsewhere as a backbone, for the images in [-1, 1] of `GaussianEncoder`."""
  if not pathlib.Path(file).is_file():
    raise errors.UserError(
      f"no file {file!r}: give a .keras file, or one of {', '.join(BACKBONES)}"
    )
  model = foreign_models.read_keras(file, advice="")
  try:
    policies.follow_precision(model)
    policies.precise_attention(model)
    back = keras.layers.Rescaling(0.5, 0.5, dtype="float32", name="unit_range")
    taken = foreign.take(model, image_shape, back=back)
    _check_weights(taken)
  except Exception as error:  # layers raise many kinds for a shape that does not fit
    shape = "x".join(map(str, image_shape))
    raise errors.UserError(
      f"{file!r} cannot be a backbone for images of {shape}: {errors.reason(error)}"
    ) from error
  for layer in keras_private.layers(taken):  # setting it on a model that has it does nothing
    layer.trainable = True
  for variable in taken.variables:
    if variable.name in _RESAMPLED:
      variable.trainable = False
  return keras.Model(taken.input, taken.output, name="backbone")


def _check_weights(model):
  """Raises `UserError` if a model has weights of another precision than those of the heads."""
  for variable in model.variables:
    if variable.trainable and variable.dtype != "float32":
      raise errors.UserError(
        f"it has {variable.dtype} weights, which cannot be trained: build it with the dtype "
        "float32 or mixed_bfloat16, and copy the weights (set_weights)"
      )
