"""Any encoder, from this package or not, as a function from images to embeddings."""

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks.pooled import pooled as pooled_features
from urkle_tf.networks.saved import exports, foreign_models

OWN = "urkle_tf"  # the format of encoders that this package exported


def read(path, pooled=False):
  """Reads an encoder.

  Args:
    path: the folder of an encoder that this package exported, or of a classifier or a regressor,
      whose encoder is read; or `preset:NAME`; or a `.keras` file or a SavedModel's folder of a
      model from images in [0, 1] to an embedding.
    pooled: whether to read the pooled features of an encoder of this package instead of loc.

  Returns:
    A `foreign_models.Loaded`, of format `OWN` if this package exported it.  A layer that holds it
    does not track its variables.

  Raises:
    UserError: if there is no such model.
  """
  if foreign_models.is_foreign(path):
    return foreign_models.load(path, foreign_models.EMBEDDING)
  encoder = exports.load_encoder(path)
  network = encoder.network
  part = pooled_features(network) if pooled else keras.Model(network.input, network.output["loc"])
  function = lambda images: part(images, training=False)  # noqa: E731
  return foreign_models.Loaded(
    function, encoder.image_shape, OWN, encoder.metadata["fingerprint"], path, network
  )


def rows(loaded):
  """The embeddings of an encoder, one row per image.

  Args:
    loaded: the result of `read`.

  Returns:
    A function of images float32 [n, h, w, c] in [0, 1] to float32 [n, d]; feature maps are
    averaged over space.
  """

  def embed(images):
    found = tf.cast(loaded.function(images), tf.float32)
    return tf.reduce_mean(found, [1, 2]) if found.shape.rank == 4 else found

  return embed


def output_shape(teacher, image_shape):
  """The shape of a teacher's embedding of one image, found by calling it.

  Args:
    teacher: a `foreign_models.Loaded`.
    image_shape: (height, width, channels).

  Returns:
    (d,), or (height, width, d) of feature maps.

  Raises:
    UserError: if that is not an embedding.
  """
  images = np.random.default_rng(0).uniform(size=(4, *image_shape)).astype(np.float32)
  found = foreign_models.call(teacher.function, images, teacher.path)
  shape, said = found.shape[1:], None
  errors.check_finite(found, f"the teacher {teacher.path!r}")
  if found.ndim not in (2, 4) or shape[-1] < 2:
    said = f"{'x'.join(map(str, shape)) or 'a single number'} per image"
  elif found.ndim == 2 and found.min() >= 0 and np.allclose(found.sum(1), 1, atol=1e-3):
    said = "probabilities"
  if said:
    raise errors.UserError(
      f"the teacher {teacher.path!r} returns {said}, not an embedding [n, d]: leave out its last "
      "layers, keras.Model(model.input, model.layers[-2].output)"
    )
  return shape
