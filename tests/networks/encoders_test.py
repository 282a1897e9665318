"""Networks: the Gaussian encoder, its KL, the backbones."""

import functools

import keras
import numpy as np
import plain_losses
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import refuses
from small_models import digits, precision, sequential, small_encoder, tiny_encoder

from urkle_tf import errors, export, networks
from urkle_tf.networks.regressor import Regressor

tfd = tfp.distributions


def _normals(rng, n=5, d=3):
  draw = lambda: (rng.normal(size=(n, d)), rng.uniform(0.3, 2, (n, d)))  # noqa: E731
  return [tfd.Normal(*np.float32(draw())) for _ in range(2)]


def test_kl_is_its_closed_form(rng):
  p, q = _normals(rng)
  expected = plain_losses.kl(p.loc, p.scale, q.loc, q.scale).sum(1)
  np.testing.assert_allclose(networks.kl(p, q), expected, rtol=1e-5)


def test_kl_is_the_mean_log_ratio_of_samples(rng):
  p, q = _normals(rng)
  z = p.sample(400_000, seed=1)
  ratio = tf.reduce_sum(p.log_prob(z) - q.log_prob(z), -1)
  error = tf.math.reduce_std(ratio, 0) / np.sqrt(400_000)
  assert np.all(np.abs(tf.reduce_mean(ratio, 0) - networks.kl(p, q)) < 5 * error)


def test_kl_of_literal_numbers():
  p, q = tfd.Normal([[0.0]], [[1.0]]), tfd.Normal([[1.0]], [[2.0]])
  # log 2 + (1 + 1) / 8 - 1/2, and the means' part 1/8
  np.testing.assert_allclose(networks.kl(p, q), [0.4431472], rtol=1e-6)
  np.testing.assert_allclose(networks.kl_mean_part(p, q), [0.125], rtol=1e-6)
  # A shift of 0.1 in each of 512 dimensions costs 1024 nats at scale 0.05, 2.56 at scale 1.
  for scale, nats in ((0.05, 1024.0), (1.0, 2.56)):
    p, q = (tfd.Normal(tf.fill([1, 512], loc), scale) for loc in (0.0, 0.1))
    np.testing.assert_allclose(networks.kl(p, q), [nats], rtol=1e-3)


def test_encoder_returns_a_normal_of_its_networks_outputs(rng):
  encoder = tiny_encoder()
  images = rng.uniform(size=(3, 8, 8, 1)).astype("float32")
  p = encoder(images)
  assert isinstance(p, tfd.Normal)
  assert p.batch_shape == (3, 6)
  outputs = encoder.predict(images, verbose=0)
  np.testing.assert_allclose(outputs["loc"], p.loc, atol=1e-6)
  np.testing.assert_allclose(outputs["scale"], p.scale, atol=1e-6)


def test_an_exported_encoder_is_built_again_from_its_config():
  """As Keras does where it reads a model that holds one, under `UrkleRegularizer` for one."""
  encoder = networks.ExportedEncoder(tiny_encoder().network, {"stochastic": False}, name="own")
  again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(encoder))
  assert (again.name, again.stochastic, again.image_shape) == ("own", False, (8, 8, 1))
  again.set_weights(encoder.get_weights())
  images = np.full((2, 8, 8, 1), 0.5, np.float32)
  np.testing.assert_array_equal(again(images).loc, encoder(images).loc)


@pytest.mark.parametrize("dual", [False, True])
def test_a_frozen_encoder_is_read_frozen(tmp_path, dual):
  """A training that continues with it must not move the layers that make loc and scale."""
  encoder = tiny_encoder(dual=dual)
  encoder.trainable = False
  encoder.save(tmp_path / "encoder.keras")
  again = keras.saving.load_model(tmp_path / "encoder.keras")
  assert not any(variable.trainable for variable in [*encoder.variables, *again.variables])


def test_keras_s_own_export_is_sent_to_the_network(tmp_path):
  """It said that the model was never called, also after a call."""
  encoder = tiny_encoder()
  encoder(np.zeros((1, 8, 8, 1), np.float32))
  refuses("encoder.network.export(FOLDER)", encoder.export, str(tmp_path / "model"))


def test_functional_models_are_sent_to_the_network():
  encoder, images = tiny_encoder(), keras.Input((8, 8, 1))
  for layer in (encoder, networks.ExportedEncoder(encoder.network)):
    with pytest.raises(errors.UserError, match=r'there, encoder\.network\(images\)\["loc"\]'):
      layer(images)
  assert encoder.network(images)["loc"].shape == (None, 6)


def test_images_are_not_rounded_where_the_policy_is_of_low_precision():
  """bfloat16 would make 0.78515625 of a pixel of 200, 0.7843137, and miss small changes."""
  pixels = np.array([[[[200 / 255], [201 / 255]]]], np.float32)
  backbone = sequential((1, 2, 1), keras.layers.Flatten())
  encoder = networks.GaussianEncoder(backbone, preprocess=lambda x: x, loc="pooled")  # loc = x
  head = sequential((2,), keras.layers.Identity())
  with precision("mixed_bfloat16"):
    again = networks.ExportedEncoder(encoder.network)
    regressor = Regressor(encoder.network, head, stochastic=False)
  for found in (again(pixels).loc, regressor(pixels)):
    np.testing.assert_array_equal(found, pixels[0, 0].T)


def test_predict_refuses_integers_as_calls_do():
  encoder, images = tiny_encoder(), np.ones((2, 8, 8, 1), np.uint8)
  for call in (encoder, encoder.predict):
    with pytest.raises(errors.UserError, match="got uint8: divide by 255"):
      call(images)


def test_fit_and_evaluate_end_in_one_line():
  """Keras's losses ended in a TypeError about a Normal."""
  encoder, images = tiny_encoder(), np.ones((2, 8, 8, 1), np.float32)
  encoder.compile("adam", "mse")
  for call in (encoder.fit, encoder.evaluate, encoder.train_on_batch):
    refuses("no loss of its own", call, images, np.zeros((2, encoder.latent_dim)))


def test_channels_first_as_keras_s_default():
  """Images are channels-last; a backbone whose layers follow the default would misread them."""
  images = keras.Input((6, 5, 2))
  maps = keras.Model(images, keras.layers.Conv2D(3, 1, data_format="channels_last")(images))
  keras.config.set_image_data_format("channels_first")
  try:
    refuses("set_image_data_format", networks.backbone, "convnet(width=4, layers=2)", (8, 8, 1))
    for build in (networks.convnet, networks.resnet18, functools.partial(networks.decoder, 4)):
      refuses("set_image_data_format", build, (16, 16, 3))
    assert networks.GaussianEncoder(maps).latent_dim == 3
  finally:
    keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("kernel", [-100.0, 0.0, 100.0])
def test_scale_stays_between_floor_and_cap(rng, kernel):
  encoder = tiny_encoder(min_scale=0.2, max_scale=0.7)
  encoder.network.get_layer("raw_scale").bias.assign(kernel * tf.ones(6))
  scale = encoder(rng.uniform(size=(3, 8, 8, 1)).astype("float32")).scale.numpy()
  assert 0.2 - 1e-6 <= scale.min() <= scale.max() <= 0.7 + 1e-6
  middle = 0.2 + 0.5 * np.tanh(np.log(2) / 0.5)  # softplus(0) = ln 2
  wanted = {-100.0: 0.2, 0.0: middle, 100.0: 0.7}[kernel]
  np.testing.assert_allclose(scale, np.full((3, 6), wanted), atol=1e-4)


def test_loc_has_unit_spread_whatever_the_weights(rng):
  """So scale is bounded relative to loc: (c loc, c scale) is out of reach."""
  encoder = tiny_encoder()
  kernel = encoder.network.get_layer("raw_loc").kernel
  images = rng.uniform(size=(64, 8, 8, 1)).astype("float32")
  for factor in (1.0, 1000.0):
    kernel.assign(factor * kernel)
    loc = encoder(images, training=True).loc.numpy()
    np.testing.assert_allclose(loc.std(0), 1.0, atol=0.05)


@pytest.mark.parametrize("preprocess", [keras.layers.Rescaling(255.0), "255"])
def test_normalisation_is_inside(preprocess):
  backbone = sequential((8, 8, 1), keras.layers.Flatten())
  encoder = networks.GaussianEncoder(backbone, 2, preprocess=preprocess, loc="dense")
  probe = keras.Model(encoder.network.input, encoder.network.layers[1].output)
  seen = probe(np.ones((1, 8, 8, 1), "float32"))
  np.testing.assert_allclose(seen, 255.0)


@pytest.mark.parametrize(
  "build, shape, parameters",
  [
    # torchvision's and the CIFAR literature's counts, less the last dense layer.
    (networks.resnet18, (32, 32, 3), 11_173_962 - 5_130),
    (networks.resnet18, (224, 224, 3), 11_689_512 - 513_000),
    (networks.resnet50, (224, 224, 3), 25_557_032 - 2_049_000),
  ],
)
def test_resnets_have_the_published_number_of_parameters(build, shape, parameters):
  model = build(shape)
  assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters


@pytest.mark.parametrize("spec, starts", [("", 8), ("zero_gamma=false, ", 0)])
def test_blocks_start_as_their_shortcuts_if_asked(spec, starts):
  """By hand: two blocks in each of four stages, and 20 batch norms."""
  model = networks.backbone(f"resnet18({spec}width=2)", (8, 8, 3))
  gammas = [v.numpy() for v in model.trainable_variables if v.name == "gamma"]
  assert len(gammas) == 20
  assert sum(np.all(gamma == 0) for gamma in gammas) == starts
  assert sum(np.all(gamma == 1) for gamma in gammas) == 20 - starts


@pytest.mark.parametrize(
  "spec, shape, features",
  [
    ("resnet18(width=4)", (32, 32, 3), 32),
    ("resnet18(width=4, stem=patch)", (32, 32, 3), 32),
    ("resnet50(width=4)", (32, 32, 3), 128),
    ("convnet", (28, 28, 1), 192),
    ("convnet(width=32)", (28, 28, 1), 128),  # the paper's 128 channels
    ("convnet(width=32, layers=3, convs=2)", (28, 28, 1), 96),
  ],
)
def test_backbones_by_spec(spec, shape, features):
  assert networks.backbone(spec, shape).output_shape == (None, features)


def test_a_convnet_s_further_convolutions_keep_the_size():
  layers = networks.convnet((32, 32, 3), width=4, layers=2, convs=2).layers
  convs = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
  assert [layer.kernel.shape[2:] for layer in convs] == [(3, 4), (4, 4), (4, 8), (8, 8)]
  assert [layer.output.shape[1] for layer in convs] == [16, 16, 8, 8]


@pytest.mark.parametrize(
  "spec, shape, words",
  [
    ("resnet19", (32, 32, 3), "did you mean 'resnet18'"),
    ("resnet18(widht=4)", (32, 32, 3), "did you mean 'width'"),
    ("resnet18", (4, 4, 3), "at least 8x8"),
    ("resnet18(stem=large)", (16, 16, 3), "at least 32x32"),
    ("convnet", (4, 4, 1), "at least 8x8"),
    ("resnet18(width=0)", (32, 32, 3), "width must be a whole number of at least 1, got 0"),
    ("convnet(width=0)", (32, 32, 3), "convnet: width must be a whole number of at least 1"),
    ("convnet(layers=0)", (32, 32, 3), "convnet: layers must be a whole number of at least 1"),
    ("convnet(convs=0)", (32, 32, 3), "convnet: convs must be a whole number of at least 1"),
  ],
)
def test_wrong_backbones_end_in_one_line(spec, shape, words):
  refuses(words, networks.backbone, spec, shape)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.5, 0.4)])
def test_wrong_bounds_of_scale(low, high):
  words = f"need 0 < min_scale <= max_scale, got {low} and {high}"
  refuses(words, tiny_encoder, min_scale=low, max_scale=high)


class _Subclassed(keras.Model):
  def call(self, images):
    return tf.reduce_mean(images, [1, 2])


def _two_outputs():
  images = keras.Input((8, 8, 3))
  return keras.Model(images, [keras.layers.Flatten()(images)] * 2)


def _of_bytes():
  """Keras would cast pixels in [-1, 1] to 0 and 1."""
  images = keras.Input((8, 8, 3), dtype="uint8")
  return keras.Model(images, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images)))


@pytest.mark.parametrize(
  "backbone, words",
  [
    (_Subclassed, "static (height, width, channels) & keras.Model(images, backbone(images))"),
    (lambda: keras.Sequential([keras.layers.Flatten()]), "static (height, width, channels)"),
    (lambda: "resnet18", "static (height, width, channels)"),
    (_of_bytes, "takes uint8 images & keras.Input of float32"),
    (_two_outputs, "features [n, f] or feature maps"),
    (lambda: sequential((8, 8, 3), keras.layers.Reshape((64, 3))), "features [n, f] or feature"),
  ],
)
def test_what_cannot_be_a_backbone_ends_in_one_line(backbone, words):
  refuses(words, networks.GaussianEncoder, backbone())


# Pooled features, against the mean of what the backbone gives.


def of_backbone(network, images):
  """What the backbone of a network makes of images, float64."""
  (backbone,) = (layer for layer in network.layers if isinstance(layer, keras.Model))
  return np.float64(backbone.predict(2 * images - 1, verbose=0))


def test_they_are_the_mean_over_space_of_feature_maps(tmp_path):
  backbone = sequential((8, 8, 1), keras.layers.Conv2D(7, 3, activation="relu"))
  backbone.name = "pooled"  # as the layer of the pooled features is named
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
    backbone = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(7))
    network = networks.GaussianEncoder(backbone, latent_dim=3, loc="dense").network
  model, images = networks.pooled(network), digits()[0][:5]
  assert backbone(images).dtype == "bfloat16"
  assert model(images).dtype == "float32"
  backbone.layers[-1].kernel.assign(np.zeros((64, 7)))
  backbone.layers[-1].bias.assign(np.arange(7))
  np.testing.assert_array_equal(model(images), [np.arange(7)] * 5)


def test_a_network_of_another_kind_is_refused():
  images = keras.Input((8, 8, 1))
  z = keras.layers.Flatten()(images)
  refuses("has no layer raw_scale", networks.pooled, keras.Model(images, {"loc": z, "scale": z}))
