"""A regressor on a Gaussian representation: encoder, head, and how z is served."""

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

  def represent(self, images):
    """(loc, scale) of images, both float32 [n, d_z]."""
    outputs = self.network(images, training=False)
    return outputs["loc"], outputs["scale"]

  def deterministic(self, images):
    """The prediction at z = loc: [n, h, w, c] -> float32 [n, outputs]."""
    return self.head(self.represent(images)[0], training=False)

  def predictions(self, images, seed=None, samples=None):
    """The mean over samples of z of the head's predictions, 1/s sum_s f(loc + scale * noise_s).

    The mean is what minimises the expected squared error.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      seed: int32 [2] of the noise; None draws fresh noise.
      samples: how many z; None for as many as are served.  An int or an int32 scalar.

    Returns:
      float32 [n, outputs]; the prediction at z = loc where the regressor is deterministic.
    """
    return self.from_representation(*self.represent(images), seed=seed, samples=samples)

  def from_representation(self, loc, scale, seed=None, samples=None):
    """As `predictions`, from loc and scale, both float32 [n, d_z]."""
    if not self.stochastic:
      return self.head(loc, training=False)
    samples = self.samples if samples is None else samples
    shape = [tf.shape(loc)[0], samples, self.latent_dim]
    if seed is None:
      noise = tf.random.normal(shape)
    else:
      noise = tf.random.stateless_normal(shape, seed)
    z = loc[:, None] + scale[:, None] * noise  # [n, s, d_z]
    found = self.head(tf.reshape(z, [-1, self.latent_dim]), training=False)
    return tf.reduce_mean(tf.reshape(found, [-1, samples, found.shape[-1]]), 1)


class Regressor(_Predictions, keras.Model):
  """f(x) = E[f(z)] over z ~ Normal(loc(x), scale(x)): numbers predicted of images.

  Two regressors in one, as a `Classifier` is two classifiers: the sampled one and z = loc.

  Args:
    network: Keras model, images float32 [n, h, w, c] in [0, 1] -> {"loc", "scale"}, both
      [n, d_z].
    head: Keras model, z float32 [n, d_z] -> float32 [n, outputs], in the target's units.
    stochastic: whether z is sampled; False where training used no scale.
    samples: how many z a served prediction averages over.

  Attributes:
    image_shape: (height, width, channels).
    latent_dim: d_z.
    outputs: how many numbers an image has.
    target: what they are, or None.
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
    self.outputs = int(head.output_shape[-1])
    self.target, self.metadata = None, {}
    if network.output["loc"].shape[-1] != self.latent_dim:
      raise errors.UserError(
        f"the encoder's representation has {network.output['loc'].shape[-1]} dimensions, but the "
        f"head takes {self.latent_dim}"
      )
    if self.samples < 1:
      raise errors.UserError(f"samples must be at least 1, got {samples}")
    self.built = True

  def frozen(self):
    """The same with the weights as they are now and batch norms folded, for an attack's loop."""
    return Frozen(self)

  def call(self, images, training=None):
    """Served predictions: [n, h, w, c] -> float32 [n, outputs]."""
    del training
    return self.predictions(images)


class Frozen(_Predictions):
  """A regressor's predictions, faster and without its variables: see `Regressor.frozen`."""

  def __init__(self, regressor):
    self.network, self.head = fold(regressor.network), fold(regressor.head)
    self.stochastic, self.samples = regressor.stochastic, regressor.samples
    self.latent_dim, self.outputs = regressor.latent_dim, regressor.outputs
