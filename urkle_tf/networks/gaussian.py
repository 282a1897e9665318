"""The Gaussian encoder p(z|x) = Normal(loc(x), scale(x)) over any backbone."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import errors
from urkle_tf.networks import batch_norm, representations

tfd = tfp.distributions


def _scale_head(features, latent_dim, min_scale, max_scale):
  """softplus, floored at `min_scale` and smoothly capped at `max_scale`.

  tanh and not a clip: the KL pushes every scale upwards, and one that has run into a clip
  has no gradient to come back with.
  """
  raw = keras.layers.Dense(
    latent_dim, kernel_initializer="zeros", dtype="float32", name="raw_scale"
  )(features)
  room = max_scale - min_scale
  if room <= 0:  # a fixed scale; the head stays, so that the network's outputs keep their shapes
    return min_scale + 0.0 * raw
  return min_scale + room * keras.ops.tanh(keras.ops.softplus(raw) / room)


@keras.saving.register_keras_serializable("urkle_tf")
class GaussianEncoder(keras.Model):
  """An encoder whose call returns a diagonal `tfp.distributions.Normal`.

  loc is batch-normalised without a learnt scale, so each of its dimensions has unit spread
  over the data and `min_scale`, `max_scale` bound the noise *relative to the spread of loc*.
  An absolute cap alone constrains little: (loc, scale) -> (c loc, c scale) leaves every
  KL[p(z|x) || p(z|x')] as it is.

  Args:
    backbone: any Keras model from images [n, h, w, c] to features [n, f] or feature maps
      [n, h', w', f] (averaged over space).
    latent_dim: d_z, the dimension of z; at least 1.
    min_scale: the floor of scale, above 0, in units of the spread of loc.
    max_scale: the cap of scale; equal to `min_scale` for a fixed scale.
    preprocess: what the backbone expects of images in [0, 1]: a Keras layer or a function of
      Keras tensors; by default they are rescaled to [-1, 1].
    momentum: of the batch norm on loc.
    dual: whether there are two streams from the start; see `add_stream`.

  Attributes:
    network: the functional Keras model underneath, images float32 [n, h, w, c] in [0, 1] ->
      {"loc": [n, d_z], "scale": [n, d_z]}, both float32 under every precision policy.
    streams: {stream: network}; "adversarial" is `network`, and there may be "clean".

  Raises:
    UserError: if the backbone's image size is not static, or a bound is off; with `dual` also
      if its batch norms cannot be doubled.
  """

  def __init__(
    self,
    backbone,
    latent_dim=128,
    min_scale=0.1,
    max_scale=0.5,
    preprocess=None,
    momentum=0.9,
    dual=False,
    **kwargs,
  ):
    super().__init__(**kwargs)
    if not 0 < min_scale <= max_scale:
      raise errors.UserError(f"need 0 < min_scale <= max_scale, got {min_scale} and {max_scale}")
    if latent_dim < 1:
      raise errors.UserError(f"latent_dim must be at least 1, got {latent_dim}")
    image_shape = tuple(backbone.input_shape[1:])
    if len(image_shape) != 3 or None in image_shape:
      raise errors.UserError(
        f"the backbone's input must have a static (height, width, channels), got {image_shape}"
      )
    images = keras.Input(image_shape, name="images", dtype="float32")
    pixels = keras.layers.Rescaling(2.0, -1.0) if preprocess is None else preprocess
    features = backbone(pixels(images))
    if len(features.shape) == 4:
      features = keras.layers.GlobalAveragePooling2D(dtype="float32")(features)
    loc = keras.layers.Dense(latent_dim, use_bias=False, dtype="float32", name="raw_loc")(features)
    loc = keras.layers.BatchNormalization(
      scale=False,
      center=False,
      momentum=momentum,
      epsilon=1e-5,
      synchronized=True,
      dtype="float32",
      name="loc",
    )(loc)
    scale = _scale_head(features, latent_dim, min_scale, max_scale)
    scale = keras.layers.Identity(dtype="float32", name="scale")(scale)
    self.network = keras.Model(images, {"loc": loc, "scale": scale}, name="network")
    self.streams = {batch_norm.ADVERSARIAL: self.network}
    self.latent_dim = latent_dim
    self.image_shape = image_shape
    self._config = {
      "backbone": backbone,
      "latent_dim": latent_dim,
      "min_scale": min_scale,
      "max_scale": max_scale,
      "preprocess": preprocess,
      "momentum": momentum,
    }
    self.built = True
    if dual:
      self.add_stream()

  def add_stream(self):
    """Gives clean images batch norms of their own, which start as copies; once is enough.

    All other weights are shared, and `network` stays what it is: the network of adversarial
    images, and that of every use that does not say otherwise.
    """
    if batch_norm.CLEAN not in self.streams:
      self.streams[batch_norm.CLEAN] = batch_norm.twin(self.network)

  def call(self, images, training=None, stream=batch_norm.ADVERSARIAL):
    """Encodes images.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      training: whether batch norms use and update batch statistics.
      stream: whose batch norms: one of `streams`.

    Returns:
      A `tfp.distributions.Normal` of batch shape [n, d_z].
    """
    outputs = self.streams[stream](representations.checked(images), training=training)
    return tfd.Normal(outputs["loc"], outputs["scale"])

  def predict_step(self, data):
    """`predict` returns {"loc", "scale"} arrays: a Normal is no tensor."""
    images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    return self.network(images, training=False)

  def get_config(self):
    """The constructor's arguments, so that `.keras` files hold the whole encoder."""
    dual = batch_norm.CLEAN in self.streams
    config = dict(super().get_config(), **self._config, dual=dual)
    for key in ("backbone", "preprocess"):
      config[key] = keras.saving.serialize_keras_object(config[key])
    return config

  @classmethod
  def from_preset(cls, name):
    """An encoder with weights that come with the package; nothing is downloaded.

    Args:
      name: one of `urkle_tf.presets()`.

    Returns:
      The encoder, trainable, for images of the preset's size.

    Raises:
      UserError: if there is no such preset, or its file is damaged.
    """
    from urkle_tf.networks import presets  # Late: it builds on this module.

    return presets.encoder(name, cls)

  @classmethod
  def from_config(cls, config):
    for key in ("backbone", "preprocess"):
      config[key] = keras.saving.deserialize_keras_object(config[key])
    return cls(**config)


def kl(p, q):
  """KL[p || q] of diagonal Normals, in nats, summed over the last axis.

      sum_d log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2

  Args:
    p: `tfp.distributions.Normal` [..., d_z].
    q: likewise.

  Returns:
    float32 [...], at least 0.
  """
  return tf.reduce_sum(tfd.kl_divergence(p, q), -1)


def kl_mean_part(p, q):
  """The part of KL[p || q] that comes from the means: sum_d (m_p - m_q)^2 / (2 s_q^2).

  The rest, `kl(p, q) - kl_mean_part(p, q)`, is what the scales alone contribute.
  """
  return 0.5 * tf.reduce_sum(tf.square((p.loc - q.loc) / q.scale), -1)
