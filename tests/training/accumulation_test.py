"""A batch in parts: the same step as the whole, where the loss is a mean over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from small_models import RUN, rows_of, sequential

import urkle_tf
from urkle_tf import networks, pretexts, robustness
from urkle_tf.training import accumulation, cost, forecast


def trainer(parts, layer=None, **options):
  """Of an encoder without batch norms, or of another layer, on labels; z is loc."""
  keras.utils.set_random_seed(0)
  layer = layer or keras.layers.Dense(6, activation="gelu")
  features = sequential((8, 8, 1), keras.layers.Flatten(), layer)
  encoder = networks.GaussianEncoder(features, loc="pooled", **options)
  task = pretexts.Supervised(outputs=3, layers=1)
  learner = urkle_tf.Trainer(encoder, task, robustness.Plain())
  learner.compile(keras.optimizers.SGD(0.5), accumulate=parts)
  return learner


def batch():
  rng = np.random.default_rng(0)
  views = tf.constant(rng.uniform(size=(12, 1, 8, 8, 1)), tf.float32)
  return {"views": views, "label": tf.constant(rng.integers(3, size=12), tf.int32)}


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_take_the_step_of_the_whole(parts):
  whole, some = (trainer(number, momentum=1.0) for number in (1, parts))
  start = [variable.numpy() for variable in whole.encoder.weights]
  for _ in range(2):
    rows = [tf.function(learner.step)(batch()) for learner in (whole, some)]
    for name, value in rows[0].items():
      if name not in whole.diagnostics.names:  # some of which are of the batch as a whole
        np.testing.assert_allclose(rows[1][name], value, rtol=1e-4)
  same(some.trainable_variables, whole.trainable_variables, rtol=1e-4, atol=1e-6)
  moved = zip(start, whole.encoder.weights, strict=True)
  assert max(np.abs(before - after).max() for before, after in moved) > 1e-2


def test_two_replicas_take_parts_as_one_does(mirrored):
  def taken(scope):
    with scope.scope():
      learner = trainer(2, keras.layers.BatchNormalization(synchronized=True))
    # Each replica takes half of each part of the whole: rows 0 to 2, 6 to 8 and 3 to 5, 9 to 11.
    order = [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11] if scope is mirrored else range(12)
    rows = {name: tf.gather(value, list(order)) for name, value in batch().items()}
    data = tf.data.Dataset.from_tensors(rows).unbatch().batch(12, drop_remainder=True)
    learner.fit(data, verbose=0)
    return [variable.numpy() for variable in learner.encoder.weights]

  same(taken(mirrored), taken(tf.distribute.get_strategy()), rtol=1e-4, atol=1e-6)


def test_each_part_has_its_own_noise():
  seen = []

  def compute(views, batch, seed):
    seen.append(seed)
    return [tf.cast(seed, tf.float32), tf.reduce_sum(views)], {"loss": tf.reduce_mean(views)}

  rows = tf.reshape(tf.range(6.0), [6, 1])
  run = lambda: accumulation.mean(compute, rows, {}, tf.constant([3, 4]), 3)  # noqa: E731
  (seeds, total), shown = run()
  assert shown["loss"] == 2.5
  assert total == 5  # the mean of 1, 5 and 9
  assert len({tuple(seed.numpy()) for seed in seen}) == 3
  np.testing.assert_array_equal(seen[0], [3, 4])  # that of a whole batch
  np.testing.assert_allclose(seeds, np.mean([seed.numpy() for seed in seen], 0), rtol=1e-6)


def test_parts_cost_what_the_whole_costs_and_hold_less():
  graphs = []
  for parts in (1, 3):
    learner = trainer(parts)
    graphs.append(tf.function(learner.step).get_concrete_function(batch()).graph)
  whole, some = graphs
  inner = 2 * 6 * (12**2 - 3 * 4**2)  # products between examples, of which the rank is made
  assert cost.operations(some, parts=3) == cost.operations(whole) - inner
  assert cost.held(some) < 0.5 * cost.held(whole)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"accumulate": 2, "pretext": "simclr"}, "--accumulate: the loss of simclr compares"),
    ({"accumulate": 2, "pretext": "barlow_twins"}, "the loss of barlow_twins compares"),
    ({"accumulate": 2, "pretext": "vicreg"}, "the loss of vicreg compares"),
    ({"accumulate": 3, "pretext": "ae", "robustness": "none"}, "=16 does not divide into --acc"),
    ({"remat": True}, "give --batch_statistics=false"),  # which would move twice
  ],
)
def test_what_is_refused(options, words):
  refuses(words, forecast.forecast, **{**RUN, **options})


def test_a_batch_that_does_not_divide_ends_in_one_line():
  images = {name: values[:-1] for name, values in batch().items()}
  words = "does not divide into accumulate=3 equal parts"
  refuses(words, trainer(3).step, images)
  unknown = tf.data.Dataset.from_tensor_slices(images).batch(10)  # its size is, until the step
  refuses(words, trainer(3).fit, unknown, shuffle=False, verbose=0)


@pytest.mark.full
def test_a_drop_in_that_computes_again_takes_the_same_steps(tmp_path):
  pixels = keras.Input((8, 8, 1))
  x = keras.layers.Conv2D(4, 2, strides=2)(pixels)
  for _ in range(2):
    x = x + keras.layers.Conv2D(4, 3, padding="same", activation="gelu")(x)
  keras.Model(pixels, x).save(tmp_path / "model.keras")
  options = {**RUN, "loc": "pooled", "latent_dim": None, "encoder": str(tmp_path / "model.keras")}
  options |= {"pretext": f"keep(original='{tmp_path / 'model.keras'}')", "augment": "crop"}
  options |= {"optimizer": "adamw(layer_decay=0.75)", "learning_rate": 1e-3}
  options |= {"robustness": "urkle(anchor=original)"}
  found = []
  for remat in (False, True):
    urkle_tf.pretrain(tmp_path / f"{remat}", remat=remat, **options)
    found.append(rows_of(tmp_path / f"{remat}"))
  for one, other in zip(*found, strict=True):
    assert one["kl"] > 0
    assert one["drift"] > 0
    for name in ("kl", "drift", "loss", "gradient_norm"):
      assert other[name] == pytest.approx(one[name], rel=1e-3)
