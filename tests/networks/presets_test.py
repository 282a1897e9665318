"""Weights that come with the package: how they are made, found, and used everywhere."""

import json
import shutil
import socket

import numpy as np
import pytest
from alike import same
from cases import DATA_DIR, needs_data, refuses
from small_models import digits, fitted_classifier

import urkle_tf
from tools import make_preset as script
from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.evaluation import scoring
from urkle_tf.networks import presets
from urkle_tf.networks.saved import embedders
from urkle_tf.training import jobs

SETTINGS = {"encoder": "convnet(width=8, layers=3)", "latent_dim": 6, "pretext": "simclr"}
METADATA = {"dataset": "digits", "norm": "linf", "epsilon": 0.05}
PRESET = "preset:tiny"


@pytest.fixture(scope="module")
def classifier(encoder):
  made = fitted_classifier(encoder, samples=4)
  made.class_names = [str(label) for label in range(10)]
  return made


@pytest.fixture(scope="module")
def exported(encoder, classifier, tmp_path_factory):
  """The folders of an encoder and its classifier."""
  place = tmp_path_factory.mktemp("exported")
  folders = place / "encoder", place / "classifier"
  export.export_encoder(encoder, folders[0], {**METADATA, "settings": SETTINGS})
  settings = {"protocol": "slf", "encoder": "/home/somebody/encoder"}
  further = {"settings": settings, "encoder_settings": SETTINGS}
  export.export_classifier(classifier, folders[1], {**METADATA, **further})
  return folders


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
  """The folder of presets with one, with the figures of a report that is about itself."""
  folder = tmp_path_factory.mktemp("presets")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(presets, "FOLDER", folder)
    script.make("tiny", *exported)
    report = tmp_path_factory.mktemp("report")
    options = {"eot": 1, "samples": 2, "checks": False, "representation_examples": 0}
    options |= {"examples": 20, "epsilons": [0.05, 0.1], "attacks": "pgd"}
    urkle_tf.assess(PRESET, output_dir=report, **options)
    script.make("tiny", *exported, [report], recipe="Nearest means.")
    shutil.copy(report / "report.json", folder)
  return folder


@pytest.fixture
def tiny(made, monkeypatch):
  monkeypatch.setattr(presets, "FOLDER", made)
  return made / "tiny"


# --- What is loaded ---


def test_it_is_the_encoder_with_kernels_in_float16(tiny, encoder, monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("the network was asked for")

  monkeypatch.setattr(socket, "socket", refuse)
  loaded = urkle_tf.GaussianEncoder.from_preset("tiny")
  assert type(loaded) is urkle_tf.GaussianEncoder
  ours = {v.path: v.numpy() for v in loaded.network.variables}
  theirs = {v.path: v.numpy() for v in encoder.network.variables}
  assert list(ours) == list(theirs)
  for path, value in theirs.items():
    kernel = path.endswith("/kernel")
    expected = value.astype(np.float16).astype(np.float32) if kernel else value
    np.testing.assert_array_equal(ours[path], expected, err_msg=path)
  with np.load(tiny / "weights.npz") as arrays:
    assert arrays["network/conv1/kernel"].dtype == arrays["head/dense1/kernel"].dtype == np.float16
    assert arrays["network/norm1/gamma"].dtype == arrays["head/dense1/bias"].dtype == np.float32
  images = digits()[0][:50]
  expected = encoder.network.predict(images, verbose=0)
  for name, values in loaded.predict(images, verbose=0).items():
    np.testing.assert_allclose(values, expected[name], atol=0.02)


def test_its_classifier_has_the_head(tiny):
  images = digits()[0][:30]
  loc = urkle_tf.load_encoder(PRESET)(images).loc.numpy()
  with np.load(tiny / "weights.npz") as arrays:
    kernel, bias = arrays["head/dense1/kernel"].astype(np.float32), arrays["head/dense1/bias"]
  loaded = urkle_tf.load_classifier(PRESET)
  np.testing.assert_allclose(loaded.logits(images), loc @ kernel + bias, atol=1e-4)
  assert (loaded.stochastic, loaded.samples) == (True, 4)
  assert loaded.class_names == list("0123456789")


def test_an_export_of_it_has_its_fingerprint(tiny, tmp_path):
  folder = urkle_tf.export_classifier(urkle_tf.load_classifier(PRESET), tmp_path / "classifier")
  written = json.loads((folder / "metadata.json").read_text())
  assert written["fingerprint"] == export.read_metadata(PRESET, "classifier")["fingerprint"]
  assert written["fingerprint"] != export.read_metadata(PRESET)["fingerprint"]


def test_they_are_listed_with_figures(tiny, made):
  report = json.loads((made / "report.json").read_text())
  clean = report["clean"]["deterministic"]
  (row,) = [r for r in report["attacks"] if r["mode"] == "deterministic" and r["epsilon"] == 0.05]
  listed = urkle_tf.presets()
  shown = ("accuracy", "interval")
  threat = {"norm": "linf", "epsilon": 0.05}
  figures = {"clean": {**{name: clean[name] for name in shown}, "examples": 20}}
  figures["pgd20"] = {**{name: row[name] for name in shown}, **threat, "examples": 20}
  wanted = {"dataset": "digits", "image_size": [8, 8, 1], "latent_dim": 6, "classes": 10}
  assert listed == {"tiny": {**wanted, "figures": figures}}
  assert 0.1 < row["accuracy"] < clean["accuracy"] < 1  # or nothing was compared


# --- In every command ---

TRAIN = {"split": "train[:32]", "batch_size": 16, "epochs": 1, "attack_steps": 1, "epsilon": 0.05}


def test_train_starts_from_it(tiny):
  start = urkle_tf.GaussianEncoder.from_preset("tiny").network
  named = {"encoder": SETTINGS["encoder"], "latent_dim": 6, "loc": "dense", "init_from": PRESET}
  for options in ({"encoder": PRESET}, named):
    with jobs.prepared({**TRAIN, "robustness": "none", **options}) as job:
      same(job.learner.encoder.network.weights, start.weights)


@pytest.mark.full
def test_finetune_embed_evaluate_and_students_take_it(tiny, encoder, tmp_path, kept):
  found = urkle_tf.represent(encoder=PRESET, examples=20)
  _, images, _ = next(scoring.stream(sources.load("digits", "all"), 20))
  np.testing.assert_allclose(found["loc"], encoder.network(images)["loc"], atol=0.02)
  np.testing.assert_array_equal(embedders.read(PRESET).function(images), found["loc"])

  urkle_tf.adapt(encoder=PRESET, output_dir=tmp_path / "head", epochs=1, split="train[:64]")
  ((tuned, metadata),) = kept
  assert metadata["epsilon"] == 0.05
  assert metadata["encoder_fingerprint"] == export.read_metadata(PRESET)["fingerprint"]
  assert export.settings_without_paths(metadata["settings"])["encoder"] == PRESET
  np.testing.assert_allclose(tuned.network(images)["loc"], found["loc"], atol=1e-5)

  quick = {"checks": False, "eot": 1, "samples": 2, "attack_steps": 1, "examples": 20}
  report = urkle_tf.assess(encoder=PRESET, **quick, representation_examples=4)
  assert report["representation"]["examples"] == 4
  report = urkle_tf.assess(classifier=PRESET, **quick, representation_examples=0)
  assert report["config"]["epsilon"] == 0.05
  right = presets.read(PRESET)["recorded"]["clean"][:20].count("1")
  assert report["clean"]["deterministic"]["accuracy"] == right / 20


# --- Mistakes ---


def test_a_wrong_name_lists_the_right_ones(tiny):
  words = "unknown preset 'tinny'; did you mean 'tiny'? (known: tiny)"
  refuses(words, urkle_tf.GaussianEncoder.from_preset, "tinny")
  refuses(words, urkle_tf.assess, classifier="preset:tinny")
  refuses(words, urkle_tf.adapt, encoder="preset:tinny", output_dir="nowhere")
  refuses(words, urkle_tf.represent, encoder="preset:tinny")
  refuses(words, urkle_tf.pretrain, "nowhere", encoder="preset:tinny")
  refuses("unknown preset '../tiny'", urkle_tf.load_encoder, "preset:../tiny")
  refuses("not a regressor", urkle_tf.load_regressor, PRESET)


def test_damaged_files_are_refused(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(presets, "FOLDER", tmp_path)
  copy = shutil.copytree(tiny, tmp_path / "tiny")
  content = bytearray((copy / "weights.npz").read_bytes())
  content[len(content) // 2] ^= 1  # one bit
  (copy / "weights.npz").write_bytes(content)
  refuses("weights.npz' is damaged", urkle_tf.GaussianEncoder.from_preset, "tiny")
  refuses("weights.npz' is damaged", urkle_tf.load_classifier, PRESET)
  (copy / "weights.npz").unlink()
  refuses("weights.npz' is damaged", urkle_tf.load_encoder, PRESET)
  (copy / "preset.json").write_text((copy / "preset.json").read_text()[:-20])
  refuses("preset.json' is damaged", urkle_tf.load_encoder, PRESET)


def test_a_preset_needs_the_threat_model(exported, classifier, tmp_path):
  export.export_classifier(classifier, tmp_path / "classifier", {"dataset": "digits"})
  refuses("records no norm", script.make, "other", exported[0], tmp_path / "classifier")


def test_train_keeps_its_network(tiny, tmp_path):
  refuses("leave --init_from out", urkle_tf.pretrain, tmp_path, encoder=PRESET, init_from="a")
  words = "has --latent_dim=6, not 7: leave --latent_dim out"
  refuses(words, urkle_tf.pretrain, tmp_path, encoder=PRESET, latent_dim=7)
  words = "takes images of 8x8x1 & give --image_size=8"
  refuses(words, urkle_tf.pretrain, tmp_path, encoder=PRESET, image_size=16)


# --- What was recorded ---


def differences(found, source, classifier, attacked):
  """How many images are right where they were wrong, or the other way: (clean, under PGD-20)."""
  recorded = found["recorded"]
  now = script.correctness(classifier, source, attacked)
  before = recorded["clean"], recorded["pgd20"][:attacked]
  assert [len(text) for text in now] == [len(text) for text in before]
  return [sum(a != b for a, b in zip(*pair)) for pair in zip(now, before)]


@pytest.mark.full
def test_what_is_right_is_recorded(tiny, classifier):
  found = presets.read("tiny")
  source = sources.load("digits", "test", examples=200)
  clean, attacked = (found["recorded"][name] for name in ("clean", "pgd20"))
  assert {len(clean), len(attacked)} == {200}
  _, images, labels = next(scoring.stream(source, 200))
  right = np.argmax(classifier.logits(images), 1) == labels
  assert sum(int(a) != b for a, b in zip(clean, right)) <= 2  # of the kernels before rounding
  assert 20 < attacked.count("1") < clean.count("1") - 20
  assert not any(a > b for a, b in zip(attacked, clean))
  # What attack and images have in common with `evaluate` is little, but the model is the same.
  options = {"checks": False, "eot": 1, "samples": 2, "representation_examples": 0}
  report = urkle_tf.assess(PRESET, examples=200, attacks="pgd(steps=20)", **options)
  (row,) = [row for row in report["attacks"] if row["mode"] == "deterministic"]
  assert abs(200 * row["own_accuracy"] - attacked.count("1")) <= 6

  loaded = urkle_tf.load_classifier(PRESET)
  assert differences(found, source, loaded, None) == [0, 0]
  assert differences(found, source, loaded, 40) == [0, 0]
  kernel = loaded.head.get_layer("dense1").kernel
  kernel.assign(0.5 * kernel)
  assert min(differences(found, source, loaded, None)) > 2


@pytest.mark.full
@needs_data
@pytest.mark.parametrize("name", sorted(urkle_tf.presets()))
def test_a_shipped_preset_does_what_it_did(name):
  """On the first 200 test images."""
  found = presets.read(name)
  data = found["classifier"]["dataset"]
  source = sources.load(data, "test", DATA_DIR, examples=200)
  loaded = urkle_tf.load_classifier(f"preset:{name}")
  assert max(differences(found, source, loaded, None)) <= 2
