"""The deterministic autoencoder (Urkle paper, appendix B.1, eq. 35)."""

from urkle_tf.pretexts._reconstruction import Reconstruction
from urkle_tf.pretexts.base import squared_distance


class AE(Reconstruction):
  """Reconstructs an image from z = mu: ||x - h(g(x))||^2.

  Args:
    width: channels of the decoder that mirrors `convnet`; see `networks.decoder`.
    layers: transposed convolutions of that decoder.
    decoder: a Keras model to use instead, z float [n, d_z] -> logits of pixels [n, h, w, c].

  Raises:
    UserError: if the decoder does not fit the encoder, when the `Trainer` is made.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone, latent_dim=16, loc="dense")
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.AE(width=16))
  ```
  """

  samples = False
  terms = ("reconstruction",)

  def __init__(self, width=32, layers=4, decoder=None):
    super().__init__(decoder, width, layers, "ae")

  def loss(self, representations, aux, training=True):
    """{"reconstruction": [n]}, the mean over the members."""
    reconstruction = self.predict(representations.flat, training)
    error = squared_distance(reconstruction, representations.repeat(aux))
    return {"reconstruction": representations.mean(error)}
