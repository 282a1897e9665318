"""A classifier on a Gaussian representation: encoder, head, and how z is served."""

from collections.abc import Callable

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks.folding import fold


class _Predictions:
  """What follows from network and head, be they models or functions of the same arguments."""

  network: Callable
  head: Callable
  stochastic: bool
  samples: int
  latent_dim: int
  classes: int

  @property
  def modes(self):
    """The classifiers that this is, the served one first."""
    return ("sampled", "deterministic") if self.stochastic else ("deterministic",)

  def represent(self, images):
    """(loc, scale) of images, both float32 [n, d_z]."""
    outputs = self.network(images, training=False)
    return outputs["loc"], outputs["scale"]

  def logits(self, images):
    """The head's logits at z = loc: [n, h, w, c] -> float32 [n, classes]."""
    return self.head(self.represent(images)[0], training=False)

  def log_probabilities(self, images, seed=None, samples=None):
    """The log of the mean over samples of z of the head's softmax.

        log 1/s sum_s p(y | loc + scale * noise_s)

    by log-mean-exp of log-softmaxes, so that nothing is clipped or capped.  Differentiable in
    the images through loc and scale.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      seed: int32 [2] of the noise; None draws fresh noise.
      samples: how many z; None for as many as are served.  An int or an int32 scalar.

    Returns:
      float32 [n, classes]; the log-softmax at z = loc where the classifier is deterministic.
    """
    return self.from_representation(*self.represent(images), seed=seed, samples=samples)

  def from_representation(self, loc, scale, seed=None, samples=None):
    """As `log_probabilities`, from loc and scale, both float32 [n, d_z]."""
    if not self.stochastic:
      return tf.nn.log_softmax(self.head(loc, training=False))
    samples = self.samples if samples is None else samples
    shape = [tf.shape(loc)[0], samples, self.latent_dim]
    if seed is None:
      noise = tf.random.normal(shape)
    else:
      noise = tf.random.stateless_normal(shape, seed)
    return self.from_noise(loc, scale, noise)

  def from_shared_noise(self, loc, scale, seed, samples):
    """As `from_representation`, with the same noise for every image."""
    noise = tf.random.stateless_normal([1, samples, self.latent_dim], seed)
    return self.from_noise(loc, scale, noise)

  def from_noise(self, loc, scale, noise):
    """As `log_probabilities`, with standard normal noise [n or 1, samples, d_z] as given."""
    each = self.each_from_noise(loc, scale, noise)
    samples = tf.cast(tf.shape(noise)[1], tf.float32)
    return tf.reduce_logsumexp(each, axis=1) - tf.math.log(samples)

  def each_from_noise(self, loc, scale, noise):
    """As `from_noise`, before the mean over samples: float32 [n, samples, classes]."""
    z = loc[:, None] + scale[:, None] * noise  # [n, s, d_z]
    logits = self.head(tf.reshape(z, [-1, self.latent_dim]), training=False)
    return tf.reshape(tf.nn.log_softmax(logits), [-1, tf.shape(noise)[1], self.classes])


class Classifier(_Predictions, keras.Model):
  """p(y|x) = E[p(y|z)] over z ~ Normal(loc(x), scale(x)) (Urkle paper, eq. 1).

  Two classifiers in one: the sampled one, whose probabilities are means over samples of z,
  and the deterministic one, z = loc.  Everything runs in inference mode.

  Args:
    network: Keras model, images float32 [n, h, w, c] in [0, 1] -> {"loc", "scale"}, both
      [n, d_z].
    head: Keras model, z float32 [n, d_z] -> logits float32 [n, classes].
    stochastic: whether z is sampled; False where training used no scale, which then means
      nothing.
    samples: how many z a served prediction averages over.

  Attributes:
    image_shape: (height, width, channels).
    latent_dim: d_z.
    classes: how many there are.
    class_names: their names, or None.
    metadata: what the export says of it, or {}.

  Raises:
    UserError: if network and head do not fit.
  """

  def __init__(self, network, head, stochastic=True, samples=20, **kwargs):
    super().__init__(**kwargs)
    self.network, self.head = network, head
    self.stochastic, self.samples = bool(stochastic), int(samples)
    self.image_shape = tuple(network.input_shape[1:])
    self.latent_dim = int(head.input_shape[-1])
    self.classes = int(head.output_shape[-1])
    self.class_names, self.metadata = None, {}
    if network.output["loc"].shape[-1] != self.latent_dim:
      raise errors.UserError(
        f"the encoder's representation has {network.output['loc'].shape[-1]} dimensions, but the "
        f"head takes {self.latent_dim}"
      )
    if self.samples < 1:
      raise errors.UserError(f"samples must be at least 1, got {samples}")
    self.built = True

  def frozen(self):
    """The same predictions with the weights as they are now and batch norms folded.

    For attacks, whose loops are faster with it; call this outside of the loop.

    Returns:
      A `Frozen`.
    """
    return Frozen(self)

  def call(self, images, training=None):
    """Served probabilities: [n, h, w, c] -> float32 [n, classes]."""
    del training
    return tf.exp(self.log_probabilities(images))


class Frozen(_Predictions):
  """A classifier's predictions, faster and without its variables: see `Classifier.frozen`."""

  def __init__(self, classifier):
    self.network, self.head = fold(classifier.network), fold(classifier.head)
    self.stochastic, self.samples = classifier.stochastic, classifier.samples
    self.latent_dim, self.classes = classifier.latent_dim, classifier.classes
