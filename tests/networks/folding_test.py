"""Folded networks against the networks themselves, whose every statistic is random."""

import keras
import numpy as np
import pytest
import small_models
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
    outputs = [tf.cast(x, tf.float32) for x in keras.tree.flatten(function(inputs))]
    total = sum(tf.reduce_sum(tf.sin(3 * x)) for x in outputs)
  return tape.gradient(total, inputs)


def norms_left(function, inputs):
  """How many batch norms a graph computes: each has a rsqrt of a moving variance."""
  graph = tf.function(function).get_concrete_function(inputs).graph
  kinds = [operation.type for operation in graph.get_operations()]
  return sum(kind == "Rsqrt" or kind.startswith("FusedBatchNorm") for kind in kinds)


def decoder():
  return small_models.sequential(
    (5,),
    layers.Dense(2 * 2 * 6, use_bias=False),
    layers.BatchNormalization(),
    layers.ReLU(),
    layers.Reshape((2, 2, 6)),
    layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
    layers.BatchNormalization(),
    layers.ReLU(),
    layers.Conv2DTranspose(3, 4, strides=2, output_padding=1),
    layers.BatchNormalization(scale=False),
  )


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
  first = layers.Conv2D(3, 3), layers.BatchNormalization(), layers.Dropout(0.5), layers.Flatten()
  second = layers.Dense(4), layers.BatchNormalization()
  return small_models.sequential((6, 6, 2), *first, *second)


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


# Models of images [6, 6, 2] whose norms stay: functions of the images to outputs, or to the model.


def read_twice(images):
  """Beside the norm, an addition reads the convolution."""
  x = layers.Conv2D(3, 3)(images)
  return layers.Add()([x, layers.BatchNormalization()(x)])


def read_outside(images):
  """The convolution is an output of the model."""
  x = layers.Conv2D(3, 3)(images)
  return [x, layers.BatchNormalization()(x)]


def shared_convolution(images):
  convolution = layers.Conv2D(3, 3)
  return [layers.BatchNormalization()(convolution(x)) for x in (images, -images)]


def shared_norm(images):
  norm = layers.BatchNormalization()
  return [norm(layers.Conv2D(3, 3)(images)) for _ in range(2)]


def activated(images):
  return layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(images))


def another_axis(images):
  return layers.BatchNormalization(axis=1)(layers.Conv2D(3, 3)(images))


class Doubled(layers.Conv2D):
  def call(self, inputs):
    return 2 * super().call(inputs)


def subclassed_layer(images):
  return layers.BatchNormalization()(Doubled(3, 3)(images))


class Shifted(keras.Model):
  """Functional, but its call does more than its graph."""

  def call(self, inputs, training=None):
    return 1 + super().call(inputs, training=training)


def subclassed_model(images):
  return Shifted(images, layers.BatchNormalization()(layers.Conv2D(3, 3)(images)))


def masked(images):
  """Rows that are all zero must stay masked for the pooling."""
  x = layers.Dense(5)(layers.Masking()(layers.Reshape((6, 12))(images)))
  return layers.GlobalAveragePooling1D()(layers.BatchNormalization()(x))


ONE = [read_twice, read_outside, activated, another_axis, subclassed_layer, subclassed_model]
UNFOLDABLE = {**dict.fromkeys([*ONE, masked], 1), shared_convolution: 2, shared_norm: 2}


@pytest.mark.parametrize("make", UNFOLDABLE, ids=lambda make: make.__name__)
def test_what_cannot_be_folded_is_called_as_it_is(make):
  images = keras.Input((6, 6, 2))
  made = make(images)
  model = shuffled(made if isinstance(made, keras.Model) else keras.Model(images, made))
  inputs = inputs_of(model)
  if make is masked:
    inputs *= tf.constant([1.0, 1, 1, 0, 0, 0])[:, None, None]
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  same(keras.tree.flatten(found), keras.tree.flatten(wanted), atol=1e-5)
  assert norms_left(fold(model), inputs) == UNFOLDABLE[make]


def test_a_model_without_a_graph():
  class Own(keras.Model):
    def __init__(self):
      super().__init__()
      self.layer, self.norm = layers.Dense(3), layers.BatchNormalization()

    def call(self, inputs, training=None):
      return self.norm(self.layer(inputs), training=training)

  model, inputs = Own(), tf.random.normal((4, 2))
  model(inputs)
  found = fold(shuffled(model))(inputs, training=False)
  np.testing.assert_array_equal(found, model(inputs, training=False))


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
  low, whole = {"dtype": "mixed_bfloat16"}, {"dtype": "float32"}
  first = layers.Conv2D(3, 3, **low), layers.BatchNormalization(**whole)
  second = layers.Conv2D(3, 3, **whole), layers.BatchNormalization(**low)
  model = shuffled(small_models.sequential((6, 6, 2), *first, *second))
  inputs = inputs_of(model)
  wanted, found = model(inputs, training=False), fold(model)(inputs)
  assert wanted.dtype == found.dtype == tf.bfloat16
  found, wanted = (tf.cast(values, tf.float32) for values in (found, wanted))
  np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("compiled", [False, *slow(True)])
def test_a_loop_around_it_computes_no_folding(compiled):
  model = shuffled(networks.convnet((8, 8, 1), width=4, layers=2))
  inputs = inputs_of(model)

  @tf.function(jit_compile=compiled)
  def ascend(images):
    folded = fold(model)
    step = lambda number, x: (number + 1, x + 0.1 * tf.sign(gradient(folded, x)))  # noqa: E731
    return tf.while_loop(lambda number, _: number < 3, step, (0, images))[1]

  wanted = inputs
  for _ in range(3):
    wanted += 0.1 * tf.sign(gradient(lambda x: model(x, training=False), wanted))
  np.testing.assert_allclose(ascend(inputs), wanted, atol=1e-5)
  graph = ascend.get_concrete_function(inputs).graph.as_graph_def()
  assert sum(node.op == "Rsqrt" for node in graph.node) == 2  # here, and in no loop's body
  assert not [node for f in graph.library.function for node in f.node_def if node.op == "Rsqrt"]
  # Weights that change between two calls of a compiled function are folded again.
  shuffled(model, seed=5)
  assert np.abs(ascend(inputs) - wanted).max() > 0.01


def test_weights_are_as_they_were_when_folded():
  model = shuffled(networks.mlp(6, (8, 4), "head"))
  inputs = inputs_of(model)
  before = model(inputs, training=False)
  old = fold(model)
  shuffled(model, seed=5)
  after = model(inputs, training=False)
  assert np.abs(after - before).max() > 0.1
  np.testing.assert_allclose(fold(model)(inputs), after, rtol=1e-4, atol=1e-5)
  assert np.abs(old(inputs) - after).max() > 0.1


@pytest.mark.full
def test_replicas(mirrored):
  with mirrored.scope():
    model = shuffled(networks.convnet((8, 8, 1), width=4, layers=2))
  inputs = inputs_of(model)
  found = mirrored.run(tf.function(lambda x: fold(model)(x)), (inputs,))
  wanted = model(inputs, training=False)
  for one in mirrored.experimental_local_results(found):
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


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
