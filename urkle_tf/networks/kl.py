"""The KL divergence between representations: in closed form, as an objective, at its maximum."""

from typing import NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp


def kl(p, q):
  """KL[p || q] of diagonal Normals, in nats, summed over the last axis.

      sum_d log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2

  Args:
    p: `tfp.distributions.Normal` [..., d_z].
    q: a Normal of the same shape.

  Returns:
    float32 [...], at least 0.

  ```python
  clean, shifted = encoder(images), encoder(images[:, ::-1])
  nats = urkle_tf.networks.kl(clean, shifted)  # float32 [n]
  ```
  """
  return tf.reduce_sum(tfp.distributions.kl_divergence(p, q), -1)


def kl_mean_part(p, q):
  """The part of KL[p || q] that comes from the means: sum_d (m_p - m_q)^2 / (2 s_q^2).

  The rest, `kl(p, q) - kl_mean_part(p, q)`, is what the scales alone contribute.

  Args:
    p: `tfp.distributions.Normal` [..., d_z].
    q: a Normal of the same shape.

  Returns:
    float32 [...], in nats, at least 0.

  ```python
  clean, shifted = encoder(images), encoder(images[:, ::-1])
  of_means = urkle_tf.networks.kl_mean_part(clean, shifted)  # float32 [n]
  of_scales = urkle_tf.networks.kl(clean, shifted) - of_means
  ```
  """
  return 0.5 * tf.reduce_sum(tf.square((p.loc - q.loc) / q.scale), -1)


def kl_from(clean, represent):
  """KL[clean || represent(.)], as a function to maximise.

  Args:
    clean: the Normal [n, d_z] of the clean images, held constant.
    represent: images -> Normal [n, d_z], in inference mode.

  Returns:
    A function from images [n, h, w, c] to float32 [n], in nats.  At the clean images it and its
    gradient are zero, so an attack has to start elsewhere.
  """
  clean = type(clean)(tf.stop_gradient(clean.loc), tf.stop_gradient(clean.scale))
  return lambda neighbours: kl(clean, represent(neighbours))


def kl_objective(encoder, images):
  """KL[p(z|images) || p(z|.)] as a function to maximise; see `kl_from`.

  Batch norms run in inference mode, since an attack must neither see nor move batch statistics.
  They are folded here, once, with the current weights: call this again after the weights change.

  Args:
    encoder: a `GaussianEncoder` or an `ExportedEncoder`.
    images: float32 [n, h, w, c], the clean images.
  """
  represent = encoder.frozen()
  return kl_from(represent(images), represent)


class Worst(NamedTuple):
  """The worst neighbours of images, and an encoder's Normals of both in inference mode.

  Attributes:
    neighbours: float32 [n, h, w, c].
    clean: the Normal [n, d_z] of the images.
    attacked: the Normal [n, d_z] of their neighbours.
  """

  neighbours: tf.Tensor
  clean: tfp.distributions.Normal
  attacked: tfp.distributions.Normal

  @property
  def kl(self):
    """KL[clean || attacked], float32 [n], in nats."""
    return kl(self.clean, self.attacked)


def worst(encoder, images, attack, seed=None):
  """Searches for argmax over x' in A(x) of KL[p(z|x) || p(z|x')] (Urkle paper, eq. 4).

  Args:
    encoder: a `GaussianEncoder` or an `ExportedEncoder`.
    images: float32 [n, h, w, c] in [0, 1].
    attack: for example `attacks.PGD(attacks.Linf(epsilon=8 / 255), steps=7)`.
    seed: int32 [2] of the attack's random start; None draws one.

  Returns:
    A `Worst`.
  """
  neighbours = attack(kl_objective(encoder, images), images, seed)
  return Worst(neighbours, encoder(images, training=False), encoder(neighbours, training=False))
