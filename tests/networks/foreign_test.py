"""Anybody's models as networks of images in [0, 1]: which output, which token, which shapes."""

import keras
import numpy as np
import pytest
from cases import refuses
from small_models import sequential

from urkle_tf import networks
from urkle_tf.networks import foreign

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype("float32")


@keras.saving.register_keras_serializable("foreign_test")
class ClassToken(layers.Layer):
  """Puts a learnt vector before the tokens."""

  def build(self, shape):
    self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="normal", name="class_token")

  def call(self, tokens):
    first = keras.ops.repeat(self.token, keras.ops.shape(tokens)[0], axis=0)
    return keras.ops.concatenate([first, tokens], axis=1)


@keras.saving.register_keras_serializable("foreign_test")
class Subclassed(keras.Model):
  """A model that does not say what it takes."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.maps, self.top = layers.Conv2D(4, 3), layers.Dense(5)

  def build(self, shape):
    self.maps.build(shape)
    self.top.build((None, 4))

  def call(self, images):
    return self.top(keras.ops.mean(self.maps(images), axis=(1, 2)))


def tokens(class_token):
  images = keras.Input((8, 8, 3))
  found = layers.Reshape((4, 6))(layers.Conv2D(6, 4, strides=4)(images))
  return keras.Model(images, ClassToken()(found) if class_token else found, name="tokens")


@pytest.mark.parametrize("name", ["images", "loc", "scale", "raw_scale", "centred", "spread"])
def test_a_model_with_the_name_of_a_layer_around_it_is_refused(name):
  """Keras refuses most of them in a traceback; a backbone named spread was frozen in its export."""
  model = sequential((8, 8, 3), layers.Conv2D(4, 3))
  model.name = name
  refuses(f"cannot be named '{name}' & set model.name", networks.GaussianEncoder, model)
  if name == "images":
    refuses("cannot be named 'images'", foreign.take, model)
  model.name = "backbone"
  networks.GaussianEncoder(foreign.take(model))


def test_the_class_token_counts_where_there_is_one():
  model = tokens(True)
  all_of_them = np.asarray(model(IMAGES))
  np.testing.assert_array_equal(foreign.take(model)(IMAGES), all_of_them[:, 0])
  mean = foreign.take(model, pool="mean")(IMAGES)
  np.testing.assert_allclose(mean, all_of_them.mean(1), rtol=1e-5, atol=1e-6)


def test_tokens_that_say_nothing_are_asked_about():
  model = tokens(False)
  refuses('tokens & has no class token & pool="token"', foreign.take, model)
  np.testing.assert_array_equal(foreign.take(model, pool="token")(IMAGES), model(IMAGES)[:, 0])
  refuses("unknown pool", foreign.take, model, pool="max")


def several(names):
  images = keras.Input((8, 8, 3))
  maps = layers.Conv2D(4, 3)(images)
  embedding = layers.GlobalAveragePooling2D()(maps)
  return keras.Model(images, dict(zip(names, (embedding, layers.Dense(2)(embedding)), strict=True)))


def test_one_of_several_outputs():
  model = several(("embedding", "logits"))
  found = model(IMAGES)
  np.testing.assert_array_equal(foreign.take(model)(IMAGES), found["embedding"])
  np.testing.assert_array_equal(foreign.take(model, output="logits")(IMAGES), found["logits"])
  refuses("unknown output", foreign.take, model, output="scores")
  refuses("none is named embedding or", foreign.take, several(("one", "another")))
  pair = keras.Model(model.input, list(model.output.values()))
  np.testing.assert_array_equal(foreign.take(pair, output=1)(IMAGES), pair(IMAGES)[1])


def test_inputs_in_a_dict_and_models_within_models():
  inner = several(("embedding", "logits"))
  images = keras.Input((8, 8, 3), name="images")
  last = keras.Sequential([layers.Dense(7)])(inner(images)["logits"])
  model = keras.Model({"images": images}, last)
  np.testing.assert_allclose(foreign.take(model)(IMAGES), model({"images": IMAGES}), rtol=1e-6)


def test_a_subclassed_model_needs_the_size_of_its_images(tmp_path):
  model = Subclassed()
  refuses("does not declare its image size", foreign.take, model)
  taken = foreign.take(model, (8, 8, 3), preprocess="255")
  np.testing.assert_allclose(taken(IMAGES), model(255.0 * IMAGES), rtol=1e-5)
  taken.save(tmp_path / "taken.keras")
  again = keras.saving.load_model(tmp_path / "taken.keras")
  np.testing.assert_array_equal(again(IMAGES), taken(IMAGES))


def test_what_cannot_be_taken():
  images, other = keras.Input((8, 8, 3)), keras.Input((4,))
  both = keras.Model([images, other], layers.Dense(3)(other))
  refuses("one batch of images & keras.Model(images, embedding)", foreign.take, both)
  integers = keras.Input((8, 8, 3), dtype="uint8")
  whole = keras.Model(integers, layers.Flatten()(integers))
  refuses("takes uint8 images", foreign.take, whole)
  fixed = keras.Input((8, 8, 3), batch_size=2)
  refuses("takes only batches of 2", foreign.take, keras.Model(fixed, layers.Flatten()(fixed)))
  volume = keras.Model(images, layers.Reshape((8, 8, 3, 1))(images))
  refuses("must return features", foreign.take, volume)


@pytest.mark.parametrize("nested", [False, True])
def test_feature_maps_with_their_channels_first_are_refused(nested):
  """Their mean was taken over channels and height, and the width became the embedding."""
  first = layers.Permute((3, 1, 2)), layers.Conv2D(6, 3, data_format="channels_first")
  model = sequential((8, 8, 3), *first, layers.BatchNormalization(axis=1), layers.ReLU())
  model = sequential((8, 8, 3), model) if nested else model
  for taken in (foreign.take, networks.GaussianEncoder):
    refuses("[n, d, h, w] & put keras.layers.Permute((2, 3, 1))", taken, model)
  last = sequential((8, 8, 3), model, layers.Permute((2, 3, 1)))
  found = networks.pooled(networks.GaussianEncoder(last, preprocess="unit").network)(IMAGES)
  np.testing.assert_allclose(found, np.mean(model(IMAGES), (2, 3)), rtol=1e-5, atol=1e-6)


def test_frozen_layers_of_a_file_learn_too(tmp_path):
  inner = sequential((8, 8, 3), layers.Conv2D(4, 3), layers.BatchNormalization())
  images = keras.Input((8, 8, 3))
  model = keras.Model(images, layers.Dense(5)(layers.Flatten()(inner(images))))
  count = len(model.trainable_variables)
  for name, part in (("all", model), ("some", inner)):
    model.trainable = True
    part.trainable = False
    model.save(tmp_path / f"{name}.keras")
    backbone = networks.backbone(str(tmp_path / f"{name}.keras"), (8, 8, 3))
    assert len(backbone.trainable_variables) == count


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_weights_that_are_not_float32_are_refused(tmp_path, dtype):
  sequential((8, 8, 3), layers.Conv2D(4, 3, dtype=dtype)).save(tmp_path / "low.keras")
  words = f"it has {dtype} weights & build it with the dtype"
  refuses(words, networks.backbone, str(tmp_path / "low.keras"), (8, 8, 3))
