"""Families of image models, as they are built by others, made robust and still themselves."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.applications import MobileNetV3Small
from keras.src.applications import (  # small ones: the public functions build full sizes
  convnext,
  densenet,
  efficientnet_v2,
  resnet,
)
from small_models import photographs

import urkle_tf
from urkle_tf import networks
from urkle_tf.networks import foreign, pixels

pytestmark = pytest.mark.usefixtures("undrawn")
SHAPE = (32, 32, 3)
_BARE = {"include_top": False, "weights": None, "input_shape": SHAPE}


def _residual(x):
  for number, filters in enumerate((4, 8)):
    x = resnet.stack_residual_blocks_v1(x, filters, 1, name=f"conv{number + 2}")
  return x


def _residual_v2(x):
  return resnet.stack_residual_blocks_v2(x, 4, 2, name="conv2")


# {its name: how each is built, and the pixels that it expects}
APPLICATIONS = {
  "convnext_tiny": (partial(convnext.ConvNeXt, [1, 1, 1, 1], [4, 8, 8, 12]), "255"),
  "efficientnetv2-b0": (partial(efficientnet_v2.EfficientNetV2, 0.1, 0.1, 32), "255"),
  "MobileNetV3Small": (partial(MobileNetV3Small, alpha=0.35, minimalistic=True), "255"),
  "resnet50": (partial(resnet.ResNet, _residual, False, True), "caffe"),
  "densenet121": (partial(densenet.DenseNet, [1, 1, 1, 1]), "torch"),
  "resnet50v2": (partial(resnet.ResNet, _residual_v2, True, True, pooling="avg"), "tf"),
}


HUB = {
  "ViT": lambda models: models.ViTBackbone(SHAPE, 8, 1, 2, 8, 16),
  "DINOv2": lambda models: models.DINOV2Backbone(
    8, 1, 8, 2, 16, num_register_tokens=1, image_shape=SHAPE, position_embedding_shape=SHAPE
  ),
  "CLIP": lambda models: models.CLIPVisionEncoder(8, 8, 1, 2, 16, image_shape=SHAPE),
  "SigLIP": lambda models: models.SigLIPVisionEncoder(8, 8, 1, 2, 16, image_shape=SHAPE),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return photographs(tmp_path_factory.mktemp("photographs"))


def check(model, convention, folder, tmp_path, **options):
  original = model.get_weights()
  options |= {"dataset": f"folder:{folder}", "split": "all", "batch_size": 8, "epochs": 1}
  options |= {"attack_steps": 1, "learning_rate": 1e-3, "optimizer": "adamw"}
  result = urkle_tf.robustify(model, tmp_path / "run", drop_in=True, **options)
  # The same model with other weights.
  assert (type(result), result.name) == (type(model), model.name)
  shapes = lambda tensors: keras.tree.map_structure(lambda x: x.shape, tensors)  # noqa: E731
  assert shapes(result.input) == shapes(model.input)
  assert shapes(result.output) == shapes(model.output)
  for before, now, weight in zip(original, model.get_weights(), result.weights, strict=True):
    np.testing.assert_array_equal(before, now)  # what was given is as it was
    assert weight.shape == before.shape
    if weight.name.startswith("moving_"):  # batch norms kept their statistics
      np.testing.assert_array_equal(before, weight.numpy())
  assert any((b != w).any() for b, w in zip(original, result.get_weights(), strict=True))
  # The encoder in [0, 1], the model in its own pixels, and the model that was written, agree.
  rng = np.random.default_rng(1)
  images = rng.uniform(size=(3, *SHAPE)).astype("float32")
  loc = urkle_tf.load_encoder(tmp_path / "run" / "encoder")(images, training=False).loc
  own = np.asarray(pixels.folding(convention)(images))
  written = keras.saving.load_model(tmp_path / "run" / "model.keras")
  found = written({"images": own} if isinstance(model.input, dict) else own, training=False)
  maps = foreign._pooled(result, keras.ops.convert_to_tensor(found), None)
  embedding = np.asarray(maps).mean((1, 2)) if len(maps.shape) == 4 else np.asarray(maps)
  np.testing.assert_allclose(loc, embedding, rtol=1e-3, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name, folder, tmp_path):
  build, convention = APPLICATIONS[name]
  keras.utils.set_random_seed(0)
  check(build(name=name, **_BARE), convention, folder, tmp_path)


@pytest.mark.full
def test_dinov2_at_another_image_size_is_saved_as_it_was_trained(tmp_path):
  models = pytest.importorskip("keras_hub", reason="needs the extra hub").models
  sizes = {"image_shape": SHAPE, "position_embedding_shape": (16, 16)}
  models.DINOV2Backbone(8, 1, 8, 2, 16, **sizes).save(tmp_path / "dinov2.keras")
  encoder = urkle_tf.GaussianEncoder(networks.backbone(str(tmp_path / "dinov2.keras"), SHAPE))
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR())
  trainer.compile(optimizer="adam")
  images = np.random.default_rng(0).uniform(size=(2, 8, *SHAPE)).astype("float32")
  before = np.asarray(encoder.network(images[0])["loc"])
  trainer.fit(tf.data.Dataset.from_tensors(tuple(images)).repeat(5), verbose=0)
  after = np.asarray(encoder.network(images[0])["loc"])
  assert np.abs(after - before).max() > 0.01
  encoder.network.save(tmp_path / "trained.keras")
  again = keras.saving.load_model(tmp_path / "trained.keras")
  np.testing.assert_allclose(again(images[0])["loc"], after, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("family", HUB)
def test_hub(family, folder, tmp_path):
  keras.utils.set_random_seed(0)
  models = pytest.importorskip("keras_hub", reason="needs the extra hub").models
  check(HUB[family](models), "tf", folder, tmp_path, preprocess="tf")
