"""The Urkle regulariser on its own, for any training loop."""

import tensorflow as tf

from urkle_tf.networks.gaussian import kl
from urkle_tf.robustness.urkle import kl_objective


def kl_robustness(encoder, images, attack, seed=None, training=False):
  """Max over x' in A(x) of KL[p(z|x) || p(z|x')] for each image (Urkle paper, eq. 4 and 10).

  Differentiable in the encoder's weights, through both distributions; add its mean, times
  beta, to any loss.

  Args:
    encoder: images -> `tfp.distributions.Normal` [n, d_z]; takes `training`.
    images: float32 [n, h, w, c] in [0, 1].
    attack: for example `attacks.PGD(attacks.Linf(epsilon=8 / 255), steps=7)`.
    seed: int32 [2] of the attack's random start; None draws one.
    training: the mode of the two passes that are differentiated; the attack itself always
      runs in inference mode.

  Returns:
    float32 [n], in nats.
  """
  adversaries = attack(kl_objective(encoder, images), images, seed)
  both = encoder(tf.concat([images, adversaries], 0), training=training)
  loc, scale = tf.split(both.loc, 2), tf.split(both.scale, 2)
  return kl(type(both)(loc[0], scale[0]), type(both)(loc[1], scale[1]))
