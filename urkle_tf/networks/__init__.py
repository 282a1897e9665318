"""Encoders, backbones and heads."""

from urkle_tf import spec
from urkle_tf.networks.convnet import convnet
from urkle_tf.networks.decoder import decoder
from urkle_tf.networks.gaussian import GaussianEncoder, kl, kl_mean_part
from urkle_tf.networks.heads import mlp
from urkle_tf.networks.representations import Representations
from urkle_tf.networks.resnet import resnet18, resnet50

BACKBONES = {"convnet": convnet, "resnet18": resnet18, "resnet50": resnet50}


def backbone(text, image_shape):
  """Builds the backbone that a spec such as `"resnet18(width=16)"` names.

  Args:
    text: the spec.
    image_shape: (height, width, channels), static.

  Raises:
    UserError: for an unknown name or option, or images that are too small.
  """
  return spec.call(BACKBONES, text, "encoder", image_shape=image_shape)


__all__ = [
  "BACKBONES",
  "GaussianEncoder",
  "Representations",
  "backbone",
  "convnet",
  "decoder",
  "kl",
  "kl_mean_part",
  "mlp",
  "resnet18",
  "resnet50",
]
