"""A convolution whose gradient corrupts memory in oneDNN, which TensorFlow uses on CPUs.

It is the gradient with respect to the kernel of a 1x1 convolution with a stride.  It fails if there
are fewer input channels than a block of the kernel holds: 16 with AVX-512, 8 with AVX2 (oneDNN's
issue 6035; up to version 3.12 at least).  Image size, batch and threads decide whether the process
dies, the gradient is wrong, or nothing happens.
"""

import functools
import pathlib

import keras
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port  # no public name says whether oneDNN is on

from urkle_tf import errors
from urkle_tf.networks import keras_private

_CPU = pathlib.Path("/proc/cpuinfo")


def check(model):
  """Raises `UserError` if training a model on this machine would compute that gradient.

  Args:
    model: a Keras model; frozen layers are left out.
  """
  least = _least_channels()
  for layer in keras_private.layers(model):
    if (
      isinstance(layer, keras.layers.Conv2D)
      and layer.built
      and layer.trainable
      and layer.groups == 1  # Keras compiles others with XLA
      and max(layer.kernel_size) == 1 < max(layer.strides)
      and layer.kernel.shape[2] < least
    ):
      raise errors.UserError(
        f"training would crash: the gradient of {layer.name!r}, a strided 1x1 convolution over "
        f"{layer.kernel.shape[2]} channels, corrupts memory in oneDNN on this CPU. "
        f"Set TF_ENABLE_ONEDNN_OPTS=0 in the environment, or use at least {least} channels"
      )


def is_on():
  """Whether TensorFlow uses oneDNN on this machine's CPUs."""
  return bool(_pywrap_util_port.IsMklEnabled())


@functools.cache
def _least_channels():
  """How many input channels are safe on this machine; 0 if oneDNN is not used."""
  if tf.config.list_physical_devices("GPU") or not is_on():
    return 0
  known = set(_CPU.read_text().split()) if _CPU.exists() else set()
  return 16 if "avx512f" in known else 8 if "avx2" in known else 0
