"""Blocks of networks, and their activations computed again: the same gradients in less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses

from urkle_tf import networks
from urkle_tf.networks import blocks, folding, recomputing
from urkle_tf.training import cost

layers = keras.layers


def names(model):
  return [[layer.name for layer in block.layers] for block in blocks.blocks(model)]


def residual():
  """Two residual blocks around depthwise convolutions, between layers in a row."""
  images = keras.Input((16, 16, 3))
  x = layers.Conv2D(4, 2, strides=2, name="stem")(images)
  x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
  for number in (1, 2):
    y = layers.DepthwiseConv2D(3, padding="same", name=f"apart{number}")(x)
    y = layers.Conv2D(16, 1, activation="gelu", name=f"up{number}")(y)
    x = x + layers.Conv2D(4, 1, name=f"down{number}")(y)
  return keras.Model(images, layers.Dense(5, name="top")(layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable("blocks_test")
class Mixer(layers.Layer):
  """A residual block of dense layers, around attention."""

  def build(self, shape):
    self.attention = layers.MultiHeadAttention(2, 4)
    self.attention.build(shape, shape)
    self.up, self.down = layers.Dense(32, activation="gelu"), layers.Dense(shape[-1])
    self.up.build(shape)
    self.down.build((*shape[:-1], 32))

  def call(self, tokens, scale=None):
    tokens = tokens + self.attention(tokens, tokens)
    moved = self.down(self.up(tokens))
    return tokens + (moved if scale is None else scale * moved)


@keras.saving.register_keras_serializable("blocks_test")
class Tower(keras.Model):
  """A subclassed transformer, whose blocks are given a tensor that is learnt."""

  def build(self, shape):
    self.patches = layers.Conv2D(8, 4, strides=4, name="patches")
    self.patches.build(shape)
    self.row = [Mixer(name=f"mixer{i}") for i in range(3)]
    for mixer in self.row:
      mixer.build((None, 16, 8))
    self.last = layers.Dense(5, name="last")
    self.last.build((None, 8))
    self.scale = self.add_weight(shape=(8,), initializer="ones", name="scale")

  def call(self, images):
    tokens = keras.ops.reshape(self.patches(images), (-1, 16, 8))
    for mixer in self.row:
      tokens = mixer(tokens, scale=keras.ops.tanh(self.scale))
    return self.last(keras.ops.mean(tokens, 1))


def subclassed():
  images = keras.Input((16, 16, 3))
  return keras.Model(images, Tower(name="tower")(layers.Rescaling(2.0, -1.0)(images)))


def nested():
  images = keras.Input((16, 16, 3))
  return keras.Model(images, residual()(images / 2))


BUILDS = {"residual": residual, "subclassed": subclassed, "nested": nested}


def test_a_functional_model_is_cut_where_one_tensor_is_alive():
  wanted = [["stem", "norm"], ["apart1", "up1", "down1"], ["apart2", "up2", "down2"], ["top"]]
  assert names(residual()) == wanted
  assert names(nested()) == wanted


def test_a_row_of_layers_of_one_kind_is_cut_between_them():
  assert names(subclassed()) == [["patches", "mixer0"], ["mixer1"], ["mixer2", "last"]]


class Pair(layers.Layer):
  """A layer that holds another."""

  def build(self, shape):
    self.inner = layers.Dense(2)
    self.inner.build(shape)


def test_of_two_kinds_as_frequent_the_first_makes_the_row():
  """The order of a set of types, which differs between processes, decided it."""
  for _ in range(20):
    first, second = (type(name, (Pair,), {}) for name in ("First", "Second"))
    whole = layers.Layer()
    whole.row = [kind(name=name) for kind, name in zip([first, second] * 2, "abcd", strict=True)]
    for layer in whole.row:
      layer.build((None, 2))
    assert names(whole) == [["a", "b"], ["c", "d"]]


def test_a_resnet_has_its_residual_blocks():
  found = blocks.blocks(networks.backbone("resnet18(width=4)", (32, 32, 3)))
  assert len(found) == 1 + 8  # the stem


def images(count=6):
  return tf.constant(np.random.default_rng(0).uniform(size=(count, 16, 16, 3)), tf.float32)


def values(model):
  """(the output, gradients in the weights and in the images), and the graph of the former."""

  @tf.function(autograph=False)
  def run(x):
    weights = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
      tape.watch(x)
      found = model(x, training=False)
      loss = tf.reduce_sum(tf.sin(3 * found))
    gradients = tape.gradient(loss, [*weights, x])  # that of a table has rows alone
    return found, [tf.convert_to_tensor(gradient) for gradient in gradients]

  graph = run.get_concrete_function(tf.TensorSpec([6, 16, 16, 3], tf.float32)).graph
  return run(images()), graph


@pytest.mark.parametrize("name", BUILDS)
def test_gradients_are_the_same_in_less_memory(name):
  keras.utils.set_random_seed(1)
  model = BUILDS[name]()
  for variable in model.non_trainable_variables:  # batch statistics
    variable.assign(np.random.default_rng(2).uniform(0.01, 0.1, variable.shape))
  check_gradients(model)


def check_gradients(model):
  """Output and gradients stay, what waits for the backward pass shrinks, one pass is added."""
  (output, gradients), before = values(model)
  recomputing.recompute(model)
  (again, others), after = values(model)
  np.testing.assert_allclose(again, output, rtol=1e-6, atol=1e-7)
  for one, other in zip(gradients, others, strict=True):
    assert np.any(one)
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)
  assert cost.held(after) < 0.6 * cost.held(before)
  forward = cost.operations(before) / 3
  assert 0 < cost.operations(after) - cost.operations(before) <= 1.01 * forward


def test_a_folded_network_computes_again_too():
  model = residual()
  folded = folding.fold(model)
  recomputing.recompute(model)
  np.testing.assert_allclose(folding.fold(model)(images()), folded(images()), rtol=1e-5, atol=1e-6)


def test_a_model_without_blocks_is_refused():
  pixels = keras.Input((16, 16, 3))
  model = keras.Model(pixels, layers.Dense(3)(pixels), name="flat")
  refuses("--remat: 'flat' has no blocks", recomputing.recompute, model)


@pytest.mark.full
def test_a_vit_of_kerashub():
  hub = pytest.importorskip("keras_hub")
  keras.utils.set_random_seed(1)
  sizes = {"image_shape": (16, 16, 3), "patch_size": 4, "num_layers": 3, "num_heads": 2}
  model = hub.models.ViTBackbone(hidden_dim=8, mlp_dim=32, **sizes)
  assert len(blocks.blocks(model)) == 1 + 3  # the patches
  check_gradients(model)
