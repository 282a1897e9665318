"""Folded networks against the networks themselves, whose every statistic is random."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import slow
from keras.src.applications import efficientnet_v2  # a small one: public functions build full sizes
from small_models import precision

from urkle_tf import networks
from urkle_tf.networks import foreign
from urkle_tf.networks.folding import fold

layers = keras.layers


def shuffled(model, seed=0):
  """The model with random weights and statistics, so that a norm that is skipped shows."""
  rng = np.random.default_rng(seed)
  for layer in model._flatten_layers():
    if isinstance(layer, layers.BatchNormalization):
      for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
        if "variance" not in variable.name:
          variable.assign(variable * rng.choice([-1, 1], variable.shape))
    elif getattr(layer, "use_bias", False):
      layer.bias.assign(rng.normal(size=layer.bias.shape))
  return model


def inputs_of(model, n=4, seed=1):
  shape = (n, *model.input_shape[1:])
  return tf.constant(np.random.default_rng(seed).uniform(size=shape), tf.float32)


def gradient(function, inputs):
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    total = sum(
      tf.reduce_sum(tf.sin(3 * tf.cast(x, tf.float32)))
      for x in keras.tree.flatten(function(inputs))
    )
  return tape.gradient(total, inputs)


def norms_left(function, inputs):
  """How many batch norms a graph computes: each has a rsqrt of a moving variance."""
  graph = tf.function(function).get_concrete_function(inputs).graph
  kinds = [operation.type for operation in graph.get_operations()]
  return sum(kind == "Rsqrt" or kind.startswith("FusedBatchNorm") for kind in kinds)


def decoder():
  z = keras.Input((5,))
  x = layers.Dense(2 * 2 * 6, use_bias=False)(z)
  x = layers.BatchNormalization()(x)
  x = layers.ReLU()(x)
  x = layers.Reshape((2, 2, 6))(x)
  x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
  x = layers.BatchNormalization()(x)
  x = layers.ReLU()(x)
  x = layers.Conv2DTranspose(3, 4, strides=2, output_padding=1)(x)
  return keras.Model(z, layers.BatchNormalization(scale=False)(x))


def convolutions():
  """Groups, dilation, depthwise, biases, raw operations, and outputs in a dict."""
  images = keras.Input((9, 9, 4))
  x = layers.Conv2D(8, 3, groups=2, padding="same")(images)
  x = layers.BatchNormalization(center=False)(x)
  x = keras.ops.tanh(x)
  x = layers.DepthwiseConv2D(3, depth_multiplier=3, strides=2)(x)
  x = layers.BatchNormalization()(x)
  y = layers.Conv2D(5, 2, dilation_rate=2)(x)
  y = layers.BatchNormalization(axis=3, epsilon=0.1)(y)
  return keras.Model(images, {"x": x, "y": layers.Flatten()(y)})


def sequential():
  return keras.Sequential(
    [
      keras.Input((6, 6, 2)),
      layers.Conv2D(3, 3),
      layers.BatchNormalization(),
      layers.Dropout(0.5),
      layers.Flatten(),
      layers.Dense(4),
      layers.BatchNormalization(),
    ]
  )


def nested():
  images = keras.Input((6, 6, 2))
  inner = sequential()
  heads = networks.mlp(4, (5, 3), "head")
  return keras.Model(images, [heads(inner(images)), heads(inner(1 - images))])


def residual():
  return networks.resnet18((8, 8, 3), width=8)


def encoder():
  return networks.GaussianEncoder(networks.convnet((8, 8, 1), 4, layers=3), 6, loc="dense").network


MODELS = {
  "convnet": lambda: networks.convnet((8, 8, 1), width=8),
  "resnet18": residual,
  "mlp": lambda: networks.mlp(6, (8, 5, 4), "head", last_norm=True),
  "encoder": encoder,
  "decoder": decoder,
  "convolutions": convolutions,
  "sequential": sequential,
  "nested": nested,
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_models(name):
  keras.utils.set_random_seed(2)
  model = shuffled(MODELS[name]())
  inputs = inputs_of(model)
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  keras.tree.assert_same_structure(wanted, found)
  for one, other in zip(keras.tree.flatten(wanted), keras.tree.flatten(found), strict=True):
    assert one.dtype == other.dtype
    size = np.abs(one).max()
    assert size > 0.01
    np.testing.assert_allclose(other / size, one / size, atol=1e-5)
  wanted = gradient(lambda x: model(x, training=False), inputs)
  size = np.abs(wanted).max()
  assert size > 1e-3
  np.testing.assert_allclose(gradient(fold(model), inputs) / size, wanted / size, atol=1e-4)
  assert norms_left(lambda x: model(x, training=False), inputs) > 0
  assert norms_left(fold(model), inputs) == 0


def read_twice():
  """Beside the norm, an addition reads the convolution."""
  images = keras.Input((6, 6, 2))
  x = layers.Conv2D(3, 3)(images)
  return keras.Model(images, layers.Add()([x, layers.BatchNormalization()(x)]))


def read_outside():
  """The convolution is an output of the model."""
  images = keras.Input((6, 6, 2))
  x = layers.Conv2D(3, 3)(images)
  return keras.Model(images, [x, layers.BatchNormalization()(x)])


def shared_convolution():
  images = keras.Input((6, 6, 2))
  convolution = layers.Conv2D(3, 3)
  both = [layers.BatchNormalization()(convolution(x)) for x in (images, -images)]
  return keras.Model(images, both)


def shared_norm():
  images = keras.Input((6, 6, 2))
  norm = layers.BatchNormalization()
  return keras.Model(images, [norm(layers.Conv2D(3, 3)(images)) for _ in range(2)])


def activated():
  images = keras.Input((6, 6, 2))
  x = layers.Conv2D(3, 3, activation="relu")(images)
  return keras.Model(images, layers.BatchNormalization()(x))


def another_axis():
  images = keras.Input((6, 6, 2))
  return keras.Model(images, layers.BatchNormalization(axis=1)(layers.Conv2D(3, 3)(images)))


class Doubled(layers.Conv2D):
  def call(self, inputs):
    return 2 * super().call(inputs)


def subclassed_layer():
  images = keras.Input((6, 6, 2))
  return keras.Model(images, layers.BatchNormalization()(Doubled(3, 3)(images)))


class Shifted(keras.Model):
  """Functional, but its call does more than its graph."""

  def call(self, inputs, training=None):
    return 1 + super().call(inputs, training=training)


def subclassed_model():
  images = keras.Input((6, 6, 2))
  return Shifted(images, layers.BatchNormalization()(layers.Conv2D(3, 3)(images)))


def masked():
  """Steps that are all zero must stay masked for the pooling."""
  steps = keras.Input((4, 3))
  x = layers.Dense(5)(layers.Masking()(steps))
  return keras.Model(steps, layers.GlobalAveragePooling1D()(layers.BatchNormalization()(x)))


UNFOLDABLE = [
  (read_twice, 1),
  (read_outside, 1),
  (shared_convolution, 2),
  (shared_norm, 2),
  (activated, 1),
  (another_axis, 1),
  (subclassed_layer, 1),
  (subclassed_model, 1),
  (masked, 1),
]


@pytest.mark.parametrize("make, norms", UNFOLDABLE, ids=lambda x: getattr(x, "__name__", None))
def test_what_cannot_be_folded_is_called_as_it_is(make, norms):
  model = shuffled(make())
  inputs = inputs_of(model)
  if make is masked:
    inputs *= tf.constant([1.0, 1, 0, 0])[:, None]
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  same(keras.tree.flatten(found), keras.tree.flatten(wanted), atol=1e-5)
  assert norms_left(fold(model), inputs) == norms


def test_a_model_without_a_graph():
  class Own(keras.Model):
    def __init__(self):
      super().__init__()
      self.layer, self.norm = layers.Dense(3), layers.BatchNormalization()

    def call(self, inputs, training=None):
      return self.norm(self.layer(inputs), training=training)

  model, inputs = Own(), tf.random.normal((4, 2))
  model(inputs)
  np.testing.assert_array_equal(
    fold(shuffled(model))(inputs, training=False), model(inputs, training=False)
  )


@pytest.mark.parametrize("name", ["encoder", *slow("convnet", "decoder", "sequential")])
def test_mixed_precision(name):
  keras.utils.set_random_seed(2)
  with precision("mixed_bfloat16"):
    model = shuffled(MODELS[name]())
  exact = MODELS[name]()
  exact.set_weights(model.get_weights())
  inputs = inputs_of(model)
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  exact = exact(inputs, training=False)
  for one, other, truth in zip(*map(keras.tree.flatten, (wanted, found, exact)), strict=True):
    assert one.dtype == other.dtype
    one, other = tf.cast(one, tf.float32), tf.cast(other, tf.float32)
    size = np.abs(truth).max()
    # As near to the network of full precision as the network of mixed precision is.
    assert np.abs(other - truth).max() / size < max(2 * np.abs(one - truth).max() / size, 0.01)
  assert norms_left(fold(model), inputs) == 0


def test_layers_of_different_precision():
  images = keras.Input((6, 6, 2))
  x = layers.Conv2D(3, 3, dtype="mixed_bfloat16")(images)
  x = layers.BatchNormalization(dtype="float32")(x)
  x = layers.Conv2D(3, 3, dtype="float32")(x)
  model = shuffled(keras.Model(images, layers.BatchNormalization(dtype="mixed_bfloat16")(x)))
  inputs = inputs_of(model)
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  assert wanted.dtype == found.dtype == tf.bfloat16
  np.testing.assert_allclose(
    tf.cast(found, tf.float32), tf.cast(wanted, tf.float32), atol=0.02 * np.abs(wanted).max()
  )


@pytest.mark.parametrize("compiled", [False, *slow(True)])
def test_a_loop_around_it_computes_no_folding(compiled):
  model = shuffled(networks.convnet((8, 8, 1), width=4, layers=2))
  inputs = inputs_of(model)

  @tf.function(jit_compile=compiled)
  def ascend(images):
    folded = fold(model)
    return tf.while_loop(
      lambda step, _: step < 3,
      lambda step, x: (step + 1, x + 0.1 * tf.sign(gradient(folded, x))),
      (0, images),
    )[1]

  wanted = inputs
  for _ in range(3):
    wanted += 0.1 * tf.sign(gradient(lambda x: model(x, training=False), wanted))
  np.testing.assert_allclose(ascend(inputs), wanted, atol=1e-5)
  graph = ascend.get_concrete_function(inputs).graph.as_graph_def()
  assert sum(node.op == "Rsqrt" for node in graph.node) == 2  # here, and in no loop's body
  assert not [node for f in graph.library.function for node in f.node_def if node.op == "Rsqrt"]
  # Weights that change between two calls of a compiled function are folded anew.
  shuffled(model, seed=5)
  assert np.abs(ascend(inputs) - wanted).max() > 0.01


def test_images_of_another_size_are_refused():
  with pytest.raises(ValueError, match="shape"):
    fold(networks.convnet((8, 8, 1)))(tf.zeros((1, 16, 16, 1)))


def test_the_batch_norms_of_an_efficientnet_taken_as_it_is():
  keras.utils.set_random_seed(2)
  bare = {"include_top": False, "weights": None, "input_shape": (32, 32, 3)}
  model = efficientnet_v2.EfficientNetV2(0.1, 0.1, 32, name="efficientnetv2-b0", **bare)
  taken = foreign.take(shuffled(model))
  images = inputs_of(taken)
  wanted, found = taken(images, training=False), fold(taken)(images)
  size = np.abs(wanted).max()
  np.testing.assert_allclose(found / size, wanted / size, atol=1e-4)
  assert norms_left(lambda x: taken(x, training=False), images) > 10
  assert norms_left(fold(taken), images) == 0
