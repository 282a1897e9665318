"""Intervals hold what a network does: literal boxes, sampled inputs, and an attack that climbs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import slow

import urkle_tf
from urkle_tf import attacks, errors, networks
from urkle_tf.networks import intervals

tfd = tfp.distributions


def test_a_dense_layer_by_hand():
  """[[1, -2], [3, 4]] and the bias (1, -1) on the box [0, 1] x [2, 4]."""
  layer = keras.layers.Dense(2)
  inputs = keras.Input((2,))
  model = keras.Model(inputs, layer(inputs))
  layer.set_weights([np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([1.0, -1.0])])
  low, high = intervals.box(model, tf.constant([[0.0, 2.0]]), tf.constant([[1.0, 4.0]]))
  # First output: x + 3 y + 1 in [7, 14]; second: -2 x + 4 y - 1 in [5, 15].
  np.testing.assert_allclose(low, [[7, 5]], rtol=1e-6)
  np.testing.assert_allclose(high, [[14, 15]], rtol=1e-6)


def trained_statistics(model, rng):
  """Gives batch norms statistics and weights that are not those of a start."""
  for layer in model._flatten_layers():
    if isinstance(layer, keras.layers.BatchNormalization):
      for variable in layer.variables:
        value = rng.uniform(0.5, 1.5, variable.shape)
        variable.assign(
          value if "gamma" in variable.path or "variance" in variable.path else value - 1
        )


@pytest.mark.parametrize("name", ["convnet(width=4)", *slow("resnet18(width=4)")])
def test_no_input_of_the_ball_leaves_the_box(name, rng):
  model = networks.backbone(name, (16, 16, 3))
  trained_statistics(model, rng)
  images = rng.uniform(size=(3, 16, 16, 3)).astype(np.float32)
  low, high = intervals.box(model, tf.constant(images - 0.01), tf.constant(images + 0.01))
  for _ in range(50):
    corner = images + 0.01 * rng.choice([-1.0, 1.0], images.shape).astype(np.float32)
    found = model(corner, training=False)
    assert np.all(found >= low - 1e-5)
    assert np.all(found <= high + 1e-5)
  same = model(images, training=False)
  low, high = intervals.box(model, tf.constant(images), tf.constant(images))
  np.testing.assert_allclose(low, same, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(high, same, rtol=1e-4, atol=1e-5)


def test_the_largest_kl_of_a_box_by_hand():
  """At s = 1 and D = 3: scale 0.5 gives log 0.5 + 20 - 0.5, scale 10 log 10 + 0.05 - 0.5."""
  clean = tfd.Normal([[0.0], [0.0]], [[1.0], [1.0]])
  low = {"loc": tf.constant([[-3.0], [0.0]]), "scale": tf.constant([[0.5], [1.0]])}
  high = {"loc": tf.constant([[1.0], [0.0]]), "scale": tf.constant([[10.0], [10.0]])}
  found = intervals.largest_kl(clean, low, high)
  np.testing.assert_allclose(found[0], np.log(0.5) + 20 - 0.5, rtol=1e-6)
  np.testing.assert_allclose(found[1], np.log(10) + 1 / 200 - 0.5, rtol=1e-6)


def test_the_bound_of_an_affine_encoder_is_what_its_worst_corner_has():
  """Loc = W x, sigma fixed: max KL = |(|W| eps)|^2 / (2 sigma^2), reached where a row decides."""
  inputs = keras.Input((1, 2, 1))
  flat = keras.layers.Flatten()(inputs)
  encoder = urkle_tf.GaussianEncoder(
    keras.Model(inputs, flat), 1, min_scale=0.5, max_scale=0.5, loc="dense", preprocess=lambda x: x
  )
  encoder.network.get_layer("raw_loc").set_weights([np.array([[3.0], [-4.0]])])
  # The batch norm of loc at its start divides by sqrt(1 + 1e-5).
  images = tf.fill([1, 1, 2, 1], 0.5)
  found = intervals.kl_bound(encoder, images, 0.1)
  np.testing.assert_allclose(found, [0.7**2 / 1.00001 / (2 * 0.25)], rtol=1e-4)


@pytest.mark.parametrize("loc", ["dense", *slow("sphere", "centred_sphere", "dense_sphere")])
def test_pgd_never_passes_the_bound(loc, rng):
  encoder = urkle_tf.GaussianEncoder(
    networks.backbone("convnet(width=4, layers=2)", (8, 8, 1)), loc=loc
  )
  trained_statistics(encoder.network, rng)
  weights = encoder.network.get_layer("raw_scale").kernel
  weights.assign(rng.normal(size=weights.shape))
  images = tf.constant(rng.uniform(size=(100, 8, 8, 1)), tf.float32)
  bound = intervals.kl_bound(encoder, images, 0.02).numpy()
  assert np.all(np.isfinite(bound))
  attack = attacks.PGD(attacks.Linf(0.02), steps=20, restarts=5, keep="best")
  found = urkle_tf.kl_robustness(encoder, images, attack).numpy()
  print(f"{loc}: bound / PGD", np.median(bound / found))
  assert np.all(found <= bound * (1 + 1e-4))
  smaller = intervals.kl_bound(encoder, images, 0.002).numpy()
  assert np.all(smaller < bound)
  np.testing.assert_allclose(intervals.kl_bound(encoder, images, 0.0), np.zeros(100), atol=1e-3)


def test_layers_without_a_rule_and_pooled_end_in_one_line():
  inputs = keras.Input((4, 4, 1))
  model = keras.Model(inputs, keras.layers.LayerNormalization(name="norm")(inputs))
  with pytest.raises(errors.UserError, match="no bound goes through the layer 'norm'"):
    intervals.box(model, tf.zeros([1, 4, 4, 1]), tf.ones([1, 4, 4, 1]))
  encoder = urkle_tf.GaussianEncoder(
    networks.backbone("convnet(width=4, layers=2)", (8, 8, 1)), loc="pooled"
  )
  with pytest.raises(errors.UserError, match="loc=pooled"):
    intervals.kl_bound(encoder, tf.zeros([1, 8, 8, 1]), 0.1)


def test_a_network_of_low_precision_is_bounded_in_float32(rng):
  """The same weights have the same bound, and the layers keep their policy."""
  make = lambda: urkle_tf.GaussianEncoder(  # noqa: E731
    networks.backbone("convnet(width=4, layers=2)", (8, 8, 1)), loc="dense"
  )
  whole = make()
  trained_statistics(whole.network, rng)
  try:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    low = make()
  finally:
    keras.mixed_precision.set_global_policy("float32")
  low.network.set_weights(whole.network.get_weights())
  before = [layer.dtype_policy.name for layer in low.network._flatten_layers()]
  assert "mixed_bfloat16" in before
  images = tf.constant(rng.uniform(size=(5, 8, 8, 1)), tf.float32)
  bounds = [intervals.kl_bound(encoder, images, 0.01) for encoder in (whole, low)]
  np.testing.assert_array_equal(*bounds)
  assert [layer.dtype_policy.name for layer in low.network._flatten_layers()] == before


def test_a_bound_is_never_below_0():
  clean = tfd.Normal(np.linspace(-1, 1, 128, dtype="float32")[None], np.full((1, 128), 0.3, "f"))
  same = {"loc": clean.loc, "scale": clean.scale * (1 + 1e-7)}
  assert intervals.largest_kl(clean, same, same).numpy() >= 0


@pytest.mark.parametrize(
  "layer",
  [
    keras.layers.UpSampling2D(2, interpolation="bicubic"),  # it has negative weights
    keras.layers.BatchNormalization(axis=1),
  ],
)
def test_layers_that_would_break_the_bound_are_refused(layer):
  inputs = keras.Input((4, 4, 1))
  model = keras.Model(inputs, layer(inputs))
  with pytest.raises(errors.UserError, match="no bound goes through the layer"):
    intervals.box(model, tf.zeros([1, 4, 4, 1]), tf.ones([1, 4, 4, 1]))
