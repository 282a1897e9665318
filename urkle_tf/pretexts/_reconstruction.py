"""What a VAE and an autoencoder share: a decoder, and the view to reconstruct."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks.decoder import decoder as mirrored
from urkle_tf.networks.folding import fold
from urkle_tf.pretexts.base import Pretext, squared_distance


class Reconstruction(Pretext):
  """Decodes every z of a tuple into the clean view.

  Args:
    decoder: a Keras model, z float [n, d_z] -> logits of pixels [n, h, w, c]; None for the
      paper's decoder, which mirrors `convnet(width, layers)`.
    width: of the paper's decoder.
    layers: of the paper's decoder.
    name: the pretext's name.
  """

  views = 1
  exact = True
  predicts = True
  pictures = True
  loc = "dense"
  strength = {"beta": 1.0}

  def __init__(self, decoder, width, layers, name):
    super().__init__(name=name)
    self.decoder = decoder
    self._size = (width, layers)

  def attach(self, encoder):
    """Makes the decoder, or checks that the given one fits."""
    if self.decoder is None:
      self.decoder = mirrored(encoder.latent_dim, encoder.image_shape, *self._size)
    shapes = tuple(self.decoder.input_shape[1:]), tuple(self.decoder.output_shape[1:])
    wanted = (encoder.latent_dim,), tuple(encoder.image_shape)
    if shapes != wanted:
      raise errors.UserError(
        f"{self.name}: the decoder maps {list(shapes[0])} to {list(shapes[1])}, but the encoder "
        f"needs one from {list(wanted[0])} to {list(wanted[1])}"
      )

  def prepare(self, views, batch):
    """The clean view, float32 [n, h, w, c], into which adversaries are decoded too."""
    return views[:, 0]

  def decode(self, z, training):
    """Logits of pixels, float32 [m, h, w, c]."""
    return tf.cast(self.decoder(z, training=training), tf.float32)

  def predict(self, z, training=False):
    """The reconstruction in [0, 1], float32 [m, h, w, c]."""
    return tf.sigmoid(self.decode(z, training))

  def inference(self):
    """As `predict`, with the decoder's batch norms folded."""
    decoder = fold(self.decoder)
    return lambda z: tf.sigmoid(tf.cast(decoder(z), tf.float32))

  def divergence(self, prediction, other):
    """The squared difference of two reconstructions (eq. 36)."""
    return squared_distance(prediction, other)
