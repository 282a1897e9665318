"""The Gaussian encoder p(z|x) = Normal(loc(x), scale(x)) over any backbone."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import distribution, errors
from urkle_tf.networks import batch_norm, foreign, pixels, presets, representations
from urkle_tf.networks.encoders import Encoder
from urkle_tf.networks.pooled import below_heads, pooled

# Where loc lies: see `GaussianEncoder`.
LOCS = ("sphere", "centred_sphere", "pooled", "dense", "dense_sphere")
# The layers around the backbone, which are found by their names.
_AROUND = ("images", "raw_loc", "centred", "spread", "loc", "raw_scale", "scale")
_SHORTEST = 1e-6  # features below this length are not brought to length sqrt(d)


def _sphere(features):
  """sqrt(d) x / max(|x|, 1e-6): length sqrt(d), a root mean square of 1 a dimension."""
  squares = keras.ops.sum(keras.ops.square(features), axis=-1, keepdims=True)
  length = keras.ops.sqrt(keras.ops.maximum(squares, _SHORTEST**2))  # no gradient of |x| at 0
  return features * (features.shape[-1] ** 0.5 / length)


def _image_shape(backbone):
  """(height, width, channels) of a backbone's images.

  Raises:
    UserError: if they are not known, or the images are not floats.
  """
  shape = getattr(backbone, "input_shape", None)
  image_shape = tuple(shape[1:]) if isinstance(shape, tuple) else ()
  if len(image_shape) != 3 or None in image_shape:
    raise errors.UserError(
      f"the backbone's input must have a static (height, width, channels), got {image_shape}: give "
      "a functional model, keras.Model(images, backbone(images)) of images = keras.Input(...)"
    )
  foreign.check_name(backbone, _AROUND)
  foreign.check_dtype(backbone.name, backbone.inputs[0].dtype)
  return image_shape


def _norm(name, momentum):
  return batch_norm.norm(name, momentum, scale=False, center=False, dtype="float32")


def _loc_head(features, loc, latent_dim, momentum):
  """(loc, its spread, which is None if it is 1 per dimension by construction)."""
  if loc.startswith("dense"):
    features = keras.layers.Dense(latent_dim, use_bias=False, dtype="float32", name="raw_loc")(
      features
    )
  if loc == "dense":
    return _norm("loc", momentum)(features), None
  features = keras.ops.cast(features, "float32")
  if loc == "centred_sphere":
    features = _norm("centred", momentum)(features)
  if loc != "pooled":
    return keras.layers.Identity(dtype="float32", name="loc")(_sphere(features)), None
  # `GaussianEncoder.call` moves this weight.  It is in a stock layer, so exports hold it.
  spread = keras.layers.Dense(
    1, use_bias=False, kernel_initializer="ones", trainable=False, dtype="float32", name="spread"
  )(keras.ops.ones_like(features[:, :1]))
  features = keras.layers.Identity(dtype="float32", name="loc")(features)
  return features, keras.ops.stop_gradient(spread)


def _scale_head(features, latent_dim, min_scale, max_scale):
  """softplus, floored at `min_scale` and smoothly capped at `max_scale`.

  It uses tanh instead of a clip: the KL pushes every scale upwards, and a clipped scale would have
  no gradient to come back.
  """
  raw = keras.layers.Dense(
    latent_dim, kernel_initializer="zeros", dtype="float32", name="raw_scale"
  )(features)
  room = max_scale - min_scale
  if room <= 0:  # a fixed scale; the head stays, so the network's outputs keep their shapes
    return min_scale + 0.0 * raw
  return min_scale + room * keras.ops.tanh(keras.ops.softplus(raw) / room)


def _parts(network):
  """The variables of a network's backbone, a list, and of its other layers, by name."""
  backbone, beside = [], {}
  for layer in network.layers:
    if isinstance(layer, keras.Model):
      backbone += layer.variables
    else:
      beside[layer.name] = layer.variables
  return backbone, beside


def _shapes(variables):
  return [tuple(variable.shape) for variable in variables]


@keras.saving.register_keras_serializable("urkle_tf")
class GaussianEncoder(Encoder, keras.Model):
  """An encoder whose call returns a diagonal `tfp.distributions.Normal`.

  With x the pooled features of the backbone, of width f, loc is

      sphere          sqrt(f) x / max(|x|, 1e-6)
      centred_sphere  the same, of x after a batch norm without a learnt scale
      pooled          x
      dense           a linear map of x to d_z, then a batch norm without a learnt scale
      dense_sphere    a linear map of x to d_z, scaled to length sqrt(d_z)

  `min_scale` and `max_scale` bound the noise.  On a sphere, where loc has a root mean square of 1
  per dimension, they are absolute.  Elsewhere they are relative to the spread of loc over the data:
  an absolute cap would constrain little, since (loc, scale) -> (c loc, c scale) does not change any
  KL[p(z|x) || p(z|x')].  `dense` has a spread of 1 per dimension.  The spread of `pooled` is one
  number, the root of the mean variance; calls with `training=True` keep a moving average of it, and
  give it the gradient of the batch's own.

  Args:
    backbone: any Keras model from images [n, h, w, c] to features [n, f] or feature maps
      [n, h', w', f] (averaged over space).
    latent_dim: d_z, the dimension of z; None for f.  A value other than f needs a dense form.
    min_scale: the floor of scale, above 0.
    max_scale: the cap of scale; equal to `min_scale` for a fixed scale.
    preprocess: turns images in [0, 1] into what the backbone expects: a Keras layer, a function of
      Keras tensors, or a name such as "255" (`robustify`); None rescales them to [-1, 1].
    momentum: of the batch norm on loc, if there is one.
    dual: whether there are two streams from the start; see `add_stream`.
    loc: where loc lies, one of the names above.
    inference: whether the backbone stays in inference mode during training.  Its batch norms then
      keep their statistics (gamma and beta are trained), and there is no dropout.

  Attributes:
    network: the functional Keras model underneath, images float32 [n, h, w, c] in [0, 1] ->
      {"loc": [n, d_z], "scale": [n, d_z]}, both float32 under every precision policy.
    streams: {stream: network}; "adversarial" is `network`, and there may be "clean".
    inference: as given.

  Raises:
    UserError: if the backbone's image size is not static, it takes integers, it returns no
      features, a bound is out of its range, `loc` or `preprocess` is unknown, `latent_dim` is not f
      where it must be, or with `dual` a batch norm cannot be copied.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)  # any Keras model of images
  normal = encoder(images)  # a Normal of shape [n, d_z]
  embeddings, noise = normal.loc, normal.scale  # float32 [n, d_z], both
  encoder = urkle_tf.GaussianEncoder.from_preset("cifar10_resnet18")  # with trained weights
  ```
  """

  def __init__(
    self,
    backbone,
    latent_dim=None,
    min_scale=0.1,
    max_scale=0.25,
    preprocess=None,
    momentum=0.9,
    dual=False,
    loc="sphere",
    inference=False,
    **kwargs,
  ):
    # Its layers have the policy's precision; the model itself computes nothing below float32.
    super().__init__(**{**kwargs, "dtype": "float32"})
    if not 0 < min_scale <= max_scale:
      raise errors.UserError(f"need 0 < min_scale <= max_scale, got {min_scale} and {max_scale}")
    if latent_dim is not None:
      errors.whole(1, "GaussianEncoder", latent_dim=latent_dim)
    errors.one_of("loc", loc, LOCS)
    image_shape = _image_shape(backbone)
    images = keras.Input(image_shape, name="images", dtype="float32")
    fold = keras.layers.Rescaling(2.0, -1.0) if preprocess is None else pixels.folding(preprocess)
    features = backbone(fold(images))
    rank = len(getattr(features, "shape", ()))
    if rank not in (2, 4):
      raise errors.UserError(
        f"the backbone must return features [n, f] or feature maps [n, h, w, f], got {features}"
      )
    if rank == 4:
      foreign.check_maps(backbone)
      pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
      features = pool(features)
    width = features.shape[-1]
    latent_dim = width if latent_dim is None else int(latent_dim)
    if latent_dim != width and not loc.startswith("dense"):
      raise errors.UserError(
        f"latent_dim={latent_dim}, but loc={loc} keeps the backbone's {width} features: leave out "
        "latent_dim, or give loc=dense_sphere or loc=dense"
      )
    mean, spread = _loc_head(features, loc, latent_dim, momentum)
    scale = _scale_head(features, latent_dim, min_scale, max_scale)
    scale = scale if spread is None else scale * spread
    scale = keras.layers.Identity(dtype="float32", name="scale")(scale)
    self.network = keras.Model(images, {"loc": mean, "scale": scale}, name="network")
    if not self.trainable:  # as a file says of a frozen encoder, whose heads are made anew here
      self.network.trainable = False
    self.streams = {batch_norm.ADVERSARIAL: self.network}
    self.latent_dim, self.min_scale, self.max_scale = latent_dim, min_scale, max_scale
    self.image_shape, self.inference = image_shape, inference
    self._config = {"backbone": backbone, "preprocess": preprocess, "loc": loc}
    self._config |= {"latent_dim": latent_dim, "momentum": momentum, "inference": inference}
    self._config |= {"min_scale": min_scale, "max_scale": max_scale}
    self._halves: dict[str, Callable] = {}
    self.built = True
    if dual:
      self.add_stream()

  def add_stream(self):
    """Gives clean images separate batch norms, which start as copies; a second call has no effect.

    All other weights are shared.  `network` does not change.  It is the network of adversarial
    images, and the default everywhere.
    """
    if batch_norm.CLEAN not in self.streams:
      self.streams[batch_norm.CLEAN] = batch_norm.twin(self.network)

  def start_from(self, network, source):
    """Copies another encoder's weights and batch statistics.

    It copies those of the backbone, and of each other layer (the heads) whose name and shapes
    agree.  Both streams start as copies.

    Args:
      network: the other encoder's `network`, outside any strategy.
      source: its name in messages.

    Raises:
      UserError: if the backbones differ.
    """
    earlier, others = _parts(network)
    for own in self.streams.values():
      backbone, heads = _parts(own)
      if _shapes(backbone) != _shapes(earlier):
        raise errors.UserError(
          f"{source} and this encoder have different backbones: give the same --encoder and "
          "--image_size"
        )
      pairs = [(backbone, earlier), *((part, others.get(name, [])) for name, part in heads.items())]
      for variables, values in pairs:
        if _shapes(variables) == _shapes(values):
          for variable, value in zip(variables, values, strict=True):
            variable.assign(np.asarray(value))

  def call(self, images, training=None, stream=batch_norm.ADVERSARIAL):
    """Encodes images.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      training: whether batch norms use and update batch statistics.
      stream: the one of `streams` whose batch norms are used.

    Returns:
      A `tfp.distributions.Normal` of batch shape [n, d_z].
    """
    images = representations.checked(images)
    errors.one_of("stream of this encoder", stream, self.streams)
    if training and self._config["inference"]:
      outputs = self._half_in_training(stream)(images)
    else:
      outputs = self.streams[stream](images, training=training)
    if training and self._config["loc"] == "pooled" and self._config["momentum"] < 1:
      found = self._follow_spread(outputs["loc"])
      # Without the gradient of the batch's own spread the KL would keep shrinking all features, for
      # nothing: the moving average follows.
      outputs = {**outputs, "scale": outputs["scale"] * (found / tf.stop_gradient(found))}
    return tfp.distributions.Normal(outputs["loc"], outputs["scale"])

  def _half_in_training(self, stream):
    """A stream's network with its backbone in inference mode and its heads in training."""
    if stream not in self._halves:
      network = self.streams[stream]
      below = pooled(network)
      above = keras.Model(below_heads(network), network.output)
      # A function, so that Keras counts no layer twice.
      self._halves[stream] = lambda images: above(below(images, training=False), training=True)
    return self._halves[stream]

  @property
  def spread(self):
    """The unit of `min_scale` and `max_scale`: a float32 scalar."""
    if self._config["loc"] != "pooled":
      return tf.ones([])
    return tf.convert_to_tensor(self.network.get_layer("spread").kernel.value)[0, 0]

  def calibrate(self, spread):
    """Fixes the spread of loc, so that training no longer moves it.

    Args:
      spread: the root of the mean variance of loc's dimensions, above 0.

    Raises:
      UserError: if loc is not "pooled": elsewhere the spread is 1 by construction.
    """
    if self._config["loc"] != "pooled":
      raise errors.UserError(f"calibrate needs loc=pooled, got loc={self._config['loc']}")
    self.network.get_layer("spread").kernel.assign([[spread]])
    self._config["momentum"] = 1.0

  def _follow_spread(self, loc):
    """Moves the spread of loc [n, d_z] towards a batch's, over all replicas; returns that."""
    moments = tf.stack([tf.reduce_mean(loc, 0), tf.reduce_mean(tf.square(loc), 0)])
    moments = distribution.mean(moments)
    variance = tf.reduce_mean(moments[1] - tf.square(moments[0]))
    found = tf.sqrt(tf.maximum(variance, 1e-10))
    kernel, momentum = self.network.get_layer("spread").kernel, self._config["momentum"]
    kernel.assign(momentum * kernel + (1.0 - momentum) * tf.reshape(found, [1, 1]))
    return found

  def predict_step(self, data):
    """`predict` returns {"loc", "scale"} arrays, since a Normal is not a tensor."""
    images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    return self.network(representations.checked(images), training=False)

  def compute_loss(self, *_, **__):
    """Refuses `fit` and `evaluate`: Keras's losses are of tensors, and a Normal is none.

    Raises:
      UserError: always; it names what trains an encoder.
    """
    raise errors.UserError(
      "an encoder has no loss of its own: train it with urkle_tf.Trainer or urkle_tf.pretrain, or "
      "give UrkleRegularizer(encoder, attack) a place in your model"
    )

  def export(self, *_, **__):
    """Refuses Keras's own export, which cannot hold a Normal.

    Raises:
      UserError: always; it names the two ways that work.
    """
    raise errors.UserError(
      "a SavedModel cannot hold a Normal: call encoder.network.export(FOLDER), or "
      "urkle_tf.export_encoder(encoder, FOLDER)"
    )

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
    return presets.encoder(name, cls)

  @classmethod
  def from_config(cls, config):
    for key in ("backbone", "preprocess"):
      config[key] = keras.saving.deserialize_keras_object(config[key])
    return cls(**{"loc": "dense", **config})  # older files do not name a loc
