"""How far a network is from linear within the ball, which makes attacks of one step fail."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf.networks.kl import kl


def misalignment(encoder, images, threat, seed):
  """One minus the cosine of the KL's input gradient at a random point and at the image.

      c = d KL[p(z|x) || p(z|x + r)] / d (loc, scale)(x + r)          held constant
      1 - cos(J(x)^T c, J(x + r)^T c),   J the Jacobian of (loc, scale),  r a random start

  GradAlign (Andriushchenko and Flammarion, 2020, eq. 3) compares the gradients of a loss at x and
  at x + r.  The KL has no gradient at x.  But GradAlign measures whether the network is linear
  between the two points, and the Jacobians show that: J(x + r)^T c is the gradient that an attack
  starts with, and J(x)^T c is the gradient it would have if the network were linear.  That is our
  reading.

  Args:
    encoder: the `GaussianEncoder`, in inference mode.
    images: float32 [n, h, w, c].
    threat: the `ThreatModel` of the attack, which gives the random start.
    seed: int32 [2].

  Returns:
    float32 [n], in [0, 2]; 0 for a linear network.  Differentiable in the weights.
  """
  start = tf.stop_gradient(threat.random_start(images, seed))
  frozen, pulled = encoder.frozen(), []
  with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
    tape.watch([images, start])
    outputs = [frozen(images), frozen(start)]
    loc, scale = (tf.stop_gradient(part) for part in (outputs[1].loc, outputs[1].scale))
    with tf.GradientTape(watch_accessed_variables=False) as inner:
      inner.watch([loc, scale])
      clean = tfp.distributions.Normal(*map(tf.stop_gradient, (outputs[0].loc, outputs[0].scale)))
      value = tf.reduce_sum(kl(clean, tfp.distributions.Normal(loc, scale)))
    cotangents = inner.gradient(value, [loc, scale])
    for normal in outputs:
      parts = (normal.loc, normal.scale)
      pulled.append(tf.add_n([tf.reduce_sum(c * p) for c, p in zip(cotangents, parts)]))
  rows = [
    tf.reshape(tape.gradient(value, point), [tf.shape(images)[0], -1])
    for value, point in zip(pulled, (images, start))
  ]
  cosine = tf.reduce_sum(rows[0] * rows[1], 1) / (_length(rows[0]) * _length(rows[1]))
  return 1.0 - cosine


def _length(rows):
  # Not tf.norm, whose gradient at 0 is NaN.
  return tf.sqrt(tf.reduce_sum(tf.square(rows), 1) + 1e-24)
