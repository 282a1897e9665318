"""ViTs of PyTorch in KerasHub's backbones: equal outputs against a small forward in NumPy."""

import keras
import numpy as np
import pytest
from cases import refuses
from scipy import special
from torch_vits import DEPTH, HEADS, HIDDEN, OPENAI, PATCH, SIZE, TIMM, TOKENS, WIDTH, state

import urkle_tf
from urkle_tf import errors

IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype("float32")


def test_models_without_such_an_encoder_are_refused():
  with pytest.raises(errors.UserError, match="holds no CLIPVisionEncoder or ViTBackbone"):
    urkle_tf.import_torch_vit({}, keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def norm(x, weights, name, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)
  return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def embed(weights, names, first, places):
  """Patches [n, t, d] with the class token before them."""
  kernel = weights[names["patch"]]
  cut = IMAGES.reshape(3, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
  x = cut.reshape(3, TOKENS - 1, -1) @ kernel.reshape(WIDTH, -1).T
  x = x + weights.get("patch_embed.proj.bias", 0.0)
  return np.concatenate([np.broadcast_to(first, (3, 1, WIDTH)), x], 1) + places


def blocks(x, weights, names, activation, epsilon):
  for number in range(DEPTH):
    get = lambda layer, kind, number=number: weights[names["block"](number, layer, kind)]  # noqa: E731
    linear = lambda x, layer, get=get: x @ get(layer, "weight").T + get(layer, "bias")  # noqa: E731
    own = {f"{k}.{kind}": get(k, kind) for k in ("norm1", "norm2") for kind in ("weight", "bias")}
    qkv = linear(norm(x, own, "norm1", epsilon), "qkv").reshape(3, TOKENS, 3, HEADS, -1)
    q, k, v = np.moveaxis(qkv, 2, 0)
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(WIDTH // HEADS)
    mixed = np.einsum("nhqk,nkhd->nqhd", special.softmax(scores, -1), v)
    x = x + linear(mixed.reshape(3, TOKENS, WIDTH), "out")
    x = x + linear(activation(linear(norm(x, own, "norm2", epsilon), "fc1")), "fc2")
  return x


@pytest.fixture
def models():
  return pytest.importorskip("keras_hub", reason="needs the extra hub").models


@pytest.mark.full
def test_openai_clip(models):
  """Norm before, QuickGELU x sigmoid(1.702 x), norm after, projection of the class token."""
  weights = state(OPENAI)
  vision = models.CLIPVisionEncoder(
    PATCH, WIDTH, DEPTH, HEADS, HIDDEN, image_shape=(SIZE, SIZE, 3), name="vision"
  )
  text = models.CLIPTextEncoder(20, WIDTH, WIDTH, 1, 2, HIDDEN, name="text")
  clip = models.CLIPBackbone(vision, text, 5)
  images = keras.Input((SIZE, SIZE, 3))
  tower = keras.Model(images, clip.get_vision_embeddings(images))
  assert urkle_tf.import_torch_vit(weights, tower) == ["token_embedding.weight"]
  x = embed(
    weights, OPENAI, weights["visual.class_embedding"], weights["visual.positional_embedding"]
  )
  x = norm(x, weights, "visual.ln_pre", 1e-5)
  x = blocks(x, weights, OPENAI, lambda x: x * special.expit(1.702 * x), 1e-5)
  wanted = norm(x, weights, "visual.ln_post", 1e-5)[:, 0] @ weights["visual.proj"]
  np.testing.assert_allclose(tower(IMAGES), wanted, rtol=1e-3, atol=1e-4)
  del weights["visual.ln_pre.bias"]
  weights["visual.proj"] = np.zeros((WIDTH, 6))
  refuses("ln_pre.bias is missing; & proj is [8, 6]", urkle_tf.import_torch_vit, weights, tower)
  refuses("no name ends with conv1.weight", urkle_tf.import_torch_vit, {}, tower)


@pytest.mark.full
def test_timm(models):
  weights = state(TIMM)
  vit = models.ViTBackbone((SIZE, SIZE, 3), PATCH, DEPTH, HEADS, WIDTH, HIDDEN)
  assert urkle_tf.import_torch_vit(weights, vit) == ["head.weight"]
  x = embed(weights, TIMM, weights["cls_token"], weights["pos_embed"])
  gelu = lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2)))  # noqa: E731
  wanted = norm(blocks(x, weights, TIMM, gelu, 1e-6), weights, "norm", 1e-6)
  np.testing.assert_allclose(vit(IMAGES), wanted, rtol=1e-3, atol=1e-4)
  weights["blocks.0.ls1.gamma"] = np.zeros(WIDTH)  # of DINOv2, which scales each branch
  refuses("blocks.0.ls1.gamma has no place in it", urkle_tf.import_torch_vit, weights, vit)
