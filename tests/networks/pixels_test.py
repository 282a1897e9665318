"""Conventions of pixels: against keras.applications, found out from models, and wrong ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from urkle_tf.networks import foreign, pixels

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize(
  "name, module", [("caffe", "resnet"), ("torch", "densenet"), ("tf", "mobilenet_v2")]
)
def test_conventions_are_those_of_keras_applications(name, module):
  wanted = getattr(keras.applications, module).preprocess_input(255.0 * IMAGES)
  np.testing.assert_allclose(pixels.CONVENTIONS[name](IMAGES), wanted, rtol=1e-4, atol=1e-4)


def test_a_convention_is_saved_with_the_model(tmp_path):
  images = keras.Input((8, 8, 3))
  taken = foreign.take(keras.Model(images, layers.Flatten()(images)), preprocess="caffe")
  taken.save(tmp_path / "model.keras")
  again = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(again(IMAGES), taken(IMAGES))


def test_the_scale_and_offset_of_an_image_converter():
  class ImageConverter:  # as KerasHub's, which is no dependency
    scale, offset = [0.0171, 0.0175, 0.0174], [-2.1, -2.0, -1.8]

  found = pixels.folding(ImageConverter())(IMAGES)
  wanted = 255.0 * IMAGES * np.array(ImageConverter.scale) + np.array(ImageConverter.offset)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  ImageConverter.scale = ImageConverter.offset = None
  np.testing.assert_allclose(pixels.folding(ImageConverter())(IMAGES), 255 * IMAGES, rtol=1e-6)


def model_of(*first, name="model"):
  return keras.Sequential([keras.Input((8, 8, 3)), *first, layers.Conv2D(2, 3)], name=name)


@pytest.mark.parametrize(
  "model, wanted",
  [
    (model_of(layers.Rescaling(1 / 255)), "255"),
    (model_of(layers.Rescaling(1 / 127.5, -1.0)), "255"),
    (model_of(keras.Sequential([layers.Rescaling(1 / 255)])), "255"),
    (model_of(layers.Normalization(mean=[120.0] * 3, variance=[58.0**2] * 3)), "255"),
    (model_of(layers.Normalization(mean=[0.5] * 3, variance=[0.05] * 3)), "unit"),
    (model_of(layers.Rescaling(255.0), layers.Rescaling(1 / 255)), "unit"),
    (model_of(layers.Rescaling(0.1)), None),
    (model_of(layers.RandomZoom(0.1), layers.Resizing(8, 8), layers.Rescaling(1 / 255)), "255"),
    (model_of(keras.Sequential([layers.RandomFlip()]), layers.Rescaling(1 / 255)), "255"),
    (model_of(layers.ZeroPadding2D(1), layers.Conv2D(3, 1), layers.Rescaling(1 / 255)), None),
    (model_of(name="resnet50"), "caffe"),
    (model_of(name="vgg16"), "caffe"),
    (model_of(name="densenet121"), "torch"),
    (model_of(name="inception_resnet_v2"), "tf"),
    (model_of(name="mobilenetv2_1.00_224"), "tf"),
    (model_of(), None),
    (model_of(layers.Conv2D(3, 1), layers.Rescaling(1 / 255)), None),
  ],
)
def test_what_a_model_says_it_expects(model, wanted):
  assert pixels.expected(model)[0] == wanted


def test_an_operation_in_front_hides_what_the_model_says():
  """Preprocessing that the user put in front as a function is not added again."""
  images = keras.Input((8, 8, 3))
  outer = keras.Model(images, model_of(layers.Rescaling(1 / 255))(255.0 * images))
  assert pixels.expected(outer)[0] is None


def test_what_contradicts_the_first_layer_is_refused():
  model = model_of(layers.Rescaling(1 / 255))
  for preprocess in ("unit", "tf", layers.Rescaling(2.0)):
    refuses("expects pixels up to 255", foreign.take, model, preprocess=preprocess)
  unit, words = model_of(layers.Rescaling(2.0, -1.0)), "expects pixels up to 1, by its first layer"
  refuses(words, foreign.take, unit, preprocess="255")
  for right, preprocess in ((model, "255"), (model, "caffe"), (unit, "torch")):
    foreign.take(right, preprocess=preprocess)
  shape = (8, 8, 3)
  assert [pixels.chosen(one, None, shape)[1] is None for one in (model, unit)] == [False, True]
  assert pixels.chosen(model, "255", (None, None, 3))[1] is None  # images of any size
  refuses("unknown preprocess", foreign.take, model, preprocess="vgg")
  refuses("a Keras layer, or a function", foreign.take, model, preprocess=3)


def test_preprocessing_that_fails_ends_in_one_line():
  words = "preprocess fails on images of 8x8x3 & a function of keras.ops"
  fails = lambda images: images["image"]  # noqa: E731
  refuses(words, foreign.take, model_of(layers.Rescaling(1 / 255)), preprocess=fails)
  standardise = tf.image.per_image_standardization  # takes no Keras tensors
  for preprocess in (standardise, lambda images: images[..., 0], layers.Rescaling):
    refuses(words, foreign.take, model_of(), preprocess=preprocess)


def test_the_preprocessing_of_keras_applications_takes_other_pixels():
  """It got pixels in [0, 1], and nothing showed it in a model without batch norms."""
  given = keras.applications.vgg16.preprocess_input
  model = model_of(name="vgg16")
  refuses("takes pixels up to 255: leave preprocess", foreign.take, model, preprocess=given)
  taken = foreign.take(model, preprocess=lambda images: given(255 * images))
  np.testing.assert_allclose(taken(IMAGES), model(given(255.0 * IMAGES)), rtol=1e-4, atol=1e-3)


def test_preprocessing_by_pixel_is_tried_on_images_of_the_models_size():
  mean = np.random.default_rng(1).uniform(size=(8, 8, 3))
  preprocess = layers.Normalization(axis=(1, 2, 3), mean=mean, variance=np.ones_like(mean))
  model = model_of(layers.Rescaling(2.0, -1.0))
  wanted = model((IMAGES - mean).astype("float32"))
  found = foreign.take(model, preprocess=preprocess)(IMAGES)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def with_statistics(convention):
  """A convolution and a batch norm that has seen images in a convention."""
  keras.utils.set_random_seed(0)
  norm = layers.BatchNormalization(momentum=0.0)
  model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), norm, layers.Flatten()])
  model(pixels.CONVENTIONS[convention](IMAGES), training=True)
  return model


@pytest.mark.parametrize("convention", ["255", "tf", "torch", "caffe"])
def test_a_wrong_scale_is_seen_in_batch_norms(convention):
  model = with_statistics(convention)
  pixels.check(foreign.take(model, preprocess=convention), IMAGES, "it")
  darker = 0.5 * IMAGES  # other images of the right scale
  pixels.check(foreign.take(model, preprocess=convention), darker, "it")
  if convention == "tf":  # of the same order as [0, 1]: nothing is claimed
    pixels.check(model, IMAGES, "it")
    return
  refuses(f"wrong scale & preprocess='{convention}'", pixels.check, model, IMAGES, "it")


def test_a_scale_that_no_convention_has_is_refused_too():
  norm = layers.BatchNormalization(momentum=0.0)
  model = keras.Sequential([keras.Input((8, 8, 1)), norm])  # its epsilon is 0.001
  grey = IMAGES[..., :1]
  model(1e4 * grey, training=True)
  words = "values of 9.88e+07 times the variance. Give robustify preprocess= that"
  refuses(words, pixels.check, model, grey, "it")
  assert norm.call.__name__ == "call"  # the layer's own again
  model(255 * grey, training=True)
  refuses("preprocess='255', which fits", pixels.check, model, grey, "it")


@pytest.mark.parametrize("axis", [1, -1])
def test_the_distance_is_that_of_two_gaussians(rng, axis):
  norm = layers.BatchNormalization(axis=axis, epsilon=0.1)
  model = keras.Sequential([keras.Input((8, 8, 3)), norm])
  mean, variance = rng.uniform(0.1, 2, size=(2, *norm.moving_mean.shape))
  norm.moving_mean.assign(mean)
  norm.moving_variance.assign(variance)
  axes = tuple({0, 1, 2, 3} - {axis % 4})
  m, v, top = IMAGES.mean(axes), IMAGES.var(axes) + 0.1, variance + 0.1
  wanted = 0.5 * (v / top + (m - mean) ** 2 / top - 1 - np.log(v / top))
  found, ratio = pixels._FirstNorm(model).distance(IMAGES)
  assert found == pytest.approx(wanted.mean(), rel=1e-4)
  assert ratio == pytest.approx(np.median(v / top), rel=1e-4)


def test_nothing_is_claimed_without_statistics():
  norm = layers.BatchNormalization()
  pixels.check(keras.Sequential([keras.Input((8, 8, 3)), norm]), 255.0 * IMAGES, "it")
  pixels.check(model_of(), 255.0 * IMAGES, "it")
