"""The pooled features of an encoder, against NumPy's mean of the backbone's output."""

import keras
import numpy as np
import pytest
from small_models import digits, precision, small_encoder

from urkle_tf import errors, export, networks

layers = keras.layers


def of_backbone(network, images):
  """What the backbone of a network makes of images, float64."""
  (backbone,) = (layer for layer in network.layers if isinstance(layer, keras.Model))
  return np.float64(backbone.predict(2 * images - 1, verbose=0))


def test_they_are_the_mean_over_space_of_feature_maps(tmp_path):
  backbone = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(7, 3, activation="relu")])
  images, encoder = digits()[0][:5], networks.GaussianEncoder(backbone, latent_dim=3, loc="dense")
  export.export_encoder(encoder, tmp_path / "encoder")
  for network in (encoder.network, export.load_encoder(tmp_path / "encoder").network):
    maps = of_backbone(network, images)
    assert maps.shape == (5, 6, 6, 7)
    np.testing.assert_allclose(networks.pooled(network)(images), maps.mean((1, 2)), atol=1e-6)


def test_features_that_are_no_maps_stay_as_they_are():
  images, network = digits()[0][:5], small_encoder().network
  features = networks.pooled(network)(images, training=False)
  assert features.shape == (5, 24)
  np.testing.assert_allclose(features, of_backbone(network, images), atol=1e-6)


def test_they_are_float32_under_mixed_precision_and_share_the_weights():
  with precision("mixed_bfloat16"):
    backbone = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(7)])
    network = networks.GaussianEncoder(backbone, latent_dim=3, loc="dense").network
  model, images = networks.pooled(network), digits()[0][:5]
  assert backbone(images).dtype == "bfloat16"
  assert model(images).dtype == "float32"
  backbone.layers[-1].kernel.assign(np.zeros((64, 7)))
  backbone.layers[-1].bias.assign(np.arange(7))
  np.testing.assert_array_equal(model(images), [np.arange(7)] * 5)


def test_a_network_of_another_kind_is_refused():
  images = keras.Input((8, 8, 1))
  z = layers.Flatten()(images)
  with pytest.raises(errors.UserError, match="has no layer raw_scale"):
    networks.pooled(keras.Model(images, {"loc": z, "scale": z}))
