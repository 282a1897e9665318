"""`robustify`: a trained Keras model becomes a robust encoder that starts as a copy of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import digits, neighbours_score, rows_of, sequential

import urkle_tf
from urkle_tf import attacks, networks
from urkle_tf.training import pretraining

pytestmark = pytest.mark.usefixtures("undrawn")
EPSILON = 0.1
TRAINING = {"augment": "none", "epsilon": EPSILON, "attack_steps": 3, "batch_size": 128}
TRAINING |= {"optimizer": "adamw", "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def classifier():
  """(an embedding of 12 dimensions, the head on it) of digits; it takes pixels from 0 to 16."""
  keras.utils.set_random_seed(0)
  layers = keras.layers
  pixels = keras.Input((8, 8, 1))
  hidden = layers.Conv2D(16, 3, padding="same", use_bias=False)(pixels)
  hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
  hidden = layers.Conv2D(16, 3, strides=2, activation="relu")(hidden)
  embedding = layers.Dense(12)(layers.Flatten()(hidden))
  scores = layers.Dense(10)(layers.ReLU()(embedding))
  trained = keras.Model(pixels, scores)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  trained.compile(keras.optimizers.Adam(1e-2), loss)
  images, labels = digits()
  trained.fit(16 * images[:1400], labels[:1400], batch_size=100, epochs=6, verbose=0)
  return keras.Model(pixels, embedding), keras.Model(embedding, scores)


@pytest.fixture(scope="module")
def model(classifier):
  return classifier[0]


RHO = 0.004  # less than the KL alone would leave


@pytest.fixture(scope="module")
def drop_in(model, tmp_path_factory):
  """(the model made robust, the run's folder)."""
  folder = tmp_path_factory.mktemp("robust") / "drop_in"
  options = {**TRAINING, "drop_in": True, "rho": RHO, "epochs": 12}
  return urkle_tf.robustify(model, folder, keras.layers.Rescaling(16.0), **options), folder


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
  """(the encoder, the run's folder)."""
  folder = tmp_path_factory.mktemp("robust") / "run"
  options = {**TRAINING, "batch_statistics": True, "beta": 0.3, "epochs": 8}
  return urkle_tf.robustify(model, folder, keras.layers.Rescaling(16.0), **options), folder


def accuracy_and_drift(embed):
  """(accuracy of five neighbours, distance to the worst neighbour in mean distances)."""
  images, _ = digits()
  some = tf.constant(images[1400:1500])
  clean = embed(some)
  away = lambda x: tf.reduce_sum(tf.square(embed(x) - clean), -1)  # noqa: E731
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=10)
  worst = np.sqrt(away(attack(away, some, [0, 1])))
  apart = np.linalg.norm(clean[:, None] - clean[None], axis=-1)
  return neighbours_score(embed(images)), worst.mean() / apart.mean()


@pytest.mark.full
def test_it_knows_what_the_model_knew_and_moves_less(model, run):
  encoder, _ = run
  before = accuracy_and_drift(lambda images: model(16 * images, training=False))
  after = accuracy_and_drift(lambda images: encoder(images, training=False).loc)
  assert before[0] > 0.9
  assert after[0] > before[0] - 0.08
  assert after[1] < 0.75 * before[1]


def test_it_starts_as_a_copy(model, run):
  _, folder = run
  images = digits()[0][:20]
  backbone = networks.backbone(str(folder / "teacher.keras"), (8, 8, 1))
  encoder = networks.GaussianEncoder(backbone, latent_dim=12, loc="dense")
  inner = keras.Model(encoder.network.input, encoder.network.get_layer("raw_loc").input)
  wanted = model(16 * images, training=False)
  np.testing.assert_allclose(inner(images, training=False), wanted, atol=2e-4)


def worst(model, head, images, labels):
  """The accuracy of a head under PGD-10."""
  logits = lambda x: head(model(16 * x, training=False))  # noqa: E731
  loss = lambda x: keras.losses.sparse_categorical_crossentropy(labels, logits(x), True)  # noqa: E731
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=10)
  return np.mean(np.argmax(logits(attack(loss, tf.constant(images), [0, 1])), -1) == labels)


def test_the_old_head_works_on_a_drop_in_and_resists(classifier, drop_in):
  (model, head), (result, folder) = classifier, drop_in
  images, labels = (part[1400:] for part in digits())
  accuracy = lambda m: np.mean(np.argmax(head(m(16 * images)), -1) == labels)  # noqa: E731
  assert accuracy(result) > accuracy(model) - 0.03
  assert worst(result, head, images, labels) > worst(model, head, images, labels) + 0.05
  written = keras.saving.load_model(folder / "model.keras")
  np.testing.assert_array_equal(written(16 * images), result(16 * images))


def test_a_drop_in_is_within_its_budget(model, drop_in):
  result, folder = drop_in
  images = digits()[0]
  f, f0 = result(16 * images).numpy(), model(16 * images).numpy()
  drift = np.square(f - f0).sum(1).mean() / np.square(f0 - f0.mean(0)).sum(1).mean()
  assert 0.5 * RHO < drift < 1.3 * RHO
  last = rows_of(folder)[-1]
  assert min(last["multiplier"], last["kl"]) > 0
  assert last["drift"] == pytest.approx(drift, rel=0.3)


def test_a_drop_in_is_the_model_with_other_weights(model, drop_in):
  result, folder = drop_in
  describe = lambda m: [(type(layer), layer.name, layer.trainable) for layer in m.layers]  # noqa: E731
  assert describe(result) == describe(model)
  assert [w.path for w in result.weights] == [w.path for w in model.weights]
  # The loc of RUN/encoder is its embedding, and sigma 0.25 of the spread of the original's.
  images = digits()[0]
  normal = urkle_tf.load_encoder(folder / "encoder")(images[:50], training=False)
  np.testing.assert_allclose(normal.loc, result(16 * images[:50]), rtol=1e-3, atol=1e-3)
  spread = np.sqrt(model(16 * images).numpy().var(0).mean())
  np.testing.assert_allclose(normal.scale, 0.25 * spread, rtol=0.05)
  assert str(folder) not in (folder / "encoder/metadata.json").read_text()


@pytest.mark.parametrize(
  "given", [{"encoder": None, "optimizer": None}, {"optimizer": "adamw(beta_2=0.99)"}]
)
def test_without_a_learning_rate_a_trained_model_takes_short_steps(model, tmp_path, given):
  options = {"drop_in": True, "epochs": 1, "attack_steps": 1, "batch_size": 1024}
  options |= {"learning_rate": None, **given}
  urkle_tf.robustify(model, tmp_path / "run", keras.layers.Rescaling(16.0), **options)
  settings = urkle_tf.load_encoder(tmp_path / "run" / "encoder").metadata["settings"]
  expected = given["optimizer"] or "adamw", 1e-4
  assert (settings["optimizer"], settings["learning_rate"]) == expected


@pytest.mark.full
def test_a_file_is_read_with_its_conversion_of_pixels(model, tmp_path):
  """Also for a Gaussian encoder; the teacher takes images in [0, 1]."""
  model.save(tmp_path / "model.keras")
  options = {"epochs": 1, "attack_steps": 1, "batch_size": 1024}
  given = str(tmp_path / "model.keras"), tmp_path / "run", keras.layers.Rescaling(16.0)
  encoder = urkle_tf.robustify(*given, **options)
  images = digits()[0][:5]
  teacher = keras.saving.load_model(tmp_path / "run" / "teacher.keras")
  np.testing.assert_allclose(teacher(images), model(16 * images), rtol=1e-5, atol=1e-5)
  assert encoder.latent_dim == model.output_shape[-1]


def test_model_and_run_may_lie_at_home(tmp_path, monkeypatch):
  """Else it ended after the training: its encoder was at home, and was looked for elsewhere."""
  monkeypatch.setenv("HOME", str(tmp_path))
  model = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(3))
  model.save(tmp_path / "model.keras")
  seen = []

  def pretrain(output_dir, pretext, **_):
    seen.append((output_dir, pretext))
    return {"encoder": urkle_tf.export_encoder(networks.GaussianEncoder(model), "~/run/encoder")}

  monkeypatch.setattr(pretraining, "pretrain", pretrain)
  assert urkle_tf.robustify("~/model.keras", "~/run").latent_dim == 3
  assert seen == [(f"{tmp_path}/run", f'distil(teacher="{tmp_path}/model.keras")')]


@pytest.mark.parametrize("given", [None, keras.layers.Dense(3)])
def test_what_is_neither_a_model_nor_a_path_is_named(given, tmp_path):
  """It was looked for as a folder of its own name."""
  refuses("got & : of an encoder", urkle_tf.robustify, given, tmp_path / "run")


def test_another_model_in_the_same_folder_is_refused(model, run):
  _, folder = run
  other = keras.models.clone_model(model)  # with other weights
  words = "another model: give another output_dir"
  refuses(words, urkle_tf.robustify, other, folder, keras.layers.Rescaling(16.0))


def test_the_run_of_a_folder_keeps_its_preprocessing(model, run):
  """Such a call resumed, and returned an encoder of other pixels."""
  _, folder = run
  words = "this model with another preprocess"
  refuses(words, urkle_tf.robustify, model, folder, keras.layers.Rescaling(8.0))


def test_what_a_refused_call_left_behind_is_replaced(model, tmp_path):
  """The next call read its teacher, and was refused too; so it was with half a file."""
  options = {"drop_in": True, "epochs": 1, "attack_steps": 1, "batch_size": 1024}
  refuses("batch norm", urkle_tf.robustify, model, tmp_path / "run", **options)
  assert [file.name for file in (tmp_path / "run").iterdir()] == ["teacher.keras"]
  for left_over in ("teacher.keras", "side-teacher.keras"):
    (tmp_path / "run" / left_over).write_bytes(b"half")
  urkle_tf.robustify(model, tmp_path / "run", keras.layers.Rescaling(16.0), **options)
  teacher = keras.saving.load_model(tmp_path / "run" / "teacher.keras")
  images = digits()[0][:5]
  np.testing.assert_allclose(teacher(images), model(16 * images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"drop_in": True, "rho": 0.1, "k": 2}, "give rho, or a weight"),
    ({"rho": 0.1}, "rho goes with drop_in=True"),
    ({"rho_of": "length"}, "rho_of goes with drop_in=True"),
    ({"drop_in": True, "latent_dim": 3}, "leave encoder, latent_dim and loc out"),
    # The model takes pixels from 0 to 16.
    ({"drop_in": True, "epochs": 1}, "batch norm & of & teacher.keras & times the var"),
    ({"robustness": "none"}, "robustify chooses robustness"),
  ],
)
def test_what_is_refused(model, tmp_path, options, words):
  refuses(words, urkle_tf.robustify, model, tmp_path, **options)


def test_models_that_are_refused(tmp_path):
  first, second = keras.Input((8, 8, 1)), keras.Input((4,))
  pair = keras.Model([first, second], keras.layers.Dense(4)(second))
  refuses("must take one batch of images", urkle_tf.robustify, pair, tmp_path)
  given = str(tmp_path), tmp_path, keras.layers.Rescaling(2.0)
  refuses("go with a Keras model", urkle_tf.robustify, *given)
  refuses("no file & nowhere.keras", networks.backbone, "nowhere.keras", (8, 8, 1))
  sequential((8, 8, 1), keras.layers.Conv2D(3, 3)).save(tmp_path / "maps.keras")
  given = str(tmp_path / "maps.keras"), (2, 2, 1)
  refuses("cannot be a backbone for images of 2x2x1", networks.backbone, *given)
