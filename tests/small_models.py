"""Small models and data that several tests share."""

import keras
import numpy as np
from sklearn import datasets

from urkle_tf import networks


def digits():
  """Real digits: (float32 [1797, 8, 8, 1] in [0, 1], int [1797])."""
  data = datasets.load_digits()
  return (data.images[..., None] / 16).astype(np.float32), data.target


def small_encoder():
  """An untrained encoder whose batch norms have seen digits, so that loc has unit spread."""
  keras.utils.set_random_seed(3)
  backbone = networks.backbone("convnet(width=8, layers=3)", (8, 8, 1))
  encoder = networks.GaussianEncoder(backbone, latent_dim=6)
  kernel = encoder.network.get_layer("raw_scale").kernel
  kernel.assign(keras.random.normal(kernel.shape, seed=1))  # scales that differ between images
  images, _ = digits()
  for _ in range(30):
    encoder(images[:200], training=True)
  return encoder
