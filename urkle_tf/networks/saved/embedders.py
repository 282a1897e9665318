"""Any encoder, from this package or not, as a function from images to embeddings."""

import keras
import tensorflow as tf

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
