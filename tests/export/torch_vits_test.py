"""ViTs of PyTorch in KerasHub's backbones: equal outputs against a small forward in NumPy."""

import keras
import numpy as np
import pytest
from scipy import special

import urkle_tf
from urkle_tf import errors

WIDTH, HEADS, DEPTH, PATCH, SIZE, HIDDEN = 8, 2, 2, 8, 16, 12
TOKENS = (SIZE // PATCH) ** 2 + 1
IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype("float32")


def test_models_without_such_an_encoder_are_refused():
  with pytest.raises(errors.UserError, match="holds no CLIPVisionEncoder or ViTBackbone"):
    urkle_tf.import_torch_vit({}, keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def state(names):
  """Random weights of a ViT, {name: array}, in PyTorch's shapes."""
  rng = np.random.default_rng(0)
  block = {
    "norm1": (WIDTH,),
    "qkv": (3 * WIDTH, WIDTH),
    "out": (WIDTH, WIDTH),
    "norm2": (WIDTH,),
    "fc1": (HIDDEN, WIDTH),
    "fc2": (WIDTH, HIDDEN),
  }
  shapes = {names["patch"]: (WIDTH, 3, PATCH, PATCH), **names["more"]}
  for number in range(DEPTH):
    for layer, shape in block.items():
      shapes[names["block"](number, layer, "weight")] = shape
      shapes[names["block"](number, layer, "bias")] = shape[:1]
  return {name: rng.normal(0, 0.3, shape).astype("float32") for name, shape in shapes.items()}


def openai(number, layer, kind):
  inner = {"norm1": "ln_1", "norm2": "ln_2", "out": "attn.out_proj"}
  inner |= {"fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
  name = f"attn.in_proj_{kind}" if layer == "qkv" else f"{inner[layer]}.{kind}"
  return f"visual.transformer.resblocks.{number}.{name}"


def timm(number, layer, kind):
  inner = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "out": "attn.proj"}
  inner |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
  return f"blocks.{number}.{inner[layer]}.{kind}"


OPENAI = {
  "patch": "visual.conv1.weight",
  "block": openai,
  "more": {
    "visual.class_embedding": WIDTH,
    "visual.positional_embedding": (TOKENS, WIDTH),
    "visual.ln_pre.weight": WIDTH,
    "visual.ln_pre.bias": WIDTH,
    "visual.ln_post.weight": WIDTH,
    "visual.ln_post.bias": WIDTH,
    "visual.proj": (WIDTH, 5),
    "token_embedding.weight": (7, WIDTH),
  },
}
TIMM = {
  "patch": "patch_embed.proj.weight",
  "block": timm,
  "more": {
    "patch_embed.proj.bias": WIDTH,
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, TOKENS, WIDTH),
    "norm.weight": WIDTH,
    "norm.bias": WIDTH,
    "head.weight": (10, WIDTH),
  },
}


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
  with pytest.raises(errors.UserError, match=r"ln_pre.bias is missing; .*proj is \[8, 6\]"):
    urkle_tf.import_torch_vit(weights, tower)
  with pytest.raises(errors.UserError, match=r"no name ends with conv1\.weight"):
    urkle_tf.import_torch_vit({}, tower)


@pytest.mark.full
def test_timm(models):
  weights = state(TIMM)
  vit = models.ViTBackbone((SIZE, SIZE, 3), PATCH, DEPTH, HEADS, WIDTH, HIDDEN)
  assert urkle_tf.import_torch_vit(weights, vit) == ["head.weight"]
  x = embed(weights, TIMM, weights["cls_token"], weights["pos_embed"])
  gelu = lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2)))  # noqa: E731
  wanted = norm(blocks(x, weights, TIMM, gelu, 1e-6), weights, "norm", 1e-6)
  np.testing.assert_allclose(vit(IMAGES), wanted, rtol=1e-3, atol=1e-4)
