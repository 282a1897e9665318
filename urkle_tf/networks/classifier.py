"""A classifier on a Gaussian representation: probabilities of classes."""

import keras
import tensorflow as tf

from urkle_tf.networks import predictor


class _Predictions(predictor.Predictions):
  """Predictions from network and head."""

  @property
  def classes(self):
    """How many classes there are."""
    return self.outputs

  def logits(self, images):
    """The head's logits at z = loc: [n, h, w, c] -> float32 [n, classes]."""
    return self.head(self.represent(images)[0], training=False)

  def log_probabilities(self, images, seed=None, samples=None):
    """The log of the mean over samples of z of the head's softmax.

        log 1/s sum_s p(y | loc + scale * noise_s)

    by log-mean-exp of log-softmaxes, so that nothing is clipped or capped.  It is differentiable in
    the images through loc and scale.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      seed: int32 [2] of the noise; None draws fresh noise.
      samples: the number of z, an int or an int32 scalar; None for `self.samples`.

    Returns:
      float32 [n, classes]; the log-softmax at z = loc if the classifier is deterministic.
    """
    return self.from_representation(*self.represent(images), seed=seed, samples=samples)

  def from_representation(self, loc, scale, seed=None, samples=None):
    """As `log_probabilities`, from loc and scale, both float32 [n, d_z]."""
    if not self.stochastic:
      return tf.nn.log_softmax(self.head(loc, training=False))
    return self.from_noise(loc, scale, self.noise(tf.shape(loc)[0], seed, samples))

  def mean_logits(self, loc, scale, seed=None, samples=None):
    """The mean over samples of z of the head's logits; arguments as in `from_representation`."""
    return self._mean(loc, scale, seed, samples)

  def from_shared_noise(self, loc, scale, seed, samples):
    """As `from_representation`, with the same noise for every image."""
    return self.from_noise(loc, scale, self.noise(1, seed, samples))

  def from_noise(self, loc, scale, noise):
    """As `log_probabilities`, with given standard normal noise [n or 1, samples, d_z]."""
    each = self.each_from_noise(loc, scale, noise)
    samples = tf.cast(tf.shape(noise)[1], tf.float32)
    return tf.reduce_logsumexp(each, axis=1) - tf.math.log(samples)

  def each_from_noise(self, loc, scale, noise):
    """As `from_noise`, before the mean over samples: float32 [n, samples, classes]."""
    return tf.nn.log_softmax(self._each(loc, scale, noise))


class _Frozen(predictor.Frozen, _Predictions):
  """See `predictor.Frozen`."""


@keras.saving.register_keras_serializable("urkle_tf")
class Classifier(_Predictions, predictor.Predictor):
  """p(y|x) = E[p(y|z)] over z ~ Normal(loc(x), scale(x)) (Urkle paper, eq. 1).

  It is two classifiers in one: the sampled one, whose probabilities are means over samples of z,
  and the deterministic one, with z = loc.  Everything runs in inference mode.  Arguments and errors
  are those of `Predictor`; the head returns logits.

  Attributes:
    image_shape: (height, width, channels).
    latent_dim: d_z.
    classes: the number of classes.
    class_names: their names, or None.
    metadata: the export's metadata, or {}.
  """

  Frozen, LABEL = _Frozen, "class_names"
  class_names: list[str] | None = None

  def call(self, images, training=None):
    """Served probabilities: [n, h, w, c] -> float32 [n, classes]."""
    return tf.exp(self.log_probabilities(images))
