"""The interface of all encoders, and an encoder around an existing network."""

import keras
import tensorflow_probability as tfp

from urkle_tf import errors
from urkle_tf.networks import batch_norm, representations
from urkle_tf.networks.folding import fold


class Encoder:
  """The interface of an encoder of images, besides its call.

  Attributes:
    network: the Keras model underneath, images float32 [n, h, w, c] in [0, 1] -> {"loc", "scale"},
      both float32 [n, d_z].
    streams: {stream: network}; see `batch_norm`.
  """

  network: keras.Model
  streams: dict

  def frozen(self, stream=batch_norm.ADVERSARIAL):
    """The encoder as an attack sees it: in inference mode, with its current weights.

    Its batch norms are folded here, once.

    Args:
      stream: the stream whose batch norms are used; an encoder may have only this one.

    Returns:
      A function of images float32 [n, h, w, c] to their `tfp.distributions.Normal` [n, d_z].
    """
    network = fold(self.streams.get(stream, self.network))

    def represent(images):
      outputs = network(images)
      return tfp.distributions.Normal(outputs["loc"], outputs["scale"])

    return represent

  def compute_output_spec(self, *_, **__):
    """Refuses a `keras.Input`; Keras itself would only say that a Normal is no tensor."""
    raise errors.UserError(
      "an encoder returns a tfp.distributions.Normal, which functional and sequential models "
      'cannot hold: call its network there, encoder.network(images)["loc"]'
    )


@keras.saving.register_keras_serializable("urkle_tf")
class ExportedEncoder(Encoder, keras.layers.Layer):
  """An encoder around a network: a trainable Keras layer whose call returns the Normal.

  Args:
    network: a Keras model, images -> {"loc", "scale"}.
    metadata: the metadata of its folder, a dict; None without a folder.

  Attributes:
    network: as given.
    image_shape: (height, width, channels).
    latent_dim: d_z.
    metadata: a dict, with "stream" if the network is one of two.
    streams: {stream: network}, of this one network.

  ```python
  again = urkle_tf.networks.ExportedEncoder(encoder.network)
  normal = again(images)  # a Normal of shape [n, d_z]
  ```
  """

  def __init__(self, network, metadata=None, **kwargs):
    # Not the policy's dtype, to which Keras would round the images; the network keeps its own.
    super().__init__(**{**kwargs, "dtype": "float32"})
    self.network, self.metadata = network, dict(metadata or {})
    self.streams = {self.metadata.get("stream", batch_norm.ADVERSARIAL): network}
    self.image_shape = tuple(network.input_shape[1:])
    self.latent_dim = int(network.output["loc"].shape[-1])
    self.stochastic = bool(self.metadata.get("stochastic", True))
    self.built = True

  def call(self, images, training=None):
    """float32 [n, h, w, c] in [0, 1] -> `tfp.distributions.Normal` of [n, d_z]."""
    outputs = self.network(representations.checked(images), training=training)
    return tfp.distributions.Normal(outputs["loc"], outputs["scale"])

  def get_config(self):
    """The constructor's arguments, so that `.keras` files of models over it can be read."""
    network = keras.saving.serialize_keras_object(self.network)
    return {**super().get_config(), "network": network, "metadata": dict(self.metadata)}

  @classmethod
  def from_config(cls, config):
    network = keras.saving.deserialize_keras_object(config["network"])
    return cls(**{**config, "network": network})
