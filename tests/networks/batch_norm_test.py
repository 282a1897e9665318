"""Dual batch norm: what the two networks share, what they do not, and how they are exported."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from small_models import tiny_encoder, tiny_trainer

from urkle_tf import errors, export, networks, robustness
from urkle_tf.networks import batch_norm
from urkle_tf.networks.folding import fold

layers = keras.layers


def _nested():
  """A norm used twice, a sum, a sequential model in a functional one, a model in that."""
  norm = layers.BatchNormalization()
  images = keras.Input((6, 6, 2))
  x = norm(layers.Conv2D(2, 3, padding="same")(images))
  x = x + norm(layers.Conv2D(2, 3, padding="same")(x))
  deep = keras.Sequential([layers.Conv2D(3, 3), layers.BatchNormalization(scale=False)])
  x = keras.Sequential([layers.ReLU(), deep, layers.BatchNormalization()])(x)
  return keras.Model(images, {"features": keras.ops.tanh(x)})


def _images(model, n=16, seed=0):
  shape = (n, *model.input_shape[1:])
  return np.random.default_rng(seed).uniform(size=shape).astype("float32")


def _norms(model):
  """The variables of all batch norms, however deep."""
  found = model._flatten_layers()
  return [v for x in found if isinstance(x, layers.BatchNormalization) for v in x.variables]


@pytest.fixture(params=["nested", "encoder"])
def model(request):
  keras.utils.set_random_seed(0)
  found = _nested() if request.param == "nested" else tiny_encoder(5).network
  found(_images(found), training=True)  # statistics that differ from the initial ones
  return found


def test_everything_but_batch_norms_is_the_same_variable(model):
  twin = batch_norm.twin(model)
  ours, theirs = ({id(v) for v in x.variables} for x in (model, twin))
  own, copied = ({id(v) for v in _norms(x)} for x in (model, twin))
  assert ours - own == theirs - copied
  assert not own & copied
  assert len(own) == len(copied) > 0


def test_it_starts_as_a_copy_and_each_keeps_to_its_own(model):
  twin, images = batch_norm.twin(model), _images(model)
  before = keras.tree.map_structure(np.asarray, model(images, training=False))
  keras.tree.map_structure(np.testing.assert_array_equal, before, twin(images, training=False))
  for moved, still in ((twin, model), (model, twin)):
    kept, old = ([v.numpy() for v in _norms(network)] for network in (still, moved))
    with tf.GradientTape() as tape:
      outputs = moved(images, training=True)
      loss = tf.add_n([tf.reduce_sum(tf.square(x)) for x in keras.tree.flatten(outputs)])
    variables = [v.value for v in _norms(still) if v.trainable]
    assert all(gradient is None for gradient in tape.gradient(loss, variables))
    same(kept, _norms(still))
    assert any(np.any(a != b.numpy()) for a, b in zip(old, _norms(moved), strict=True))


def test_each_is_saved_and_folded_by_itself(model, tmp_path):
  twin, images = batch_norm.twin(model), _images(model)
  twin(_images(model, seed=1) ** 2, training=True)
  outputs = [keras.tree.flatten(x(images, training=False))[0] for x in (model, twin)]
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-4
  for network, expected in zip((model, twin), outputs, strict=True):
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    for copy in (loaded, fold(network)):
      found = keras.tree.flatten(copy(images, training=False))[0]
      np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_batch_norm_out_of_reach_is_refused():
  class Block(layers.Layer):
    def __init__(self):
      super().__init__(name="block")
      self.norm = layers.BatchNormalization()

    def call(self, inputs, training=False):
      return self.norm(inputs, training=training)

  images = keras.Input((4, 4, 1))
  refuses("inside 'block'", batch_norm.twin, keras.Model(images, Block()(images)))


@pytest.mark.parametrize("streams, wanted", [("baab", [("a", 6), ("b", 6)]), ("aaaa", [("a", 12)])])
def test_rows_go_through_their_stream_once_and_come_back_in_order(rng, streams, wanted):
  members = rng.normal(size=(3, 4, 2)).astype("float32")
  factors, calls = {"a": 10.0, "b": -1.0}, []

  def function(rows, stream):
    calls.append((stream, tuple(rows.shape)))
    return {"scaled": rows * factors[stream], "sum": tf.reduce_sum(rows, -1)}

  found = batch_norm.by_stream(function, tf.constant(members), tuple(streams))
  expected = members * np.array([factors[s] for s in streams], "float32")[None, :, None]
  np.testing.assert_array_equal(found["scaled"], expected.reshape(12, 2))
  np.testing.assert_allclose(found["sum"], members.sum(-1).reshape(12), rtol=1e-6)
  assert sorted(calls) == [(stream, (count, 2)) for stream, count in wanted]


@pytest.fixture(scope="module")
def dual():
  """An encoder whose clean stream has seen other images than its adversarial one."""
  encoder = tiny_encoder(5)
  encoder.add_stream()
  for seed in range(3):
    encoder(_images(encoder.network, seed=seed) ** 3, training=True, stream="clean")
  return encoder


@pytest.fixture(scope="module")
def images(dual):
  return _images(dual.network, n=5)


def test_an_encoder_has_one_stream_until_it_is_asked_for_two(dual, images):
  one = tiny_encoder()
  assert list(one.streams) == ["adversarial"]
  with pytest.raises(errors.UserError, match="unknown stream of this encoder 'clean'"):
    one(images, stream="clean")
  streams = dict(dual.streams)
  dual.add_stream()
  assert dict(dual.streams) == streams
  np.testing.assert_array_equal(dual(images).loc, dual.network(images)["loc"])
  clean = dual(images, stream="clean")
  np.testing.assert_array_equal(clean.loc, dual.streams["clean"](images)["loc"])
  assert np.abs(clean.loc - dual(images).loc).max() > 0.01


def test_both_streams_start_from_another_encoder(images):
  """Clean images kept the statistics and the gammas of random weights."""
  other, dual = tiny_encoder(5), tiny_encoder(5, dual=True)
  other(images, training=True)
  dual.start_from(other.network, "the other")
  for stream in dual.streams:
    np.testing.assert_array_equal(dual(images, stream=stream).loc, other(images).loc)


def test_an_encoders_keras_file_holds_both(dual, images, tmp_path):
  dual.save(tmp_path / "encoder.keras")
  loaded = keras.models.load_model(tmp_path / "encoder.keras")
  for stream in ("adversarial", "clean"):
    found = loaded(images, stream=stream).loc
    np.testing.assert_allclose(found, dual(images, stream=stream).loc, atol=1e-6)


@pytest.fixture(scope="module")
def folder(dual, tmp_path_factory):
  target = tmp_path_factory.mktemp("export") / "encoder"
  return export.export_encoder(dual, target, {"dataset": "digits"})


def test_a_folder_holds_the_adversarial_stream_and_in_it_the_clean_one(dual, images, folder):
  for stream, place in (("adversarial", folder), ("clean", folder / "clean")):
    expected = dual(images, stream=stream)
    loaded = export.load_encoder(place)
    np.testing.assert_allclose(loaded(images).loc, expected.loc, atol=1e-6)
    assert loaded.metadata["stream"] == stream
    assert loaded.metadata["dataset"] == "digits"
    served = tf.saved_model.load(str(place)).signatures["embed"](tf.constant(images))
    np.testing.assert_allclose(served["embedding"], expected.loc, atol=1e-5)
    found = loaded.network._flatten_layers()
    assert all(type(layer).__module__.startswith("keras.") for layer in found)
  prints = [json.loads((f / "metadata.json").read_text()) for f in (folder, folder / "clean")]
  assert prints[0]["fingerprint"] != prints[1]["fingerprint"]


def test_either_stream_is_exported_alone(dual, images, folder, tmp_path):
  loaded = export.load_encoder(folder / "clean")  # and exported as what it is
  alone = {"adversarial": (dual, "adversarial"), "clean": (loaded, None)}
  for stream, (encoder, chosen) in alone.items():
    target = export.export_encoder(encoder, tmp_path / stream, stream=chosen)
    found = export.load_encoder(target)
    np.testing.assert_allclose(found(images).loc, dual(images, stream=stream).loc, atol=1e-6)
    assert found.metadata["stream"] == stream
    assert not (target / "clean").exists()


def test_an_encoder_of_one_stream_says_nothing_of_streams(tmp_path):
  encoder = tiny_encoder(5)
  metadata = export.load_encoder(export.export_encoder(encoder, tmp_path / "one")).metadata
  assert "stream" not in metadata
  assert not (tmp_path / "one" / "clean").exists()
  words = "stream of this encoder 'clean'"
  refuses(words, export.export_encoder, encoder, tmp_path / "none", stream="clean")
  assert not (tmp_path / "none").exists()


def test_both_streams_of_a_frozen_backbone_have_their_pooled_features(rng):
  """The networks share the layers of scale, each with its own features."""
  encoder = tiny_encoder(inference=True)
  tiny_trainer(robustness.ACL("ds"), encoder=encoder)
  kernel = encoder.network.get_layer("raw_scale").kernel  # 0 at the start
  kernel.assign(rng.normal(size=kernel.shape))
  images = rng.uniform(size=(3, 8, 8, 1)).astype("float32")
  for stream, network in encoder.streams.items():
    features = networks.pooled(network)(images)
    expected = encoder(images, stream=stream).scale
    raw = network.get_layer("raw_scale")(features)
    assert raw.shape == expected.shape
    training = encoder(images, training=True, stream=stream)
    np.testing.assert_allclose(training.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(np.mean(training.loc, 0), np.zeros(6), atol=1e-5)  # by its norm
