"""ViTs of PyTorch in KerasHub's backbones: equal outputs against a small forward in NumPy."""

import keras
import numpy as np
import pytest
import torch_vits
from cases import refuses
from scipy import special
from small_models import sequential
from torch_vits import DEPTH, HEADS, HIDDEN, OPENAI, PATCH, SIZE, TIMM, TOKENS, WIDTH, state

import urkle_tf

IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype("float32")


def test_models_without_such_an_encoder_are_refused():
  model, words = sequential((4,), keras.layers.Dense(2)), "holds no CLIPVisionEncoder, ViTBackbone"
  refuses(words, urkle_tf.import_torch_vit, {}, model)


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
    first, second = (weights.get(f"blocks.{number}.ls{part}.gamma", 1.0) for part in (1, 2))
    qkv = linear(norm(x, own, "norm1", epsilon), "qkv").reshape(*x.shape[:2], 3, HEADS, -1)
    q, k, v = np.moveaxis(qkv, 2, 0)
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(WIDTH // HEADS)
    mixed = np.einsum("nhqk,nkhd->nqhd", special.softmax(scores, -1), v)
    x = x + first * linear(mixed.reshape(x.shape), "out")
    x = x + second * linear(activation(linear(norm(x, own, "norm2", epsilon), "fc1")), "fc2")
  return x


def gelu(x):
  return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


def swiglu(x):
  gate, value = np.split(x, 2, -1)
  return gate * special.expit(gate) * value


@pytest.fixture
def models():
  return pytest.importorskip("keras_hub", reason="needs the extra hub").models


@pytest.mark.full
def test_openai_clip(models):
  """Norm before, QuickGELU x sigmoid(1.702 x), norm after, projection of the class token."""
  weights = state(OPENAI)
  sizes = PATCH, WIDTH, DEPTH, HEADS, HIDDEN
  vision = models.CLIPVisionEncoder(*sizes, image_shape=(SIZE, SIZE, 3), name="vision")
  text = models.CLIPTextEncoder(20, WIDTH, WIDTH, 1, 2, HIDDEN, name="text")
  clip = models.CLIPBackbone(vision, text, 5)
  images = keras.Input((SIZE, SIZE, 3))
  tower = keras.Model(images, clip.get_vision_embeddings(images))
  assert urkle_tf.import_torch_vit(weights, tower) == ["token_embedding.weight"]
  first, places = (weights[f"visual.{name}_embedding"] for name in ("class", "positional"))
  x = embed(weights, OPENAI, first, places)
  x = norm(x, weights, "visual.ln_pre", 1e-5)
  x = blocks(x, weights, OPENAI, lambda x: x * special.expit(1.702 * x), 1e-5)
  wanted = norm(x, weights, "visual.ln_post", 1e-5)[:, 0] @ weights["visual.proj"]
  np.testing.assert_allclose(tower(IMAGES), wanted, rtol=1e-3, atol=1e-4)
  del weights["visual.ln_pre.bias"]
  weights["visual.proj"] = np.zeros((WIDTH, 6))
  words = "missing: visual.ln_pre.bias; other shapes: visual.proj is 8x6, not 8x5"
  refuses(words, urkle_tf.import_torch_vit, weights, tower)
  refuses("no name ends with conv1.weight", urkle_tf.import_torch_vit, {}, tower)


@pytest.mark.full
def test_timm(models):
  weights = state(TIMM)
  vit = models.ViTBackbone((SIZE, SIZE, 3), PATCH, DEPTH, HEADS, WIDTH, HIDDEN)
  broken = weights | {"norm.bias": np.full(WIDTH, np.nan)}
  refuses("NaN or infinite: norm.bias", urkle_tf.import_torch_vit, broken, vit)
  assert urkle_tf.import_torch_vit(weights, vit) == ["head.weight"]
  x = embed(weights, TIMM, weights["cls_token"], weights["pos_embed"])
  wanted = norm(blocks(x, weights, TIMM, gelu, 1e-6), weights, "norm", 1e-6)
  np.testing.assert_allclose(vit(IMAGES), wanted, rtol=1e-3, atol=1e-4)
  weights["blocks.0.ls1.gamma"] = np.zeros(WIDTH)  # of DINOv2, which scales each branch
  refuses("further: blocks.0.ls1.gamma", urkle_tf.import_torch_vit, weights, vit)


def dinov2(models, size=SIZE, **options):
  options |= {"image_shape": (size, size, 3), "position_embedding_shape": (SIZE, SIZE)}
  sizes = PATCH, DEPTH, WIDTH, HEADS, HIDDEN
  return models.DINOV2Backbone(*sizes, num_register_tokens=2, **options)


@pytest.mark.full
@pytest.mark.parametrize(
  ("names", "activation", "options"),
  [(torch_vits.DINOV2, gelu, {}), (torch_vits.DINOV2_SWIGLU, swiglu, {"use_swiglu_ffn": True})],
  ids=["gelu", "swiglu"],
)
def test_dinov2(models, names, activation, options):
  """Branches with scales, and registers after the class token, which have no position."""
  weights, vit = state(names), dinov2(models, **options)
  assert urkle_tf.import_torch_vit(weights, vit) == []
  x = embed(weights, names, weights["cls_token"], weights["pos_embed"])
  registers = np.broadcast_to(weights["register_tokens"], (3, 2, WIDTH))
  x = np.concatenate([x[:, :1], registers, x[:, 1:]], 1)
  wanted = norm(blocks(x, weights, names, activation, 1e-6), weights, "norm", 1e-6)
  np.testing.assert_allclose(vit({"images": IMAGES}), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_positions_of_dinov2_are_interpolated_as_kerashub_does_it(models, tmp_path):
  vit, again = (dinov2(models, size=2 * SIZE) for _ in range(2))
  urkle_tf.import_torch_vit(state(torch_vits.DINOV2), vit)
  vit.save_weights(tmp_path / "vit.weights.h5")
  again.load_weights(tmp_path / "vit.weights.h5")  # interpolates
  found, wanted = (model.embeddings.interpolated_position_embeddings for model in (vit, again))
  assert found.shape == (1, 17, WIDTH)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
