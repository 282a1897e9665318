"""Encoders as classifiers: by prototypes, by a saved head, by neighbours."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refused, refuses
from small_models import array_source, digits, linear_file, sequential, small_encoder

import urkle_tf
from urkle_tf import export, settings
from urkle_tf.data import sources
from urkle_tf.evaluation import topped
from urkle_tf.output import figures

DATA = {"dataset": "digits", "split": "test", "examples": 60, "checks": False}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  """{name: (path, function of images in [0, 1] to embeddings [n, d])}."""
  folder, encoder = tmp_path_factory.mktemp("encoders"), small_encoder()
  exported = export.export_encoder(encoder, folder / "encoder")
  convolution = keras.layers.Conv2D(5, 3, activation="relu")
  # Takes [0, 255], and gives feature maps.
  model = sequential((8, 8, 1), keras.layers.Rescaling(1 / 255), convolution)
  model.save(folder / "maps.keras")
  return {
    "export": (str(exported), lambda x: encoder(x, training=False).loc.numpy()),
    "maps": (str(folder / "maps.keras"), lambda x: model(255 * x).numpy().mean((1, 2))),
  }


KNN = "knn(split=train, neighbours=20, temperature=0.07)"


def images(count=40):
  return digits()[0][:count]


def scores(encoder, source=None, **top):
  given = settings.Assess(encoder=encoder, **{"dataset": "digits", **top})
  return topped.classifier(given, source or sources.load("digits", "test"))


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["export", "maps"])
def test_logits_of_prototypes_are_100_times_the_cosine(encoders, rng, tmp_path, name):
  path, embed = encoders[name]
  found = embed(images())
  rows = rng.normal(size=(10, found.shape[1])).astype(np.float32)
  rows[:, 0] = 0
  np.save(tmp_path / "rows.npy", rows)
  loaded = scores(path, prototypes=str(tmp_path / "rows.npy"))
  wanted = 100 * unit(found) @ unit(rows).T
  np.testing.assert_allclose(loaded.function(images()), wanted, rtol=1e-4, atol=1e-3)


def test_the_robust_accuracy_of_a_linear_embedding_is_its_closed_form(rng, tmp_path, monkeypatch):
  # z = A x + b: the sign of cos(z, u) - cos(z, v) is that of z (u - v), so that an image is right
  # on the whole ball where its margin is above epsilon |A (u - v)|_1.
  matrix, rows = rng.normal(size=(64, 3)), rng.normal(size=(2, 3)).astype(np.float32)
  direction = unit(rows)[0] - unit(rows)[1]
  shown = rng.integers(100, 156, size=(200, 8, 8, 1)).astype(np.uint8)
  z = shown.reshape(200, 64) / 255 @ matrix
  bias = -np.median(z @ direction) * direction / (direction @ direction)
  margin, epsilon = (z + bias) @ direction, 1 / 255
  linear_file(tmp_path / "linear.keras", matrix, bias)
  np.save(tmp_path / "rows.npy", rows)
  source = array_source(shown, (margin < 0).astype(int))
  monkeypatch.setattr(sources, "load", lambda *_, **__: source)
  files = {"encoder": tmp_path / "linear.keras", "prototypes": tmp_path / "rows.npy"}
  report = urkle_tf.assess(attacks="pgd(steps=20)", epsilon=epsilon, checks=False, **files)
  wanted = np.mean(np.abs(margin) > epsilon * np.abs(matrix @ direction).sum())
  assert 0.2 < wanted < 0.8
  assert report["clean"]["accuracy"] == 1
  assert report["attacks"][0]["accuracy"] == pytest.approx(wanted, abs=0.011)  # of two images
  assert "prototypes" not in report["config"]


def test_a_saved_head_is_read_under_its_softmax(encoders, rng, tmp_path):
  path, embed = encoders["export"]
  last = keras.layers.Dense(10, activation="softmax")
  head = sequential((6,), keras.layers.Dropout(0.9), last)
  z = keras.Input((6,))
  keras.Model(z, {"probabilities": head(z), "embedding": z}).save(tmp_path / "head.keras")
  options = {"head": tmp_path / "head.keras", "attacks": "fgsm", "epsilon": 0.05, **DATA}
  report = urkle_tf.assess(encoder=path, **options)
  data = sources.load("digits", "test", examples=60)
  right = head(embed(data.images / np.float32(255))).numpy().argmax(1) == data.labels
  assert report["clean"]["accuracy"] == pytest.approx(right.mean())
  assert report["config"]["model"]["logits"] == "recovered"
  assert report["config"]["head"] == "head.keras"


def test_neighbours_vote_as_a_loop_says(encoders):
  path, embed = encoders["export"]
  train, queries = sources.load("digits", "train[:100]"), images()
  spec = "knn(split='train[:100]', neighbours=7, temperature=0.1)"
  loaded = scores(path, head=spec, examples=5)  # of the measured images
  keys, rows = unit(embed(train.images / np.float32(255))), unit(embed(queries))
  found = loaded.function(queries).numpy()
  for row, logits in zip(rows, found, strict=True):
    cosines = keys @ row
    votes = np.zeros(10)
    for i in np.argsort(-cosines)[:7]:
      votes[train.labels[i]] += np.exp(cosines[i] / 0.1)
    named = votes > 0
    np.testing.assert_allclose(logits[named], np.log(votes[named]), atol=1e-3)
    assert logits[~named].max(initial=-np.inf) < logits[named].min() - 4
  default, given = (scores(path, head=head) for head in ("knn", KNN))
  np.testing.assert_array_equal(default.function(queries), given.function(queries))
  sharp = scores(path, head="knn(temperature=0.005)").function(queries)  # exp(200) overflows
  assert np.all(np.isfinite(sharp))
  assert np.max(sharp) == pytest.approx(200, rel=0.02)


def test_votes_can_be_attacked_where_all_agree(encoders):
  path, _ = encoders["export"]
  loaded = scores(path, head="knn(neighbours=3)")
  x = tf.constant(images())
  with tf.GradientTape() as tape:
    tape.watch(x)
    logits = loaded.function(x)
    loss = tf.reduce_sum(-tf.reduce_max(tf.nn.log_softmax(logits), 1))
  assert np.all(np.isfinite(logits))
  slope = tape.gradient(loss, x).numpy().reshape(len(x), -1)
  assert np.all(np.abs(slope).max(1) > 0)
  options = {"head": "knn(neighbours=3)", "attacks": "pgd(steps=5)", "epsilon": 0.15, **DATA}
  report = urkle_tf.assess(encoder=path, **options)
  assert report["clean"]["accuracy"] > 0.5
  assert report["attacks"][0]["accuracy"] < report["clean"]["accuracy"] - 0.2


def test_another_number_of_references_is_another_classifier(encoders, tmp_path):
  """A report on the old one was taken for that on the new one."""
  path, _ = encoders["export"]
  rng, photos = np.random.default_rng(0), tmp_path / "home" / "photos"

  def add(split, name):
    for kind in "abcdefghij":
      picture = rng.integers(0, 255, (8, 8, 1), np.uint8)
      figures.save(picture, photos / split / kind / name)

  add("test", "0.png")
  data, found = {"dataset": f"folder:{photos}", "split": "test"}, []
  for name in ("1.png", "2.png"):
    add("train", name)
    given = settings.Assess(encoder=path, head="knn(neighbours=3)", **data)
    found.append(topped.classifier(given, sources.load(**data)))
  assert found[0].fingerprint != found[1].fingerprint
  assert found[0].about == "knn(neighbours=3) on the images of folder:photos"


def test_other_weights_in_the_same_file_are_another_classifier(encoders, rng, tmp_path):
  path, _ = encoders["export"]
  other = linear_file(tmp_path / "other.keras", rng.normal(size=(64, 6)))
  rows, head, found = str(tmp_path / "rows.npy"), str(tmp_path / "head.keras"), set()
  for _ in range(2):
    np.save(rows, rng.normal(size=(10, 6)).astype(np.float32))
    sequential((6,), keras.layers.Dense(10)).save(head)
    found |= {scores(path, prototypes=rows).fingerprint, scores(path, head=head).fingerprint}
  assert len(found) == 4
  assert scores(other, prototypes=rows).fingerprint not in found


FILES = {"short.npy": np.ones((9, 6), np.float32), "wide.npy": np.ones((10, 7), np.float32)}
FILES |= {"zero.npy": np.eye(10, 6, dtype=np.float32), "whole.npy": np.ones((10, 6), np.int64)}
WANTED = r"give float32 \[10, 6\], one row for each class of 'digits'"


@pytest.mark.parametrize(
  "top, message",
  [
    ({"prototypes": "short.npy"}, rf"short.npy holds \[9, 6\]: {WANTED}"),
    ({"prototypes": "wide.npy"}, rf"wide.npy holds \[10, 7\]: {WANTED}"),
    ({"prototypes": "zero.npy"}, f"zero.npy has a row that is zero or not finite: {WANTED}"),
    ({"prototypes": "whole.npy"}, f"whole.npy holds int64: {WANTED}"),
    ({"prototypes": "text.npy"}, "cannot read --prototypes=.*text.npy: "),
    ({"prototypes": "none.npy"}, "cannot read --prototypes=.*none.npy: .*No such file"),
    ({"head": "wide.keras"}, r"wide.keras takes \(None, 7\), but the encoder returns 6 dim"),
    ({"head": "none.keras"}, "no file '.*none.keras': give --head=FILE.keras or knn"),
    ({"head": "mlp"}, r"unknown head \(FILE.keras or knn.*'mlp'"),
    ({"head": "knn(neighbours=0)"}, "neighbours must be from 1 to 1,437, the images of 'train'"),
    ({"head": "knn(temperature=0)"}, "temperature must be above 0, got 0"),
    ({"head": "knn(split=test)"}, "'test' holds 360 of the 360 images that are measured"),
    ({"head": "knn(split='train+test[60:]')"}, "holds 300 of the 360 images that are measured"),
    ({"head": "knn", "prototypes": "wide.npy"}, "give --prototypes or --head, not both"),
  ],
)
def test_what_does_not_fit_is_one_line(encoders, tmp_path, top, message):
  for name, rows in FILES.items():
    np.save(tmp_path / name, rows)
  (tmp_path / "text.npy").write_text("no array")
  sequential((7,), keras.layers.Dense(10)).save(tmp_path / "wide.keras")
  top = {k: str(tmp_path / v) if v.endswith((".npy", ".keras")) else v for k, v in top.items()}
  with refused(match=message):
    urkle_tf.assess(encoder=encoders["export"][0], dataset="digits", **top)


def test_nothing_goes_on_top_of_a_classifier():
  refuses("need an encoder: give --encoder", urkle_tf.assess, "runs/classifier", head="knn")
