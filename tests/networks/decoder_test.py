"""The decoder: sizes of any image, and the mirror of the encoder."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from urkle_tf import networks


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 32, 3), (17, 30, 3), (5, 7, 1)])
@pytest.mark.parametrize("layers", [1, 4])
def test_it_makes_images_of_any_size(shape, layers):
  decoder = networks.decoder(6, shape, width=4, layers=layers)
  logits = decoder(np.zeros((2, 6), np.float32))
  assert logits.shape == (2, *shape)
  assert logits.dtype == tf.float32


def test_it_mirrors_the_paper_net():
  encoder = networks.convnet((28, 28, 1), width=32)
  decoder = networks.decoder(128, (28, 28, 1), width=32)
  down, up = (
    [layer.kernel.shape for layer in model.layers if type(layer) is kind]
    for model, kind in ((encoder, keras.layers.Conv2D), (decoder, keras.layers.Conv2DTranspose))
  )
  # A transposed kernel is [h, w, out, in]: the same shapes in reverse.
  assert down == up[::-1] == [(3, 3, 1, 32), (3, 3, 32, 64), (3, 3, 64, 96), (3, 3, 96, 128)]
  maps = [layer.output.shape[1:3] for layer in decoder.layers if layer.name.startswith("relu")]
  assert maps == [(2, 2), (4, 4), (7, 7), (14, 14)]


def test_every_pixel_and_every_weight_takes_part():
  keras.utils.set_random_seed(0)  # of so few channels, all may be dead
  decoder = networks.decoder(3, (9, 9, 1), width=8, layers=3)
  z = tf.random.stateless_normal((8, 3), [0, 1])
  with tf.GradientTape() as tape:
    logits = decoder(z, training=True)
    total = tf.reduce_sum(logits * tf.random.stateless_normal(logits.shape, [1, 2]))
  gradients = tape.gradient(total, [v.value for v in decoder.trainable_variables])
  assert all(np.abs(gradient).max() > 0 for gradient in gradients)
  assert np.ptp(logits, axis=0).min() > 0


@pytest.mark.parametrize("options", [{"width": 0}, {"layers": 0}])
def test_impossible_sizes(options):
  refuses("at least 1", networks.decoder, 6, (8, 8, 1), **options)
