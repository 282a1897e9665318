"""What classifiers and regressors on a Gaussian representation share."""

from collections.abc import Callable

import keras
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import representations
from urkle_tf.networks.folding import fold


class Predictions:
  """Predictions from network and head, which are models or functions with the same arguments.

  Attributes:
    network: images float32 [n, h, w, c] in [0, 1] -> {"loc", "scale"}, both [n, d_z].
    head: z float32 [n, d_z] -> float32 [n, outputs].
    stochastic: whether z is sampled; False if training used no scale, which then has no meaning.
    samples: how many z a served prediction averages over.
    latent_dim: d_z.
    outputs: how many numbers the head returns for an image.
  """

  network: Callable
  head: Callable
  stochastic: bool
  samples: int
  latent_dim: int
  outputs: int

  @property
  def modes(self):
    """The modes of this predictor, the served one first."""
    return ("sampled", "deterministic") if self.stochastic else ("deterministic",)

  def represent(self, images):
    """(loc, scale) of images, both float32 [n, d_z]."""
    outputs = self.network(representations.checked(images), training=False)
    return outputs["loc"], outputs["scale"]

  def noise(self, n, seed, samples):
    """Standard normal noise, float32 [n, samples, d_z]; see `from_representation`."""
    samples = self.samples if samples is None else samples
    if not tf.is_tensor(samples):
      errors.whole(1, "prediction", samples=samples)
    shape = [n, samples, self.latent_dim]
    if seed is None:
      return tf.random.normal(shape)
    return tf.random.stateless_normal(shape, distribution.checked(seed))

  def _each(self, loc, scale, noise):
    """The head's outputs at loc + scale * noise: float32 [n, samples, outputs]."""
    z = loc[:, None] + scale[:, None] * noise  # [n, s, d_z]
    found = self.head(tf.reshape(z, [-1, self.latent_dim]), training=False)
    return tf.reshape(found, [-1, tf.shape(noise)[1], found.shape[-1]])

  def _mean(self, loc, scale, seed, samples):
    """The mean over samples of z of the head's outputs; at z = loc if z is not sampled."""
    if not self.stochastic:
      return self.head(loc, training=False)
    return tf.reduce_mean(self._each(loc, scale, self.noise(tf.shape(loc)[0], seed, samples)), 1)


class Predictor(Predictions, keras.Model):
  """Encoder, head, and how z is served.

  A subclass names the class of `frozen()`, `Frozen`, and the attribute that says what its outputs
  are, `LABEL`.

  Args:
    network: Keras model, images float32 [n, h, w, c] in [0, 1] -> {"loc", "scale"}, both
      [n, d_z].
    head: Keras model, z float32 [n, d_z] -> float32 [n, outputs].
    stochastic: whether z is sampled.
    samples: how many z a served prediction averages over.

  Raises:
    UserError: if network and head do not fit each other, or `samples` is below 1.
  """

  def __init__(self, network, head, stochastic=True, samples=20, **kwargs):
    # As in `ExportedEncoder`: Keras would round the images to the policy's dtype.
    super().__init__(**{**kwargs, "dtype": "float32"})
    self.network, self.head = network, head
    self.stochastic, self.samples = bool(stochastic), int(samples)
    self.image_shape = tuple(network.input_shape[1:])
    self.latent_dim, self.outputs = int(head.input_shape[-1]), int(head.output_shape[-1])
    self.metadata = {}
    if network.output["loc"].shape[-1] != self.latent_dim:
      raise errors.UserError(
        f"the encoder's representation has {network.output['loc'].shape[-1]} dimensions, but the "
        f"head takes {self.latent_dim}: give a head for this encoder"
      )
    errors.at_least(1, type(self).__name__, samples=self.samples)
    self.built = True

  def frozen(self):
    """The same predictions, for an attack's loop: see `Frozen`."""
    return self.Frozen(self)

  def get_config(self):
    """The constructor's arguments and what was set since, so that `.keras` files can be read."""
    names = ("network", "head", "stochastic", "samples", "metadata", self.LABEL)
    parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}
    return {**super().get_config(), **parts}

  @classmethod
  def from_config(cls, config):
    parts = {name: keras.saving.deserialize_keras_object(part) for name, part in config.items()}
    kept = {name: parts.pop(name) for name in ("metadata", cls.LABEL)}
    model = cls(**parts)
    for name, value in kept.items():
      setattr(model, name, value)
    return model


class Frozen:
  """Predictions with the current weights and folded batch norms, for an attack's loop.

  Make it outside the loop, so that the loop is faster.

  Args:
    predictor: a `Predictor`.
  """

  def __init__(self, predictor):
    self.network, self.head = fold(predictor.network), fold(predictor.head)
    self.stochastic, self.samples = predictor.stochastic, predictor.samples
    self.latent_dim, self.outputs = predictor.latent_dim, predictor.outputs
