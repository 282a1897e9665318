"""Loads weights of PyTorch ViTs, as arrays, into KerasHub's backbones, without PyTorch."""

import keras
import numpy as np

from urkle_tf import errors
from urkle_tf.export import torch_weights
from urkle_tf.export.torch_weights import place
from urkle_tf.networks import keras_private

# The patches' weights, by which a checkpoint's naming is recognised, and where its blocks are.
_OPENAI, _TIMM = "conv1.weight", "patch_embed.proj.weight"
_BLOCKS = {_OPENAI: "transformer.resblocks.", _TIMM: "blocks."}


def import_torch_vit(arrays, model, prefix=None):
  """Fills a ViT of KerasHub with the weights of a PyTorch checkpoint.

  Weights with the names of OpenAI's CLIP, `visual.transformer.resblocks.0...` (also FARE's
  encoders), go into a `CLIPVisionEncoder`, and their projection goes into the layer
  `vision_projection` of a model around it.  Weights with the names of timm,
  `blocks.0.attn.qkv.weight`, go into a `ViTBackbone`, and those of DINOv2, which has
  `blocks.0.ls1.gamma` as well, into a `DINOV2Backbone`; its positions are interpolated to the
  model's image size, as KerasHub does it.  Nothing is assigned unless everything fits.

  Args:
    arrays: {name: array}, a state_dict as NumPy arrays: a dict, or what `numpy.load` opened.
    model: a Keras model that is or contains such an encoder.
    prefix: the prefix of the names, such as `"visual."`, if the checkpoint holds several ViTs.

  Returns:
    A list of the names in the checkpoint that were left out: text towers, heads.

  Raises:
    UserError: if the model contains no such encoder, an array is missing, has another shape or is
      not finite, or the checkpoint's blocks hold more than the encoder's, such as DINOv2's scales
      for a `ViTBackbone`.

  ```python
  import keras_hub

  model = keras_hub.models.ViTBackbone((224, 224, 3), 16, 12, 12, 768, 3072)  # ViT-B/16
  with np.load("vit.npz") as arrays:  # a state_dict of timm's, saved by np.savez
    left_out = urkle_tf.import_torch_vit(arrays, model)
  ```
  """
  parts = [model, *keras_private.layers(model, itself=False)]
  named = {
    "CLIPVisionEncoder": (_OPENAI, _of_clip),
    "ViTBackbone": (_TIMM, _of_timm),
    "DINOV2Backbone": (_TIMM, _of_dinov2),
  }
  found = [(part, named[type(part).__name__]) for part in parts if type(part).__name__ in named]
  if not found:
    raise errors.UserError(
      f"{model.name!r} holds no CLIPVisionEncoder, ViTBackbone or DINOV2Backbone of KerasHub: "
      "give a model that has one"
    )
  encoder, (mark, wanted) = found[0]
  before = torch_weights.prefix_of("ViT", set(arrays), mark, prefix)
  projection = [part for part in parts if part.name == "vision_projection"]
  places = [(before + name, *rest) for name, *rest in wanted(encoder, projection)]
  # A network of more layers, or of others in them, is not this one.
  further = lambda name: name.startswith(before + _BLOCKS[mark])  # noqa: E731
  return torch_weights.fill(encoder, arrays, places, further)


# Each of these yields triples as `place` returns them.


def _norm(name, layer):
  yield place(f"{name}.weight", layer.gamma)
  yield place(f"{name}.bias", layer.beta)


def _linear(name, layer):
  """[out, in] in PyTorch; [in, out] in Keras, or with the attention heads on a separate axis."""
  kernel, bias, width = layer.kernel, layer.bias, int(np.prod(layer.bias.shape))
  shape = width, int(np.prod(kernel.shape)) // width
  yield f"{name}.weight", shape, lambda value: [(kernel, value.T.reshape(kernel.shape))]
  yield f"{name}.bias", (width,), lambda value: [(bias, value.reshape(bias.shape))]


def _attention(weight, bias, layer):
  """Queries, keys and values, which PyTorch stacks in one array."""
  parts = (layer.query_dense, layer.key_dense, layer.value_dense)
  width = int(np.prod(parts[0].bias.shape))

  def thirds(variables):
    return lambda value: [
      (variable, third.T.reshape(variable.shape))
      for variable, third in zip(variables, np.split(value, 3), strict=True)
    ]

  yield weight, (3 * width, width), thirds([part.kernel for part in parts])
  yield bias, (3 * width,), thirds([part.bias for part in parts])


def _of_clip(encoder, projection):
  start = encoder.embedding
  places, ids = start.position_embedding.embeddings, start.position_ids
  count = np.arange(places.shape[0])[None]
  yield place(_OPENAI, start.patch_embedding.kernel)
  yield place("class_embedding", start.class_embedding)
  # KerasHub keeps the numbers of the positions with the weights.
  shape = tuple(places.shape)
  yield "positional_embedding", shape, lambda value: [(places, value), (ids, count)]
  yield from _norm("ln_pre", encoder.pre_layer_norm)
  for number, block in enumerate(encoder.encoder_layers):
    name = f"transformer.resblocks.{number}"
    yield from _norm(f"{name}.ln_1", block.layer_norm_1)
    yield from _attention(
      f"{name}.attn.in_proj_weight", f"{name}.attn.in_proj_bias", block.attention
    )
    yield from _linear(f"{name}.attn.out_proj", block.attention.output_dense)
    yield from _norm(f"{name}.ln_2", block.layer_norm_2)
    yield from _linear(f"{name}.mlp.c_fc", block.dense_1)
    yield from _linear(f"{name}.mlp.c_proj", block.dense_2)
  yield from _norm("ln_post", encoder.layer_norm)
  for layer in projection:
    yield place("proj", layer.kernel)  # [in, out] in both


def _of_timm(backbone, projection):
  layers = {layer.name: layer for layer in backbone.layers}
  start, encoder = layers["vit_patching_and_embedding"], layers["vit_encoder"]
  patches, places = start.patch_embedding, start.position_embedding.embeddings
  yield place(_TIMM, patches.kernel)
  yield place("patch_embed.proj.bias", patches.bias)
  yield place("cls_token", start.class_token)
  yield "pos_embed", (1, *places.shape), lambda value: [(places, value[0])]
  for number, block in enumerate(encoder.encoder_layers):
    norms = block.layer_norm_1, block.layer_norm_2
    yield from _timm_block(f"blocks.{number}", norms, block.mha)
    yield from _linear(f"blocks.{number}.mlp.fc1", block.mlp.dense_1)
    yield from _linear(f"blocks.{number}.mlp.fc2", block.mlp.dense_2)
  yield from _norm("norm", encoder.layer_norm)


def _timm_block(name, norms, attention):
  """What the blocks of timm and of DINOv2 have in common."""
  yield from _norm(f"{name}.norm1", norms[0])
  yield from _attention(f"{name}.attn.qkv.weight", f"{name}.attn.qkv.bias", attention)
  yield from _linear(f"{name}.attn.proj", attention.output_dense)
  yield from _norm(f"{name}.norm2", norms[1])


def _of_dinov2(backbone, projection):
  start = backbone.embeddings
  patches, places = start.patch_embeddings.projection, start.position_embeddings
  used = start.interpolated_position_embeddings
  yield place(_TIMM, patches.kernel)
  yield place("patch_embed.proj.bias", patches.bias)
  yield place("cls_token", start.cls_token)
  if start.use_mask_token:
    yield place("mask_token", start.mask_token)
  if start.num_register_tokens:
    yield place("register_tokens", start.register_tokens)

  def interpolated(value):
    fitting = _resized(value, used.shape[1] - 1, start.antialias_in_interpolation)
    return [(places, value), (used, fitting)]

  yield "pos_embed", tuple(places.shape), interpolated
  for number, block in enumerate(backbone.encoder.layers):
    name, mlp = f"blocks.{number}", block.mlp
    if backbone.use_swiglu_ffn:
      dense = {"w12": mlp.weights_in, "w3": mlp.weights_out}
    else:
      dense = {"fc1": mlp.fc1, "fc2": mlp.fc2}
    yield from _timm_block(name, (block.norm1, block.norm2), block.attention.attention)
    yield place(f"{name}.ls1.gamma", block.layer_scale1.lambda1)
    yield place(f"{name}.ls2.gamma", block.layer_scale2.lambda1)
    for own, layer in dense.items():
      yield from _linear(f"{name}.mlp.{own}", layer)
  yield from _norm("norm", backbone.layernorm)


def _resized(places, count, antialias):
  """Positions [1, 1 + n, d], the class token's first, for `count` patches instead of n."""
  old, new = round((places.shape[1] - 1) ** 0.5), round(count**0.5)
  if old == new:
    return places
  grid = places[:, 1:].reshape(1, old, old, -1)
  grid = keras.ops.image.resize(
    grid,
    (new, new),
    interpolation="bicubic",
    antialias=antialias,
    data_format="channels_last",
  )
  return np.concatenate([places[:, :1], np.reshape(grid, (1, count, -1))], axis=1)
