"""The variational autoencoder (Kingma and Welling, 2014; Urkle paper, eq. 5 and 6)."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import errors
from urkle_tf.networks.kl import kl
from urkle_tf.pretexts._reconstruction import Reconstruction
from urkle_tf.pretexts.base import squared_distance


class VAE(Reconstruction):
  """Reconstructs an image from one sampled z, near a standard normal prior.

      E_{p(z|x)}[-log p(x|z)] + beta KL[p(z|x) || N(0, 1)]

  -log p(x|z), without its constant, is ||x - x^||^2 / (2 deviation^2) for the Gaussian decoder and
  the sum of the pixels' binary cross-entropies for the Bernoulli one.  If adversaries join the
  tuple, they are decoded into the clean image.

  Args:
    beta: the weight of the KL to the prior, in nats, at least 0; 0 in the Urkle paper's Table 1.
    likelihood: "gaussian" or "bernoulli".
    deviation: the Gaussian decoder's standard deviation of a pixel, above 0.
    width: channels of the decoder that mirrors `convnet`; see `networks.decoder`.
    layers: transposed convolutions of that decoder.
    decoder: a Keras model to use instead, z float [n, d_z] -> logits of pixels [n, h, w, c].

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone, latent_dim=16, loc="dense")
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.VAE(beta=1.0, likelihood="bernoulli"))
  ```
  """

  stochastic = True
  positives = True
  terms = ("reconstruction", "prior_kl")

  def __init__(
    self, beta=0.0, likelihood="gaussian", deviation=1.0, width=32, layers=4, decoder=None
  ):
    super().__init__(decoder, width, layers, "vae")
    errors.at_least(0, "vae", beta=beta)
    errors.above(0, "vae", deviation=deviation)
    errors.one_of("likelihood", likelihood, ("gaussian", "bernoulli"))
    self.beta, self.likelihood, self.deviation = beta, likelihood, deviation

  def loss(self, representations, aux, training=True):
    """{"reconstruction": [n], "prior_kl": [n]}, means over the members; the second times beta."""
    images = representations.repeat(aux)
    logits = self.decode(representations.flat, training)
    if self.likelihood == "gaussian":
      error = squared_distance(tf.sigmoid(logits), images)
      error /= 2 * self.deviation**2
    else:
      pixels = tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits)
      error = tf.reduce_sum(pixels, [1, 2, 3])
    normal = representations.normal
    prior = tfp.distributions.Normal(tf.zeros_like(normal.loc), tf.ones_like(normal.scale))
    return {
      "reconstruction": representations.mean(error),
      "prior_kl": self.beta * tf.reduce_mean(kl(normal, prior), 1),
    }
