"""Exports encoders."""

import keras
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.export import description, folders, keras_files, signatures
from urkle_tf.networks import batch_norm


def export_encoder(encoder, folder, metadata=None, stream=None):
  """Writes an encoder's folder.

  Signatures: `serving_default(images float32 [n, h, w, c] in [0, 1]) -> {"loc", "scale"}` (also
    called `serve`) and `embed(images) -> {"embedding"}`, which is loc.  All are float32 [n, d_z],
    in inference mode, and differentiable in the images.  They are trainable through
    `keras.layers.TFSMLayer`, with batch norms that stay in inference mode (train `network.keras` to
    move them).

  Args:
    encoder: a `GaussianEncoder`, or the result of `load_encoder`.
    folder: where to write; an existing export is replaced once the new one is complete.
    metadata: further entries of metadata.json, for example `dataset`, `norm`, `epsilon`, `settings`
      (without paths) and `stochastic`: whether training used the scale (True by default).
    stream: for an encoder with dual batch norm, the one to write: "adversarial" or "clean".  None
      writes the adversarial one, and a complete folder of the clean one into `clean/`.  The entry
      "stream" of the metadata says which one a folder holds.

  Returns:
    The folder, a `pathlib.Path`.

  Raises:
    UserError: if the folder holds something else, the network cannot be saved, or the encoder has
      no such stream.
    OSError: if writing fails; the folder then keeps its content.

  ```python
  urkle_tf.export_encoder(encoder, "encoder", {"dataset": "cifar10", "epsilon": 8 / 255})
  again = urkle_tf.load_encoder("encoder")
  ```
  """
  streams = encoder.streams
  if stream is not None and stream not in streams:
    raise errors.unknown("stream of this encoder", stream, streams)
  metadata = {
    "image_size": encoder.image_shape,
    "latent_dim": encoder.latent_dim,
    "stochastic": getattr(encoder, "stochastic", True),
    "stream": getattr(encoder, "metadata", {}).get("stream"),
    **(metadata or {}),
  }
  if len(streams) > 1:
    metadata["stream"] = stream or batch_norm.ADVERSARIAL

  def write(side):
    _write_encoder(side, streams[stream] if stream else encoder.network, metadata)
    if stream is None and len(streams) > 1:
      clean = side / batch_norm.CLEAN
      clean.mkdir()
      _write_encoder(clean, streams[batch_norm.CLEAN], {**metadata, "stream": batch_norm.CLEAN})

  return folders.replace(folder, write)


def _write_encoder(folder, network, metadata):
  network = keras_files.save(network, folder / "network.keras")
  images = tf.TensorSpec([None, *metadata["image_size"]], tf.float32, name="images")

  def represent(images):
    outputs = network(images, training=False)
    return {name: tf.cast(outputs[name], tf.float32) for name in ("loc", "scale")}

  # Without the head for scale, so that a TFSMLayer of it has no weight without a gradient.
  loc = keras.Model(network.input, network.output["loc"])

  def embed(images):
    return {"embedding": tf.cast(loc(images, training=False), tf.float32)}

  endpoints = {
    "serve": (represent, [images]),
    "serving_default": (represent, [images]),
    "embed": (embed, [images]),
  }
  signatures.save(folder, [network], endpoints)
  description.write(folder, "encoder", [network], metadata)
