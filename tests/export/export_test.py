"""Exports: signatures, folders, and a user's process that knows only TensorFlow and Keras."""

import io
import json
import logging
import shutil
import sys

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses, slow
from scipy import special
from small_models import digits, precision, small_encoder, tiny_encoder

from urkle_tf import attacks, export, networks
from urkle_tf.export import description, hub
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.kl import kl_objective
from urkle_tf.networks.regressor import Regressor


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
  settings = {"pretext": "simclr", "encoder": "convnet(width=8)", "epochs": 3}
  places = {"output_dir": "runs", "data_dir": "data", "init_from": "other"}
  settings |= {name: f"/home/somebody/{place}" for name, place in places.items()}
  settings["dataset"] = "folder:/home/somebody/photos"
  metadata = {"dataset": "digits", "norm": "linf", "epsilon": 0.1, "settings": settings}
  target = tmp_path_factory.mktemp("export") / "encoder"
  return export.export_encoder(encoder, target, metadata)


@pytest.fixture(scope="module")
def classifier(encoder):
  head = networks.mlp(6, [16, 10], "head")
  return Classifier(encoder.network, head, stochastic=True, samples=7)


@pytest.fixture(scope="module")
def classifier_folder(classifier, tmp_path_factory):
  return export.export_classifier(classifier, tmp_path_factory.mktemp("export") / "classifier")


def test_signatures_give_what_the_encoder_gives(encoder, folder):
  images = digits()[0][:5]
  loaded = tf.saved_model.load(str(folder))
  assert {"serving_default", "embed"} <= set(loaded.signatures)
  (spec,) = loaded.signatures["serving_default"].structured_input_signature[1].values()
  assert spec.shape == [None, 8, 8, 1]
  assert spec.dtype == tf.float32
  normal = encoder(images, training=False)
  outputs = loaded.signatures["serving_default"](images=tf.constant(images))
  assert set(outputs) == {"loc", "scale"}
  np.testing.assert_allclose(outputs["loc"], normal.loc, atol=1e-5)
  np.testing.assert_allclose(outputs["scale"], normal.scale, atol=1e-6)
  assert np.ptp(outputs["scale"]) > 0.01
  embedding = loaded.signatures["embed"](images=tf.constant(images))
  assert set(embedding) == {"embedding"}
  np.testing.assert_array_equal(embedding["embedding"], outputs["loc"])
  assert len(loaded.variables) == len(encoder.network.variables)


def test_metadata_holds_no_path_of_this_machine(folder):
  text = (folder / "metadata.json").read_text()
  assert "somebody" not in text
  metadata = json.loads(text)
  wanted = {"kind": "encoder", "image_size": [8, 8, 1], "latent_dim": 6, "value_range": [0, 1]}
  wanted |= {"stochastic": True, "epsilon": 0.1}
  assert wanted.items() <= metadata.items()
  assert metadata["versions"]["tensorflow"] == tf.__version__
  wanted = {"pretext": "simclr", "encoder": "convnet(width=8)", "dataset": "folder:photos"}
  assert metadata["settings"] == {**wanted, "epochs": 3}


def test_loaded_encoder_is_a_trainable_layer_that_can_be_attacked(encoder, folder):
  images = digits()[0][:8]
  layer = export.load_encoder(folder)
  normal = layer(images, training=False)
  np.testing.assert_allclose(normal.loc, encoder(images, training=False).loc, atol=1e-5)
  assert len(layer.trainable_variables) == len(encoder.trainable_variables)
  attack = attacks.PGD(attacks.Linf(0.1), steps=3)
  objective = kl_objective(layer, images)
  assert np.all(objective(attack(objective, images, [1, 2])) > objective(images))
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(layer(images, training=True).loc ** 2)
  assert all(g is not None for g in tape.gradient(loss, layer.network.get_layer("raw_loc").weights))


@pytest.mark.parametrize("loc", ["centred_sphere", "pooled"])
def test_an_encoder_that_was_exported_frozen_is_trainable(tmp_path, loc):
  """Otherwise `aff` and `similarity` would train the head alone, and say nothing."""
  encoder = tiny_encoder(None, loc=loc)
  names = {variable.path for variable in encoder.trainable_variables}
  encoder.trainable = False
  layer = export.load_encoder(export.export_encoder(encoder, tmp_path / "encoder"))
  assert {variable.path for variable in layer.trainable_variables} == names


def test_a_changed_encoder_has_another_fingerprint(folder, tmp_path):
  """And what a killed export left behind is cleared."""
  (tmp_path / ".same.side").mkdir()
  (tmp_path / ".same.side" / "half").write_text("")
  layer = export.load_encoder(folder)
  before = export.read_metadata(folder)["fingerprint"]
  export.export_encoder(layer, tmp_path / "same")
  assert export.read_metadata(tmp_path / "same")["fingerprint"] == before
  layer.network.get_layer("raw_loc").kernel.assign_add(np.full([24, 6], 1e-3, np.float32))
  export.export_encoder(layer, tmp_path / "same")  # replaces
  assert export.read_metadata(tmp_path / "same")["fingerprint"] != before
  assert [p.name for p in tmp_path.iterdir()] == ["same"]


def test_a_program_sees_no_lines_of_tensorflow_with_temporary_names(encoder, tmp_path):
  logger, lines = tf.get_logger(), io.StringIO()
  handler, level = logging.StreamHandler(lines), logger.level
  logger.addHandler(handler)
  logger.setLevel("INFO")
  try:
    export.export_encoder(encoder, tmp_path / "encoder")
    assert (lines.getvalue(), logger.level) == ("", logging.INFO)
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.full
def test_low_precision_stays_inside(tmp_path):
  with precision("mixed_bfloat16"):
    encoder = small_encoder()
  export.export_encoder(encoder, tmp_path / "encoder")
  images = tf.constant(digits()[0][:3])
  loaded = tf.saved_model.load(str(tmp_path / "encoder"))
  outputs = loaded.signatures["serving_default"](images=images)
  assert {value.dtype for value in outputs.values()} == {tf.float32}
  normal = export.load_encoder(tmp_path / "encoder")(images)
  np.testing.assert_allclose(normal.loc, encoder(images, training=False).loc, atol=1e-6)


@pytest.mark.full
def test_export_from_a_mirrored_encoder(mirrored, tmp_path):
  with mirrored.scope():
    encoder = small_encoder()
  export.export_encoder(encoder, tmp_path / "encoder")
  images = digits()[0][:3]
  loaded = tf.saved_model.load(str(tmp_path / "encoder"))
  found = loaded.serving_default(tf.constant(images))["loc"]
  np.testing.assert_allclose(found, encoder(images, training=False).loc, atol=1e-5)


def test_a_failed_export_leaves_the_old_one_and_nothing_else(encoder, tmp_path, monkeypatch):
  target = tmp_path / "encoder"
  export.export_encoder(encoder, target, {"dataset": "first"})

  def full(*args):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

  monkeypatch.setattr(description, "write", full)
  with pytest.raises(OSError, match=r"No space left on device$"):
    export.export_encoder(encoder, target, {"dataset": "second"})
  monkeypatch.undo()
  refuses("epsilon is 'big'", export.export_encoder, encoder, target, {"epsilon": "big"})
  assert [p.name for p in tmp_path.iterdir()] == ["encoder"]
  assert export.read_metadata(target)["dataset"] == "first"
  export.load_encoder(target)


def test_what_a_kill_between_two_moves_hid_is_there_again(encoder, tmp_path, monkeypatch):
  target = tmp_path / "encoder"
  export.export_encoder(encoder, target, {"dataset": "first"})
  target.rename(tmp_path / ".encoder.old")
  monkeypatch.setattr(description, "write", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    export.export_encoder(encoder, target, {"dataset": "second"})
  assert [p.name for p in tmp_path.iterdir()] == ["encoder"]
  assert export.read_metadata(target)["dataset"] == "first"


def test_a_folder_at_home_is_read_where_it_was_written(encoder, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert export.export_encoder(encoder, "~/encoder") == tmp_path / "encoder"
  again = export.load_encoder("~/encoder")
  np.testing.assert_array_equal(again.get_weights()[0], encoder.network.get_weights()[0])
  assert hub.model_card("~/encoder") == tmp_path / "encoder" / "README.md"


def test_other_folders_are_never_replaced(encoder, tmp_path):
  (tmp_path / "thesis.tex").write_text("all of it")
  refuses("holds something else", export.export_encoder, encoder, tmp_path)
  assert (tmp_path / "thesis.tex").read_text() == "all of it"
  refuses("is a file", export.export_encoder, encoder, tmp_path / "thesis.tex")


def test_one_clear_line_for_folders_that_are_no_exports(folder, classifier_folder, tmp_path):
  words = "no folder & give the folder of an encoder"
  refuses(words, export.read_metadata, tmp_path / "nowhere", "encoder")
  refuses("holds an encoder, not a classifier", export.load_classifier, folder)
  metadata = export.read_metadata(folder) | {"format_version": 99}
  (tmp_path / "metadata.json").write_text(json.dumps(metadata))
  refuses("format 99", export.read_metadata, tmp_path)
  del metadata["fingerprint"]
  (tmp_path / "metadata.json").write_text(json.dumps(metadata))
  refuses("lacks 'fingerprint': export again", export.read_metadata, tmp_path)
  metadata = export.read_metadata(folder)
  (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"format_version": 1}))
  refuses("lacks network.keras", export.load_encoder, tmp_path)
  (tmp_path / "network.keras").write_bytes((folder / "network.keras").read_bytes()[:1000])
  refuses("cannot read", export.load_encoder, tmp_path)


def log_mean_exp(loc, scale, noise, layers):
  """The sampled prediction in NumPy and float64."""
  (w1, gamma, beta, mean, variance), (w2, b2) = layers
  hidden = np.float64(loc[:, None] + scale[:, None] * noise) @ w1
  hidden = np.maximum((hidden - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0)
  each = special.log_softmax(hidden @ w2 + b2, -1)
  return special.logsumexp(each, 1) - np.log(noise.shape[1])


@pytest.mark.parametrize("size", [1e4, *slow(1.0)])
def test_sampled_is_the_log_of_the_mean_probability(encoder, tmp_path, size):
  # With logits of 1e4 most probabilities are below the smallest float: they must not be cut.
  keras.utils.set_random_seed(5)
  head = networks.mlp(6, [16, 10], "head")
  head.get_layer("dense2").kernel.assign(size * head.get_layer("dense2").kernel)
  model = Classifier(encoder.network, head)
  export.export_classifier(model, tmp_path / "classifier")
  loaded = tf.saved_model.load(str(tmp_path / "classifier"))
  images = digits()[0][:4]
  draws = {"seed": tf.constant([3, 4]), "samples": tf.constant(9)}
  found = loaded.signatures["sampled"](images=tf.constant(images), **draws)
  assert set(found) == {"log_probabilities"}
  normal = encoder(images, training=False)
  noise = tf.random.stateless_normal([4, 9, 6], [3, 4]).numpy()
  parts = (head.get_layer(name).get_weights() for name in ("dense1", "norm1", "dense2"))
  (kernel, *_), norm, last = parts
  layers = [kernel, *norm], last
  wanted = log_mean_exp(normal.loc.numpy(), normal.scale.numpy(), noise, layers)
  assert (wanted < -1000).any() == (size > 1)
  found = found["log_probabilities"]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  ours = model.log_probabilities(images, [3, 4], 9)
  np.testing.assert_allclose(ours, found, rtol=1e-5, atol=1e-5)
  refuses("samples must be a whole number of at least 1", model.log_probabilities, images, None, 0)


def test_sampled_is_differentiable_through_loc_and_scale(classifier, classifier_folder):
  loaded = tf.saved_model.load(str(classifier_folder))
  images = tf.constant(digits()[0][:2])

  def value(images):
    return loaded.sampled(images, tf.constant([1, 2]), tf.constant(50))["log_probabilities"][:, 3]

  with tf.GradientTape() as tape:
    tape.watch(images)
    total = tf.reduce_sum(value(images))
  gradient = tape.gradient(total, images).numpy()
  direction = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
  step = 1e-3  # short enough to cross hardly any kink of a ReLU
  slope = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
  np.testing.assert_allclose(np.sum(gradient * direction, (1, 2, 3)), slope, rtol=0.05)
  # The scale's share: the same without a gradient through it is another gradient.
  with tf.GradientTape() as tape:
    tape.watch(images)
    loc, scale = classifier.represent(images)
    noise = tf.random.stateless_normal([2, 50, 6], [1, 2])
    total = tf.reduce_sum(classifier.from_noise(loc, tf.stop_gradient(scale), noise)[:, 3])
  assert np.abs(tape.gradient(total, images).numpy() - gradient).max() > 1e-4


def test_classifier_signatures(classifier, classifier_folder):
  loaded = tf.saved_model.load(str(classifier_folder))
  images = tf.constant(digits()[0][:6])
  logits = loaded.signatures["deterministic"](images=images)["logits"]
  loc, scale = classifier.represent(images)
  np.testing.assert_allclose(loaded.signatures["head"](z=loc)["logits"], logits, atol=1e-5)
  np.testing.assert_allclose(classifier.logits(images), logits, atol=1e-5)
  serve = loaded.signatures["serving_default"]
  served = np.array([serve(images=images)["probabilities"] for _ in range(200)])
  assert served.shape == (200, 6, 10)
  np.testing.assert_allclose(served.sum(2), 1, atol=1e-5)
  assert np.abs(served[0] - served[1]).max() > 1e-4  # fresh noise
  # The mean of many served predictions is the limit classifier.
  limit = np.exp(classifier.log_probabilities(images, [0, 0], 5000))
  spread = np.std(served, 0)
  np.testing.assert_array_less(np.abs(np.mean(served, 0) - limit), 5 * spread / np.sqrt(200) + 5e-3)
  # 7 samples are served: the spread is that of a mean of 7.
  one = loc[:, None] + scale[:, None] * tf.random.normal([6, 1000, 6])
  one = tf.nn.softmax(classifier.head(tf.reshape(one, [-1, 6]))).numpy()
  one = one.reshape(6, 1000, 10).std(1)
  np.testing.assert_allclose(spread.mean() / one.mean(), 7**-0.5, rtol=0.15)


def test_a_deterministic_classifier_uses_no_noise(encoder, tmp_path):
  head = networks.mlp(6, [3], "head")
  model = Classifier(encoder.network, head, stochastic=False)
  model.class_names = ["a", "b", "c"]
  export.export_classifier(model, tmp_path / "classifier", {"dataset": "digits"})
  loaded = tf.saved_model.load(str(tmp_path / "classifier"))
  images = tf.constant(digits()[0][:3])
  wanted = tf.nn.softmax(model.logits(images)).numpy()
  for _ in range(2):
    np.testing.assert_allclose(loaded.serving_default(images)["probabilities"], wanted, atol=1e-6)
  sampled = loaded.sampled(images, tf.constant([1, 2]), tf.constant(4))["log_probabilities"]
  np.testing.assert_allclose(np.exp(sampled), wanted, atol=1e-6)
  again = export.load_classifier(tmp_path / "classifier")
  assert again.stochastic is False
  assert again.class_names == ["a", "b", "c"]
  assert again.metadata["classes"] == 3
  np.testing.assert_allclose(again(images), wanted, atol=1e-6)


def test_a_head_of_another_width_is_refused(encoder):
  head = networks.mlp(5, [3], "head")
  refuses("6 dimensions, but the head takes 5", Classifier, encoder.network, head)


@pytest.mark.parametrize(
  "kind, label, value",
  [(Classifier, "class_names", ["a", "b", "c"]), (Regressor, "target", "the angle")],
)
def test_predictors_are_saved_and_read_as_keras_models(encoder, tmp_path, kind, label, value):
  model = kind(encoder.network, networks.mlp(6, [3], "head"), stochastic=False, samples=7)
  setattr(model, label, value)
  model.metadata = {"settings": {"epochs": 3}}
  images, pixels = digits()[0][:3], keras.Input((8, 8, 1))
  for saved in (model, keras.Model(pixels, model(pixels))):
    saved.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)
    inner = again if saved is model else again.layers[1]
    assert (inner.stochastic, inner.samples, getattr(inner, label)) == (False, 7, value)
    assert inner.metadata == {"settings": {"epochs": 3}}


USER = """
import importlib.util, runpy
example, folder, file, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("example", example)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import numpy as np, tensorflow as tf
data = np.load(file)
images, labels = data["images"], data["labels"]
loaded = tf.saved_model.load(folder)
outputs = loaded.serving_default(tf.constant(images[:50]))
network = module.keras.saving.load_model(folder + "/network.keras")(images[:50], training=False)
result = {
  "loc": outputs["loc"], "scale": outputs["scale"],
  "network_loc": network["loc"], "network_scale": network["scale"],
}
models = {
  "saved": module.on_saved_model(folder, images.shape[1:], 10),
  "frozen": module.on_saved_model(folder, images.shape[1:], 10, trainable=False),
  "network": module.on_network(folder, 10),
}
for name, model in models.items():
  before = [w.numpy() for w in model.weights]
  history = model.fit(images, labels, batch_size=64, epochs=3, shuffle=False, verbose=0).history
  moved = [float(np.abs(w.numpy() - b).max()) for w, b in zip(model.weights, before)]
  result[name + "_moved"] = moved
  result[name + "_loss"] = history["loss"]
  result[name + "_saliency"] = module.saliency(model, images[:50], labels[:50])
np.savez(out, **result)
sys.argv = [example, folder, file]
runpy.run_path(example, run_name="__main__")  # as it is, too
"""


@pytest.mark.full
def test_a_program_that_knows_only_tensorflow_and_keras(encoder, folder, tmp_path):
  images, labels = digits()
  np.savez(tmp_path / "images.npz", images=images[:320], labels=labels[:320])
  example = commands.ROOT / "examples" / "finetune_export.py"
  arguments = [str(example), str(folder), str(tmp_path / "images.npz"), str(tmp_path / "out.npz")]
  words = (sys.executable, "-c", commands.ALONE + USER, *arguments)
  said = commands.process(*words, cwd=tmp_path).stdout
  assert all(float(line.split("steepest pixel")[1]) > 0 for line in said.splitlines())
  assert [line.split(":")[0] for line in said.splitlines()] == ["SavedModel", "network.keras"]
  with np.load(tmp_path / "out.npz") as stored:
    found = dict(stored)
  normal = encoder(images[:50], training=False)
  for prefix in ("", "network_"):
    np.testing.assert_allclose(found[f"{prefix}loc"], normal.loc, atol=1e-5)
    np.testing.assert_allclose(found[f"{prefix}scale"], normal.scale, atol=1e-5)
  for name in ("saved", "frozen", "network"):
    assert found[f"{name}_loss"][-1] < found[f"{name}_loss"][0]
    assert np.abs(found[f"{name}_saliency"]).max() > 0
  # Everything trainable that loc depends on has moved (conv, norm, raw_loc, Dense: the head for
  # scale has no part in it).
  assert np.sum(found["saved_moved"] > 0) == 3 * 3 + 1 + 2
  assert len(found["saved_moved"]) == 3 * 3 + 1 + 2 + 4 * 2  # no weight of the scale's head
  assert np.sum(found["frozen_moved"] > 0) == 2
  # With network.keras the statistics of the four batch norms move too.
  assert np.sum(found["network_moved"] > 0) == 3 * 3 + 1 + 2 + 4 * 2


def test_what_lies_beside_the_wanted_export_is_named(tmp_path, folder):
  (tmp_path / "model.h5").write_bytes(b"")
  refuses("is a file, but not a .keras file", export.load_classifier, tmp_path / "model.h5")
  run = tmp_path / "run"
  shutil.copytree(folder, run / "encoder")
  refuses(f"no metadata.json & did you mean '{run / 'encoder'}'?", export.load_encoder, run)
  refuses("it holds an encoder: make a head", export.load_classifier, run)
