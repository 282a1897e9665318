"""Bounds hold: literal boxes, sampled inputs, and an attack that maximises."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import refuses, slow
from small_models import precision, sequential, tiny_encoder

import urkle_tf
from urkle_tf import networks
from urkle_tf.networks.bounds import intervals, kl, lines

tfd = tfp.distributions


def lines_of(model, *ends):
  return tf.function(lambda *ends: lines.boxes(model, *ends))(*ends)


KINDS = {"interval": intervals.boxes, "linear": lines_of}


@pytest.mark.parametrize("boxes", KINDS.values(), ids=KINDS)
def test_a_dense_layer_by_hand(boxes):
  """[[1, -2], [3, 4]] and the bias (1, -1) on the box [0, 1] x [2, 4]."""
  model = sequential((2,), keras.layers.Dense(2))
  model.set_weights([np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([1.0, -1.0])])
  ((low, high),) = boxes(model, tf.constant([[0.0, 2.0]]), tf.constant([[1.0, 4.0]]))
  # First output: x + 3 y + 1 in [7, 14]; second: -2 x + 4 y - 1 in [5, 15].
  np.testing.assert_allclose(low, [[7, 5]], rtol=1e-6)
  np.testing.assert_allclose(high, [[14, 15]], rtol=1e-6)


@pytest.mark.parametrize("boxes", KINDS.values(), ids=KINDS)
def test_a_batch_norm_by_hand(boxes):
  """-2 (x - 1/2) / 2 + 1 = 3/2 - x and 3 y - 1, on the box [0, 1] x [2, 4]."""
  model = sequential((2,), keras.layers.BatchNormalization(epsilon=0.0))
  model.set_weights([np.array(row) for row in ([-2.0, 3.0], [1.0, -1.0], [0.5, 0.0], [4.0, 1.0])])
  ((low, high),) = boxes(model, tf.constant([[0.0, 2.0]]), tf.constant([[1.0, 4.0]]))
  np.testing.assert_allclose(low, [[0.5, 5]], rtol=1e-6)
  np.testing.assert_allclose(high, [[1.5, 11]], rtol=1e-6)


def trained_statistics(model, rng):
  """Gives batch norms statistics and weights that are not those of a start."""
  for layer in model._flatten_layers():
    if isinstance(layer, keras.layers.BatchNormalization):
      for variable in layer.variables:
        least = 0.5 if "gamma" in variable.path or "variance" in variable.path else -0.5
        variable.assign(rng.uniform(least, least + 1, variable.shape))


def test_lines_are_exact_where_nothing_bends():
  """Two layers that undo each other, to 2 x: intervals alone make [-1, 3] of [0, 1]."""
  turned = np.array([[1.0, 1.0], [1.0, -1.0]])
  model = sequential((2,), *(keras.layers.Dense(2, use_bias=False) for _ in range(2)))
  model.set_weights([turned, turned])
  ends = tf.zeros([1, 2]), tf.ones([1, 2])
  np.testing.assert_allclose(intervals.boxes(model, *ends), [[[[-1, -1]], [[3, 3]]]], atol=1e-6)
  np.testing.assert_allclose(lines_of(model, *ends), [[[[0, 0]], [[2, 2]]]], atol=1e-6)


def test_lines_around_relu_by_hand():
  """|x| = relu(x) + relu(-x) on [-1, 3]: at most 3 / 4 (x + 1) + 1 / 4 (3 - x), 3 at x = 3."""
  hidden, out = keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1)
  model = sequential((1,), hidden, keras.layers.ReLU(), out)
  model.set_weights([np.array([[1.0, -1.0]]), np.array([[1.0], [1.0]]), np.array([0.5])])
  ends = tf.constant([[-1.0]]), tf.constant([[3.0]])
  # Intervals: relu(x) in [0, 3] and relu(-x) in [0, 1].
  np.testing.assert_allclose(intervals.boxes(model, *ends), [[[[0.5]], [[4.5]]]])
  # Below: x where 3 > 1, and 0 where 1 < 3, so -1 at x = -1; the interval's 0 is better.
  np.testing.assert_allclose(lines_of(model, *ends), [[[[0.5]], [[3.5]]]])


@pytest.mark.parametrize(
  "activation",
  [
    keras.layers.LeakyReLU(0.1),
    keras.layers.LeakyReLU(2.0),
    keras.layers.ReLU(max_value=1.0),
    keras.layers.ReLU(threshold=0.5),
  ],
  ids=["leaky", "steep", "capped", "late"],
)
def test_lines_hold_around_every_bend(activation, rng):
  """Of 200 sums of six bends, no point of [-1, 3] leaves its box."""
  model = sequential((1,), keras.layers.Dense(6), activation, keras.layers.Dense(200))
  model.set_weights([rng.normal(size=variable.shape) for variable in model.weights])
  ((low, high),) = lines_of(model, tf.constant([[-1.0]]), tf.constant([[3.0]]))
  found = model(np.linspace(-1, 3, 401, dtype="float32")[:, None]).numpy()
  assert np.all((low - 1e-4 <= found) & (found <= high + 1e-4))


def crown(weights, biases, low, high):
  """(lowest, highest) of a ReLU network of dense layers, by explicit matrices, of one box."""

  def largest(rows, offset, boxes):
    """Upper bounds of rows @ (the values of the layer after these boxes) + offset."""
    for (bottom, top), weight, bias in reversed(list(zip(boxes, weights, biases, strict=False))):
      for row in range(len(rows)):
        for unit, (least, most) in enumerate(zip(bottom, top, strict=True)):
          g = rows[row, unit]
          if least >= 0:
            continue
          if most <= 0:
            rows[row, unit] = 0
          elif g > 0:
            rows[row, unit] = g * most / (most - least)
            offset[row] -= g * least * most / (most - least)
          else:
            rows[row, unit] = g if most > -least else 0
      offset, rows = offset + rows @ bias, rows @ weight.T
    return rows @ (low + high) / 2 + np.abs(rows) @ (high - low) / 2 + offset

  boxes, interval = [], (low, high)
  for weight, bias in zip(weights, biases, strict=True):
    centre, half = (interval[0] + interval[1]) / 2, (interval[1] - interval[0]) / 2
    middle, half = centre @ weight + bias, half @ np.abs(weight)
    interval = np.maximum(middle - half, 0), np.maximum(middle + half, 0)
    found = [largest(sign * weight.T, sign * bias, boxes) for sign in (1, -1)]
    boxes.append((np.maximum(middle - half, -found[1]), np.minimum(middle + half, found[0])))
  return boxes[-1]


def test_lines_are_those_of_explicit_matrices(rng):
  sizes = [6, 9, 7, 3]
  hidden = [keras.layers.Dense(size, activation="relu") for size in sizes[1:-1]]
  model = sequential((sizes[0],), *hidden, keras.layers.Dense(sizes[-1]))
  model.set_weights([rng.normal(size=variable.shape) for variable in model.weights])
  x = rng.normal(size=(4, sizes[0])).astype(np.float32)
  ((low, high),) = lines_of(model, tf.constant(x - 0.3), tf.constant(x + 0.3))
  arrays = [np.float64(array) for array in model.get_weights()]
  for row in range(4):
    wanted = crown(arrays[::2], arrays[1::2], np.float64(x[row]) - 0.3, np.float64(x[row]) + 0.3)
    np.testing.assert_allclose((low[row], high[row]), wanted, rtol=1e-4, atol=1e-4)


def dense_net(shape):
  layers = [keras.layers.Flatten()]
  for width in (12, 10):
    layers += [keras.layers.Dense(width), keras.layers.LeakyReLU(0.1)]
  return sequential(shape, *layers, keras.layers.Dense(6, activation="tanh"))


NETS = {
  "dense": dense_net,
  "convnet": lambda shape: networks.convnet(shape, width=4, layers=2),
  "resnet18": lambda shape: networks.backbone("resnet18(width=4)", shape),
}


@pytest.mark.parametrize("name", ["dense", *slow("convnet", "resnet18")])
def test_no_input_of_the_ball_leaves_the_boxes(name, rng):
  """10,000 random inputs and corners, and the ends of an ascent on each output."""
  model, radius = NETS[name]((8, 8, 1)), 0.02
  trained_statistics(model, rng)
  images = rng.uniform(size=(2, 8, 8, 1)).astype(np.float32)
  ends = tf.constant(images - radius), tf.constant(images + radius)
  ((low, high),), ((lowest, highest),) = lines_of(model, *ends), intervals.boxes(model, *ends)
  assert np.all(low >= lowest)
  assert np.all(high <= highest)
  if name != "resnet18":
    assert np.mean(high - low) < 0.8 * np.mean(highest - lowest)
  call = tf.function(lambda x: model(x, training=False))
  inside = lambda found: np.all((low - 1e-4 <= found) & (found <= high + 1e-4))  # noqa: E731
  noise = rng.uniform(-1, 1, (20, 250, *images.shape)).astype(np.float32)
  noise[10:] = np.sign(noise[10:])
  for part in noise:
    found = call((images + radius * part).reshape(-1, 8, 8, 1))
    assert inside(np.reshape(found, (250, 2, -1)))

  @tf.function
  def ascend(x, output, sign):
    with tf.GradientTape() as tape:
      tape.watch(x)
      value = sign * tf.gather(model(x, training=False), output, axis=1)
    moved = x + radius / 4 * tf.sign(tape.gradient(value, x))
    return tf.clip_by_value(moved, *ends)

  for output in range(low.shape[1]):
    for sign in (1.0, -1.0):
      x = tf.constant(images)
      for _ in range(10):
        x = ascend(x, output, sign)
      assert inside(call(x))


@pytest.mark.parametrize("boxes", KINDS.values(), ids=KINDS)
def test_the_box_of_a_point_is_what_the_network_makes_of_it(boxes, rng):
  model = NETS["dense"]((8, 8, 1))
  trained_statistics(model, rng)
  images = tf.constant(rng.uniform(size=(3, 8, 8, 1)), tf.float32)
  for end in boxes(model, images, images)[0]:
    np.testing.assert_allclose(end, model(images, training=False), rtol=1e-4, atol=1e-4)


def test_the_largest_kl_of_a_box_by_hand():
  """At s = 1 and D = 3: scale 0.5 gives log 0.5 + 20 - 0.5, scale 10 log 10 + 0.05 - 0.5."""
  clean = tfd.Normal([[0.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]])
  low = {"loc": tf.constant([[-3.0], [0.0], [-1.0]]), "scale": tf.constant([[0.5], [1.0], [0.5]])}
  high = {"loc": tf.constant([[1.0], [0.0], [3.0]]), "scale": tf.fill([3, 1], 10.0)}
  found = kl.largest_kl(clean, low, high)
  np.testing.assert_allclose(found[::2], [np.log(0.5) + 20 - 0.5] * 2, rtol=1e-6)
  np.testing.assert_allclose(found[1], np.log(10) + 1 / 200 - 0.5, rtol=1e-6)


def test_the_largest_kl_on_a_sphere_by_hand():
  """2 |u - v| / (|u| + |v|) is at most 2 / (5 + sqrt(18)), of (3, 4) and (3, 4 +- 1).

  A box that holds 0 has the whole sphere, and a chord of 2.
  """
  row, ends = np.array([[3.0, 4.0]]), np.array([[[3.0, 3.0]], [[3.0, 5.0]]])
  u = np.concatenate([row, 1e-3 * row, [[1.0, 0.0]]])
  low, high = (np.concatenate([end, 1e-3 * end, [[a, a]]]) for end, a in zip(ends, (-1, 2)))
  clean = tfd.Normal(u.astype("float32"), tf.ones([3, 2]))
  scales = [tf.constant([[0.5, 1.0]] * 3), tf.ones([3, 2])]
  found = kl._largest_on_sphere(clean, low.astype("float32"), high.astype("float32"), scales)
  chords = np.array([2 / (5 + 18**0.5), 2 / (5 + 18**0.5), 2.0])
  of_scale = np.log(0.5) + 2 - 0.5
  np.testing.assert_allclose(found, of_scale + 2 * chords**2 / (2 * 0.5**2), rtol=1e-5)


@pytest.mark.parametrize("bounds", KINDS)
def test_the_bound_of_an_affine_encoder_is_what_its_worst_corner_has(bounds):
  """Loc = W x, sigma fixed: max KL = |(|W| eps)|^2 / (2 sigma^2), reached where a row decides."""
  flat, options = sequential((1, 2, 1), keras.layers.Flatten()), {"preprocess": lambda x: x}
  encoder = urkle_tf.GaussianEncoder(flat, 1, 0.5, 0.5, loc="dense", **options)
  encoder.network.get_layer("raw_loc").set_weights([np.array([[3.0], [-4.0]])])
  # The batch norm of loc at its start divides by sqrt(1 + 1e-5).
  images = tf.constant([[0.5, 0.5], [0.05, 0.05], [0.95, 0.95]])
  found = kl.kl_bound(encoder, tf.reshape(images, [3, 1, 2, 1]), 0.1, bounds)
  farthest = np.array([0.7, 0.55, 0.55])  # 3 * 0.05 + 4 * 0.1 at the ends of [0, 1]
  np.testing.assert_allclose(found, farthest**2 / 1.00001 / (2 * 0.25), rtol=1e-4)


TRIES = 2500  # for each of four images


def tries(images, radius, rng):
  """Uniform points of the balls, Gaussian ones cut at the faces, and random corners."""
  shape = TRIES, *images.shape
  noise = rng.normal(size=shape)
  noise[: TRIES // 4] = rng.uniform(-1, 1, (TRIES // 4, *images.shape))
  noise[TRIES // 2 :] = np.sign(noise[TRIES // 2 :])
  return np.clip(images + radius * np.clip(noise, -1, 1), 0, 1).astype(np.float32)


def largest_found(encoder, images, radius, rng):
  """The largest KL at 10,000 points and on the way of an ascent of 8 steps from each, by hand."""
  clean = encoder.network(images, training=False)
  low, high = np.maximum(images - radius, 0), np.minimum(images + radius, 1)

  @tf.function
  def climb(x, size):
    with tf.GradientTape() as tape:
      tape.watch(x)
      seen = encoder.network(tf.reshape(x, [-1, *images.shape[1:]]), training=False)
      loc, scale = (tf.reshape(seen[name], [TRIES, 4, -1]) for name in ("loc", "scale"))
      ratio = clean["scale"] / scale
      each = tf.square(ratio) + tf.square((loc - clean["loc"]) / scale) - 1
      kl = tf.reduce_sum(each / 2 - tf.math.log(ratio), -1)
    return tf.clip_by_value(x + size * tf.sign(tape.gradient(kl, x)), low, high), kl

  x, largest = tf.constant(tries(images, radius, rng)), np.zeros(4)
  for size in [2, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.1, 0]:
    x, found = climb(x, tf.constant(size * radius, tf.float32))
    largest = np.maximum(largest, np.max(found, 0))
  return largest


CONVNETS = [(loc, "convnet") for loc in ("dense", "sphere", "centred_sphere", "dense_sphere")]


@pytest.mark.parametrize("loc, net", [("dense", "dense"), *slow(*CONVNETS)])
def test_ten_thousand_tries_never_pass_the_bound(loc, net, rng):
  """Finite, and not so loose that nothing could pass it: of most images a thirtieth is passed."""
  keras.utils.set_random_seed(0)
  encoder, radius = urkle_tf.GaussianEncoder(NETS[net]((8, 8, 1)), loc=loc), 0.02
  trained_statistics(encoder.network, rng)
  kernel = encoder.network.get_layer("raw_scale").kernel
  kernel.assign(rng.normal(size=kernel.shape))
  images = rng.uniform(size=(4, 8, 8, 1)).astype(np.float32)
  found = largest_found(encoder, images, radius, rng)
  bound_of = tf.function(lambda x, kind: kl.kl_bound(encoder, x, radius, kind))
  bound, tighter = (bound_of(images, kind).numpy() for kind in KINDS)
  assert np.all(np.isfinite(bound))
  assert np.all(tighter <= bound)
  assert np.all(found <= tighter * (1 + 1e-4))
  assert np.median(tighter / found) < 30
  np.testing.assert_allclose(kl.kl_bound(encoder, images, 0.0), np.zeros(4), atol=1e-3)


@pytest.mark.parametrize(
  "layer",
  [
    keras.layers.LayerNormalization(name="layer"),  # without a rule
    keras.layers.UpSampling2D(2, interpolation="bicubic", name="layer"),  # has negative weights
    keras.layers.BatchNormalization(axis=1, name="layer"),
    keras.layers.ELU(alpha=-1.0, name="layer"),  # falls below 0
  ],
)
def test_layers_that_would_break_the_bound_are_refused(layer):
  model = sequential((4, 4, 1), layer)
  ends = tf.zeros([1, 4, 4, 1]), tf.ones([1, 4, 4, 1])
  refuses("no bound is known for the layer 'layer'", intervals.boxes, model, *ends)


def test_a_plus_sign_has_no_bound():
  images = keras.Input((4, 4, 1))
  model = keras.Model(images, images + keras.layers.ReLU()(images))
  ends = tf.zeros([1, 4, 4, 1]), tf.ones([1, 4, 4, 1])
  refuses("no bound is known for the layer 'add & the layer Add", intervals.boxes, model, *ends)


@pytest.mark.parametrize("boxes", [intervals.boxes, lines.boxes])
def test_the_sum_of_maps_of_other_channels_is_bounded(boxes):
  images = keras.Input((2, 2, 3))
  one = keras.layers.Conv2D(1, 1, kernel_initializer="ones")(images)
  model = keras.Model(images, keras.layers.Add()([images, one]))  # which broadcasts
  ((low, high),) = boxes(model, tf.zeros([1, 2, 2, 3]), tf.ones([1, 2, 2, 3]))
  np.testing.assert_allclose(low, np.zeros([1, 2, 2, 3]), atol=1e-6)
  np.testing.assert_allclose(high, np.full([1, 2, 2, 3], 4.0), rtol=1e-6)


def test_pooled_features_are_refused():
  refuses("loc=pooled", kl.kl_bound, tiny_encoder(None, loc="pooled"), tf.zeros([1, 8, 8, 1]), 0.1)


def test_a_network_of_low_precision_is_bounded_in_float32(rng):
  """The same weights have the same bound, and the layers keep their policy."""
  whole = tiny_encoder()
  trained_statistics(whole.network, rng)
  with precision("mixed_bfloat16"):
    low = tiny_encoder()
  low.network.set_weights(whole.network.get_weights())
  before = [layer.dtype_policy.name for layer in low.network._flatten_layers()]
  assert "mixed_bfloat16" in before
  images = tf.constant(rng.uniform(size=(5, 8, 8, 1)), tf.float32)
  bounds = [kl.kl_bound(encoder, images, 0.01) for encoder in (whole, low)]
  np.testing.assert_array_equal(*bounds)
  assert [layer.dtype_policy.name for layer in low.network._flatten_layers()] == before


def test_a_bound_is_never_below_0():
  clean = tfd.Normal(np.linspace(-1, 1, 128, dtype="float32")[None], np.full((1, 128), 0.3, "f"))
  same = {"loc": clean.loc, "scale": clean.scale * (1 + 1e-7)}
  assert kl.largest_kl(clean, same, same).numpy() >= 0


@pytest.mark.parametrize("loc", ["dense", "sphere"])
def test_a_training_knows_that_batch_norms_make_up_for_smaller_weights(loc, rng):
  """The network does not change with the length of a kernel, and so the bound has no slope there.

  But where statistics are constants it has one.
  """
  backbone = networks.convnet((8, 8, 1), width=4, layers=2, momentum=0.0)
  encoder = urkle_tf.GaussianEncoder(backbone, loc=loc, momentum=0.0)
  images = tf.constant(rng.uniform(size=(20, 8, 8, 1)), tf.float32)
  encoder(images, training=True)
  kernel = encoder.network.get_layer("convnet").get_layer("conv1").kernel
  values, slopes = [], []
  for training in (False, True):
    with tf.GradientTape() as tape:
      value = tf.reduce_sum(kl.kl_bound(encoder, images, 0.02, training=training))
    values.append(value)
    slopes.append(float(tf.reduce_sum(tape.gradient(value, kernel.value) * kernel)))
  np.testing.assert_allclose(*values, rtol=1e-4)
  assert abs(slopes[1]) < 0.05 * abs(slopes[0])
