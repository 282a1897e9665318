"""Anybody's models: what is read of them, and what is refused."""

import keras
import numpy as np
import tensorflow as tf
from cases import refuses
from small_models import tiny_encoder

from urkle_tf.networks.saved import foreign_models

SHAPE = (4, 4, 1)


def saved(folder, signatures):
  tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
  return folder


def test_signatures_are_listed(tmp_path):
  spec = tf.TensorSpec([None, 10], tf.float32, name="features")
  score = tf.function(lambda features: {"y": features[:, :2]}, input_signature=[spec])
  folder = saved(tmp_path / "m", {"serving_default": score, "rank": score})
  own = "serving_default(features: float32 [None, 10]) -> y: float32 [None, 2]"
  refuses(f"{own} & rank(features", foreign_models.load, folder)


def test_other_misfits_of_saved_models(tmp_path):
  flat, load = (lambda x: tf.reshape(x, [-1, 16])), foreign_models.load
  spec, fixed = (tf.TensorSpec([n, *SHAPE], tf.float32, name="x") for n in (None, 3))
  two = tf.function(lambda x: {"a": flat(x), "b": flat(x)}, input_signature=[spec])
  two = saved(tmp_path / "two", {"serving_default": two})
  refuses("several outputs (a [None, 16], b", load, two)
  refuses("it has none: write it with model.export", load, saved(tmp_path / "none", None))
  three = {"serving_default": tf.function(flat, input_signature=[fixed])}
  refuses("takes only batches of 3", load, saved(tmp_path / "fixed", three))
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "saved_model.pb").write_bytes(b"no")
  refuses("cannot read", foreign_models.load, tmp_path / "broken")


def test_misfits_of_keras_files(tmp_path):
  refuses("no file 'nowhere.keras'", foreign_models.load, "nowhere.keras")
  (tmp_path / "broken.keras").write_bytes(b"no")
  refuses("cannot read", foreign_models.load, tmp_path / "broken.keras")
  flat = keras.Input((16,))
  keras.Model(flat, keras.layers.Dense(2)(flat)).save(tmp_path / "flat.keras")
  words = "one batch of images [n, h, w, c], but takes"
  refuses(words, foreign_models.load, tmp_path / "flat.keras")


def test_keras_files_of_what_this_package_exports(tmp_path):
  """Keras would not export an encoder: the message names what does."""
  encoder = tiny_encoder()
  encoder.save(tmp_path / "encoder.keras")
  load, embedding = foreign_models.load, foreign_models.EMBEDDING
  refuses("of urkle_tf, export_encoder or", load, tmp_path / "encoder.keras", embedding)
  folder, images = str(tmp_path / "saved"), keras.Input((8, 8, 1))
  encoder.network.export(folder, verbose=False)
  keras.Model(images, keras.layers.TFSMLayer(folder)(images)).save(tmp_path / "layer.keras")
  refuses("or a SavedModel (a TFSMLayer),", load, tmp_path / "layer.keras", embedding)


def test_an_embedding_is_distinguished_from_scores(tmp_path):
  images = np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype("float32")
  inputs = keras.Input(SHAPE)
  maps = keras.layers.Conv2D(5, 3)(inputs)
  scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps))
  model = keras.Model(inputs, {"scores": scores, "features": maps})
  model.save(tmp_path / "both.keras")
  loaded = foreign_models.load(tmp_path / "both.keras", foreign_models.EMBEDDING)
  np.testing.assert_allclose(loaded.function(images), model(images)["features"], rtol=1e-5)
  loaded = foreign_models.load(tmp_path / "both.keras")
  np.testing.assert_allclose(loaded.function(images), model(images)["scores"], rtol=1e-5)
  keras.Model(inputs, {"a": scores, "b": maps}).export(str(tmp_path / "names"), verbose=False)
  given = tmp_path / "names", foreign_models.EMBEDDING
  refuses("none is named embedding or loc", foreign_models.load, *given)
