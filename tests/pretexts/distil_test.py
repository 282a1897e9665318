"""Distillation: the pull towards a frozen teacher, and the teachers that are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refused, refuses, slow
from small_models import (
  RUN,
  digits,
  precision,
  representations,
  sequential,
  tiny_encoder,
  tiny_trainer,
)

import urkle_tf
from urkle_tf import attacks, export, networks, pretexts, robustness
from urkle_tf.data import sources

SHAPE = (8, 8, 1)


def _maps():
  """A network from images of any size to feature maps of 5 channels."""
  keras.utils.set_random_seed(1)
  convolution = keras.layers.Conv2D(5, 3, strides=2, activation="relu")
  return sequential((None, None, 1), convolution, keras.layers.BatchNormalization())


def _attached(teacher, latent_dim=6, **options):
  pretext = pretexts.Distil(teacher, **options)
  pretext.attach(tiny_encoder(latent_dim))
  return pretext


def _loss(pretext, z, targets):
  return pretext.loss(representations(9.0 - z, z=z), tf.constant(targets, tf.float32))


def _cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("clean, adversarial", [(1, 1), (0.7, 3)])
@pytest.mark.parametrize("members, views", [(1, 1), (2, 1), (4, 2), (3, 2)])
def test_the_loss_is_the_plain_loop(rng, exported, members, views, clean, adversarial):
  pretext = _attached(exported, views=views, clean=clean, adversarial=adversarial)
  z, targets = rng.normal(size=(5, members, 6)), rng.normal(size=(5, views, 6))
  expected = np.zeros(5)
  for i in range(5):
    for m in range(members):
      weight = clean if m < views else adversarial
      expected[i] += weight * (1 - _cosine(z[i, m], targets[i, m % views])) / members
  np.testing.assert_allclose(_loss(pretext, z, targets)["distillation"], expected, rtol=1e-4)


def test_the_loss_by_hand(exported):
  """The same direction, a right angle, the opposite; the lengths do not matter."""
  e = np.eye(6)
  z = np.stack([3 * e[:1], e[:1], e[:1]])
  targets = np.stack([e[:1], 2 * e[1:2], -e[:1]])
  loss = _loss(_attached(exported), z, targets)["distillation"]
  np.testing.assert_allclose(loss, [0, 1, 2], atol=1e-6)


def test_our_encoders_loc_is_the_target(rng, encoder, exported):
  views = rng.uniform(size=(3, 2, *SHAPE)).astype("float32")
  pretext = _attached(exported, views=2)
  assert pretext.projector is None  # z is in the teacher's space
  targets = pretext.prepare(tf.constant(views), {})
  for k in range(2):
    expected = encoder.network(views[:, k], training=False)["loc"]
    np.testing.assert_allclose(targets[:, k], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(_loss(pretext, targets, targets)["distillation"], 0, atol=1e-6)


def _with_loc(kind):
  """An encoder whose loc is made of 24 features in one of the ways that `Distil` knows."""
  layers = keras.layers
  keras.utils.set_random_seed(0)
  images = keras.Input(SHAPE)
  loc = features = networks.convnet(SHAPE, width=8, layers=3)(images)
  if kind == "centred":
    loc = layers.BatchNormalization(name="centred")(features)
  if kind == "mapped":
    loc = layers.Dense(24, name="raw_loc")(features)
  loc = layers.Identity(name="loc")(layers.UnitNormalization()(loc))
  return export.ExportedEncoder(keras.Model(images, {"loc": loc, "scale": 1 + 0 * features}))


def test_targets_may_be_the_pooled_features(rng, encoder, exported):
  pretext = pretexts.Distil(exported, views=2, targets="pooled")
  pretext.attach(_with_loc("features"))
  views = rng.uniform(size=(3, 2, *SHAPE)).astype("float32")
  (backbone,) = (layer for layer in encoder.network.layers if isinstance(layer, keras.Model))
  expected = backbone(2 * views.reshape(6, *SHAPE) - 1, training=False)  # its images: [-1, 1]
  targets = pretext.prepare(tf.constant(views), {})
  np.testing.assert_allclose(targets, np.reshape(expected, (3, 2, 24)), rtol=1e-4, atol=1e-5)
  # The direction alone counts, and a student on a sphere has that of its features.
  assert pretext.projector is None
  unit = targets / np.linalg.norm(targets, axis=-1, keepdims=True)
  np.testing.assert_allclose(_loss(pretext, unit, targets)["distillation"], 0, atol=1e-6)


@pytest.mark.parametrize("student", ["features", "centred", "mapped", "dense"])
@pytest.mark.parametrize("targets", ["pooled", *slow("loc", "foreign", "features")])
def test_z_is_mapped_to_targets_of_another_kind(exported, tmp_path, student, targets):
  path, options = exported, {"targets": "pooled"} if targets == "pooled" else {}
  if targets == "foreign":
    networks.convnet(SHAPE, width=8, layers=3).save(path := str(tmp_path / "any.keras"))
  elif targets != "pooled":
    teacher = _with_loc("features") if targets == "features" else tiny_encoder(24)
    path = str(export.export_encoder(teacher, tmp_path / "encoder"))
  pretext = pretexts.Distil(path, **options)
  pretext.attach(tiny_encoder(24) if student == "dense" else _with_loc(student))
  same = student in (("centred", "dense") if targets == "loc" else ("features",))
  assert (pretext.projector is None) == same


@pytest.mark.parametrize("kind", ["keras", "saved"])
def test_foreign_feature_maps_are_averaged(rng, tmp_path, kind):
  model = _maps()
  path = str(tmp_path / ("maps.keras" if kind == "keras" else "maps"))
  model.save(path) if kind == "keras" else model.export(path, verbose=False)
  pretext = _attached(path, latent_dim=5)
  # The widths agree, but a foreign embedding need not be centred as z is.
  assert [v.shape for v in pretext.projector.trainable_variables] == [(5, 5), (5,)]
  views = rng.uniform(size=(3, 1, *SHAPE)).astype("float32")
  targets = pretext.prepare(tf.constant(views), {})
  expected = np.mean(model(views[:, 0], training=False), axis=(1, 2))
  np.testing.assert_allclose(targets[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "options, shapes", [({}, [(4, 6), (6,)]), ({"projector": 7}, [(4, 7), (7,), (7,), (7, 6), (6,)])]
)
def test_z_is_mapped_where_it_has_another_width(rng, exported, options, shapes):
  pretext = _attached(exported, latent_dim=4, **options)
  assert [v.shape for v in pretext.projector.trainable_variables] == shapes
  z, targets = rng.normal(size=(5, 2, 4)), rng.normal(size=(5, 1, 6))
  mapped = pretext.projector(np.float32(z.reshape(10, 4)), training=True).numpy().reshape(5, 2, 6)
  expected = [np.mean([1 - _cosine(row, t[0]) for row in rows]) for rows, t in zip(mapped, targets)]
  np.testing.assert_allclose(_loss(pretext, z, targets)["distillation"], expected, rtol=1e-4)


def _convolutions(pretext):
  """The dtypes of the convolutions and matrix products that make the targets."""
  spec = tf.TensorSpec([4, 1, *SHAPE], tf.float32)
  prepare = tf.function(lambda views: pretext.prepare(views, {}), autograph=False)
  graph = prepare.get_concrete_function(spec).graph.as_graph_def()
  nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
  kinds = {"Conv2D": [], "MatMul": []}
  for node in nodes:
    if node.op in kinds:
      kinds[node.op].append(tf.as_dtype(node.attr["T"].type).name)
  return kinds


@pytest.mark.parametrize("kind", ["own", *slow("keras", "saved")])
def test_the_teacher_runs_in_the_precision_of_the_training(rng, exported, tmp_path, kind):
  path = (
    exported if kind == "own" else str(tmp_path / ("maps.keras" if kind == "keras" else "maps"))
  )
  if kind != "own":
    _maps().save(path) if kind == "keras" else _maps().export(path, verbose=False)
  images, found = tf.constant(digits()[0][:4, None]), {}
  for policy in ("float32", "mixed_bfloat16", "float32"):
    with precision(policy):
      pretext = _attached(path)
    kinds, targets = _convolutions(pretext), pretext.prepare(images, {}).numpy()
    low = policy != "float32" and kind != "saved"  # a graph keeps its own
    assert set(kinds["Conv2D"]) == {"bfloat16" if low else "float32"}
    assert set(kinds["MatMul"]) <= {"float32"}  # the heads
    assert len(kinds["MatMul"]) == (kind == "own")
    assert targets.dtype == np.float32
    if policy in found:
      np.testing.assert_array_equal(targets, found[policy])
    found[policy] = targets
  moved = np.abs(found["mixed_bfloat16"] - found["float32"]).max()
  assert moved < 0.05 * np.abs(found["float32"]).max()
  assert (moved > 1e-6) == (kind != "saved")


def test_the_teacher_is_neither_trained_nor_stored(exported):
  pretext = pretexts.Distil(exported)
  trainer = tiny_trainer(pretext=pretext)
  assert not pretext.variables
  encoder, optimizer = trainer.encoder.variables, trainer.optimizer.variables
  metrics = {id(v) for m in trainer.metrics for v in m.variables}
  known = {id(v) for v in (*encoder, *optimizer, trainer.skips)} | metrics
  assert {id(v) for v in trainer.variables} <= known


def test_a_student_takes_over_the_representation_and_the_teacher_stays(exported):
  images, _ = digits()
  pretext = pretexts.Distil(exported)
  attack = attacks.PGD(attacks.Linf(0.05), steps=1)
  optimizer = keras.optimizers.Adam(0.02)
  trainer = tiny_trainer(robustness.Urkle(beta=0.003), attack, pretext, optimizer, seed=1)
  held = tf.constant(images[1500:, None])
  targets = pretext.prepare(held, {})

  def cosine():
    loc = trainer.encoder(images[1500:], training=False).loc
    return float(1 - np.mean(_loss(pretext, loc[:, None], targets)["distillation"]))

  before = cosine()
  data = tf.data.Dataset.from_tensor_slices({"views": images[:1500, None]}).batch(100, True)
  history = trainer.fit(data, epochs=4, verbose=0).history
  assert cosine() > max(0.6, before + 0.3)
  assert history["distillation"][-1] < history["distillation"][0]
  np.testing.assert_array_equal(pretext.prepare(held, {}), targets)


def _outputs(encoder):
  images, _ = digits()
  return encoder.network.predict(images[:20], verbose=0)


@pytest.mark.full
def test_a_student_starts_from_its_teacher(encoder, exported, mirrored):
  with mirrored.scope():
    student = networks.GaussianEncoder(networks.convnet(SHAPE, width=8, layers=3), 6, loc="dense")
    assert np.abs(_outputs(student)["loc"] - _outputs(encoder)["loc"]).max() > 0.1
    pretexts.Distil(exported, start=True).attach(student)
  for name, expected in _outputs(encoder).items():
    np.testing.assert_allclose(_outputs(student)[name], expected, rtol=1e-6)


def test_a_student_of_another_latent_dim_starts_with_the_backbone(encoder, exported):
  student = networks.GaussianEncoder(networks.convnet(SHAPE, width=8, layers=3), 4, loc="dense")
  fresh = student.network.get_layer("raw_loc").kernel.numpy()
  pretexts.Distil(exported, start=True).attach(student)
  np.testing.assert_array_equal(student.network.get_layer("raw_loc").kernel, fresh)

  def features(e):
    model = keras.Model(e.network.input, e.network.get_layer("raw_loc").input)
    return model.predict(digits()[0][:20], verbose=0)

  np.testing.assert_array_equal(features(student), features(encoder))


def test_the_start_is_given_once(exported, tmp_path):
  options = {
    **RUN,
    "pretext": f"distil(teacher='{exported}', start=true)",
    "init_from": str(exported),
  }
  refuses("both set the start: give one", urkle_tf.pretrain, str(tmp_path / "run"), **options)


def test_students_that_cannot_start_from_the_teacher(exported, tmp_path):
  pretext = pretexts.Distil(exported, start=True)
  with refused(match="and this encoder have different backbones: give the same"):
    pretext.attach(tiny_encoder())
  _maps().save(tmp_path / "any.keras")
  file = str(tmp_path / "any.keras")
  refuses("with --encoder=FILE.keras instead", pretexts.Distil, file, start=True)


def test_images_of_another_size(exported, tmp_path):
  pretext = pretexts.Distil(exported)
  pretext.adopt(sources.load("digits", "train"))
  larger = sources.load("digits", "train", image_size=16)
  refuses("the teacher takes images of 8x8x1, & --image_size=8", pretext.adopt, larger)
  with refused(match="takes images of 8x8x1, but the encoder takes 16x16x1"):
    pretext.attach(networks.GaussianEncoder(networks.convnet((16, 16, 1), width=4, layers=2)))
  _maps().save(tmp_path / "any.keras")
  pretexts.Distil(str(tmp_path / "any.keras")).adopt(larger)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"activation": "softmax"}, "returns probabilities, not an embedding"),
    ({"units": 1}, "returns [None, 1], but must return features"),
    ({"bias_initializer": keras.initializers.Constant(np.inf)}, "returns NaN or infinite values"),
  ],
)
def test_outputs_that_are_no_embedding(tmp_path, options, words):
  dense = keras.layers.Dense(**{"units": 3, **options})
  sequential(SHAPE, keras.layers.Flatten(), dense).save(tmp_path / "model.keras")
  with refused(words):
    pretexts.Distil(str(tmp_path / "model.keras")).attach(tiny_encoder())


def test_a_teacher_that_sees_no_difference(tmp_path):
  layers = keras.layers.Flatten(), keras.layers.Dense(3, kernel_initializer="zeros")
  sequential(SHAPE, *layers).save(tmp_path / "model.keras")
  pretext = pretexts.Distil(str(tmp_path / "model.keras"))
  refuses("model.keras' returns the same embedding", pretext.adopt, sources.load("digits"))


def test_a_teacher_that_fails_on_the_images(tmp_path):
  spec = tf.TensorSpec([None, None, None, 1], tf.float32, name="x")
  rows = tf.function(lambda x: {"y": tf.reshape(x, [-1, 100])}, input_signature=[spec])
  tf.saved_model.save(tf.Module(), str(tmp_path / "rows"), signatures={"serving_default": rows})
  pretext = pretexts.Distil(str(tmp_path / "rows"))
  refuses("fails on images of 8x8x1", pretext.attach, tiny_encoder())


@pytest.mark.parametrize(
  "options, words",
  [
    ({"teacher": "nowhere"}, "no folder & : give the folder of"),
    ({"teacher": "nowhere.keras"}, "no file"),
    ({"teacher": "."}, "is not an export of"),
    ({"projector": -1}, "distil: projector must be a whole number of at least 0, got -1"),
    ({"views": 0}, "distil: views must be a whole number of at least 1, got 0"),
    ({"targets": "polled"}, "unknown targets of distil 'polled'; did you mean 'pooled'"),
    ({"clean": -1}, "distil: clean must be at least 0, got -1"),
    ({"adversarial": -0.5}, "distil: adversarial must be at least 0, got -0.5"),
  ],
)
def test_wrong_options(exported, options, words):
  refuses(words, pretexts.Distil, **{"teacher": exported, **options})
