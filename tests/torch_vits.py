"""Random state_dicts of small PyTorch ViTs."""

import numpy as np

WIDTH, HEADS, DEPTH, PATCH, SIZE, HIDDEN = 8, 2, 2, 8, 16, 12
TOKENS = (SIZE // PATCH) ** 2 + 1


def state(names):
  """Random weights of a ViT, {name: array}, in PyTorch's shapes."""
  rng = np.random.default_rng(0)
  block = {"norm1": (WIDTH,), "qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "norm2": (WIDTH,)}
  block |= {"fc1": (HIDDEN, WIDTH), "fc2": (WIDTH, HIDDEN), **names.get("dense", {})}
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


def swiglu(number, layer, kind):
  name = timm(number, layer, kind)
  return name.replace("fc1", "w12").replace("fc2", "w3")


# {shapes of what is in no block}
_OPENAI = {f"visual.ln_{n}.{kind}": WIDTH for n in ("pre", "post") for kind in ("weight", "bias")}
_OPENAI |= {"visual.class_embedding": WIDTH, "visual.positional_embedding": (TOKENS, WIDTH)}
_OPENAI |= {"visual.proj": (WIDTH, 5), "token_embedding.weight": (7, WIDTH)}
_BOTH = {"patch_embed.proj.bias": WIDTH, "norm.weight": WIDTH, "norm.bias": WIDTH}
_BOTH |= {"cls_token": (1, 1, WIDTH), "pos_embed": (1, TOKENS, WIDTH)}
_DINOV2 = {f"blocks.{number}.ls{part}.gamma": WIDTH for number in range(DEPTH) for part in (1, 2)}
_DINOV2 |= {"mask_token": (1, WIDTH), "register_tokens": (1, 2, WIDTH), **_BOTH}

OPENAI = {"patch": "visual.conv1.weight", "block": openai, "more": _OPENAI}
TIMM = {"patch": "patch_embed.proj.weight", "block": timm}
TIMM["more"] = {**_BOTH, "head.weight": (10, WIDTH)}
DINOV2 = {**TIMM, "more": _DINOV2}
# The width of a SwiGLU's halves is two thirds of what is asked for, rounded up to a multiple of 8.
DINOV2_SWIGLU = {**DINOV2, "block": swiglu, "dense": {"fc1": (16, WIDTH), "fc2": (WIDTH, 8)}}
