"""The KL from the Gaussian of a frozen original: KL[p0(z|x) || p(z|x')]."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf.networks.kl import kl_from


def original(encoder, embeddings):
  """p0(z|x), the Gaussian around the original's embedding, with the encoder's smallest sigma.

  If the encoder's sigma is fixed at s, both have this sigma, and

      KL[p0(z|x) || p(z|x')] = |f(x') - f0(x)|^2 / (2 s^2),

  the objective of FARE (Schlarmann et al., 2024) up to the factor 1 / (2 s^2).  If sigma is learnt,
  the KL is smallest at sigma^2 = s0^2 + (f(x') - f0(x))^2, with s0 the sigma of p0.  So sigma alone
  cannot make the KL small.

  Args:
    encoder: a `GaussianEncoder`.
    embeddings: f0(x), float32 [..., d_z].

  Returns:
    A `tfp.distributions.Normal`, through which no gradient flows.
  """
  embeddings = tf.stop_gradient(embeddings)
  scale = tf.stop_gradient(encoder.min_scale * encoder.spread)
  return tfp.distributions.Normal(embeddings, scale * tf.ones_like(embeddings))


def objective(encoder, embeddings):
  """KL[p0(z|x) || p(z|.)] as a function to maximise, in inference mode.

  Args:
    encoder: a `GaussianEncoder`.
    embeddings: f0 of the clean images, float32 [m, d_z].

  Returns:
    A function of images float32 [m, h, w, c] to float32 [m], in nats.
  """
  return kl_from(original(encoder, embeddings), encoder.frozen())
