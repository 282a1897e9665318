"""`adapt` with the protocol slf, and stratified label subsets."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses, slow
from scipy import stats
from sklearn import linear_model
from small_models import rows_of, sequential

from urkle_tf import downstream, export
from urkle_tf.data import sources
from urkle_tf.downstream import _labels, adapting, slf
from urkle_tf.networks.regressor import Regressor


@pytest.fixture(scope="module")
def plain_encoder(encoder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("slf") / "encoder"
  return export.export_encoder(export.load_encoder(encoder), folder, {"stochastic": False})


def adapt(encoder, folder, **options):
  defaults = {"epochs": 30, "batch_size": 128, "learning_rate": 0.03, "weight_decay": 1e-4}
  defaults |= {"validation_split": "test"}
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **defaults | options)


@pytest.mark.full
def test_a_finished_run(encoder, tmp_path, capsys):
  run = tmp_path / "run"
  result = adapt(encoder, run)
  assert result["classifier"] == str(run / "classifier")
  rows = rows_of(run)
  assert [row["epoch"] for row in rows] == list(range(1, 31))
  needed = "step epoch seconds images_per_second learning_rate loss accuracy validation_accuracy"
  assert set(needed.split()) == set(rows[0])
  assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
  assert result == rows[-1] | {"classifier": str(run / "classifier")}

  # What was exported predicts what was reported, on images that nothing was trained on.
  model = export.load_classifier(run / "classifier")
  test = sources.load("digits", "test")
  scores = model.log_probabilities((test.images / 255).astype(np.float32), [0, 0], 100)
  accuracy = np.mean(scores.numpy().argmax(1) == test.labels)
  assert accuracy > 0.5
  assert accuracy == pytest.approx(result["validation_accuracy"], abs=0.03)
  metadata = model.metadata
  assert (metadata["stochastic"], metadata["class_names"]) == (True, test.class_names)
  assert (metadata["norm"], metadata["epsilon"]) == ("linf", 0.05)
  assert metadata["encoder_fingerprint"] == export.read_metadata(encoder)["fingerprint"]
  assert str(tmp_path) not in json.dumps(metadata)

  # The encoder is as it was, and so is everything when the command is given again.
  before = export.load_encoder(encoder).network.get_weights()
  same(before, model.network.get_weights())
  capsys.readouterr()
  assert adapt(encoder, run) == result
  assert "is finished" in capsys.readouterr().out
  refuses("--epochs=30", adapt, encoder, run, epochs=31)
  assert adapt(encoder, run, log_every=7) == result  # what is logged when changes nothing


# While images pass through the encoder; while it learns.
@pytest.mark.parametrize("at", [*slow(4), 12])
def test_a_signal_ends_a_head_with_a_checkpoint(encoder, kept, signalled, tmp_path, at):
  options = {"epochs": 4, "log_every": 5}  # of 12 steps an epoch
  stopped = signalled(lambda: adapt(encoder, tmp_path / "cut", **options), at)
  assert stopped.step == (None if at == 4 else 17)
  found = [file.name for file in (tmp_path / "cut").glob("checkpoints/*")]
  assert found == ([] if at == 4 else ["step_000000017.npz"])
  # What is logged when changes nothing.
  adapt(encoder, tmp_path / "cut", **{**options, "log_every": 50})
  adapt(encoder, tmp_path / "whole", **options)
  (one, _), (other, _) = kept
  same(one.head.get_weights(), other.head.get_weights())
  steps = [row["step"] for row in rows_of(tmp_path / "cut")]
  assert steps == ([12, 24, 36, 48] if at == 4 else [5, 10, 12, 17, 24, 36, 48])


def test_a_linear_head_without_noise_is_logistic_regression(plain_encoder, tmp_path):
  options = {"epochs": 300, "weight_decay": 0.0, "batch_size": 1437, "optimizer": "adamw"}
  (tmp_path / "run").mkdir()
  listed = tmp_path / "run" / "labels.json"
  listed.write_text("{}")  # of a run on few labels that ended before its first epoch
  adapt(plain_encoder, tmp_path / "run", **options)
  assert not listed.exists()
  model = export.load_classifier(tmp_path / "run" / "classifier")
  assert model.stochastic is False
  network = export.load_encoder(plain_encoder).network
  train, test = sources.load("digits", "train"), sources.load("digits", "test")
  images = (train.images / 255).astype(np.float32)
  z, labels = network(images, training=False)["loc"].numpy(), train.labels
  wanted = linear_model.LogisticRegression(C=np.inf, max_iter=2000).fit(z, labels)
  loss = -np.mean(wanted.predict_log_proba(z)[np.arange(len(labels)), labels])
  ours = tf.nn.log_softmax(model.head(z)).numpy()
  assert -np.mean(ours[np.arange(len(labels)), labels]) == pytest.approx(loss, rel=0.03)
  held_out = network((test.images / 255).astype(np.float32), training=False)["loc"].numpy()
  agree = np.mean(model.head(held_out).numpy().argmax(1) == wanted.predict(held_out))
  assert agree > 0.9


def test_figures_of_a_head_count_each_image_once(plain_encoder, tmp_path, monkeypatch):
  """Of 10 images in batches of 4, 4 and 2, by a head that hardly moves."""
  counted = []
  count = lambda self, images, seconds: counted.append(images)  # noqa: E731
  monkeypatch.setattr(slf.recorder.Recorder, "count", count)
  options = {"labels": 10, "batch_size": 4, "learning_rate": 1e-9, "epochs": 1}
  row = adapt(plain_encoder, tmp_path / "run", validation_split=None, seed=1, **options)
  model, source = export.load_classifier(row["classifier"]), sources.load("digits", "train")
  chosen = json.loads((tmp_path / "run" / "labels.json").read_text())["positions"]
  labels = source.labels[chosen]
  scores = model.log_probabilities((source.images[chosen] / 255).astype(np.float32)).numpy()
  assert row["loss"] == pytest.approx(-np.mean(scores[np.arange(10), labels]), rel=1e-5)
  assert row["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == labels), abs=1e-6)
  assert counted == [10]


@pytest.mark.full
def test_the_head_sees_a_fresh_z_each_time(encoder, plain_encoder, tmp_path):
  # With sampled z the loss that is trained on is that of a mean of -log p(y|z): above the one at
  # z = loc of a head that was trained there.
  sampled = adapt(encoder, tmp_path / "sampled", epochs=60, head="mlp(width=32, layers=3)")
  plain = adapt(plain_encoder, tmp_path / "plain", epochs=60, head="mlp(width=32, layers=3)")
  assert plain["loss"] < 0.8 * sampled["loss"]
  layers = export.load_classifier(tmp_path / "plain" / "classifier").head.layers
  assert sum("dense" in layer.name for layer in layers) == 3


@pytest.mark.full
def test_a_linear_head_on_numbers_is_least_squares(plain_encoder, tmp_path):
  run, options = tmp_path / "run", {"epochs": 300, "weight_decay": 0.0, "batch_size": 1437}
  result = adapt(plain_encoder, run, dataset="digits:number", **options)
  network = export.load_encoder(plain_encoder).network
  train, test = sources.load("digits", "train"), sources.load("digits", "test")
  images = [(source.images / 255).astype(np.float32) for source in (train, test)]
  rows, held_out = (network(part, training=False)["loc"].numpy() for part in images)
  y, truth = train.labels, test.labels
  wanted = linear_model.LinearRegression().fit(rows, y)
  error = np.sqrt(np.mean((wanted.predict(held_out) - truth) ** 2))
  assert result["validation_rmse"] == pytest.approx(error, rel=0.02)
  assert error < 0.95 * truth.std()

  # What was exported predicts in the target's units, and needs TensorFlow alone.
  assert result["regressor"] == str(run / "regressor")
  loaded = tf.saved_model.load(str(run / "regressor"))
  predicted = loaded.signatures["serving_default"](images=images[1])["predictions"]
  assert predicted.shape == (360, 1)
  np.testing.assert_allclose(predicted[:, 0], wanted.predict(held_out), atol=0.05 * y.std())
  model = export.load_regressor(run / "regressor")
  np.testing.assert_allclose(model(images[1]), predicted, atol=1e-5)
  by_signature = loaded.signatures["head"](z=held_out)["predictions"]
  np.testing.assert_allclose(by_signature, predicted, atol=1e-5)
  assert (model.target, model.metadata["outputs"]) == ("the class as a number", 1)
  assert adapt(plain_encoder, run, dataset="digits:number", **options) == result
  refuses("holds a regressor, not a classifier", export.load_classifier, run / "regressor")


def test_a_regressor_averages_over_z(encoder):
  network = export.load_encoder(encoder).network
  head = sequential((6,), keras.layers.Dense(8, "relu"), keras.layers.Dense(2))
  model = Regressor(network, head, samples=3)
  loc, scale = np.full((2, 6), 0.3, np.float32), np.full((2, 6), 0.7, np.float32)
  noise = tf.random.stateless_normal([2, 50, 6], [1, 2]).numpy()
  wanted = head.predict((loc[:, None] + scale[:, None] * noise).reshape(-1, 6), verbose=0)
  found = model.from_representation(loc, scale, [1, 2], 50)
  np.testing.assert_allclose(found, wanted.reshape(2, 50, 2).mean(1), atol=1e-5)
  images = np.zeros((2, 8, 8, 1), np.float32)
  assert np.any(model(images) != model(images))
  np.testing.assert_array_equal(*(model.predictions(images, [0, 0]) for _ in range(2)))


def test_features_are_those_of_the_chosen_images(encoder):
  network = export.load_encoder(encoder).network
  source = sources.load("digits", "train")
  chosen = np.array([3, 4, 270, 900, 1436])
  loc, scale, labels = slf.features(network, source, chosen)
  wanted = network((source.images[chosen] / 255).astype(np.float32), training=False)
  np.testing.assert_allclose(loc, wanted["loc"], atol=1e-5)
  np.testing.assert_allclose(scale, wanted["scale"], atol=1e-5)
  np.testing.assert_array_equal(labels, source.labels[chosen])


def test_noise_is_gaussian_of_its_own_for_each_image_and_not_clipped():
  """Of a network that hands the pixels on."""
  images = keras.Input((8, 8, 1))
  pixels = keras.layers.Flatten()(images)
  network = keras.Model(images, {"loc": pixels, "scale": keras.ops.ones_like(pixels)})
  source = sources.load("digits", "train[:600]")
  clean = (source.images / 255).reshape(600, 64).astype(np.float32)
  first, again, other = (
    slf.features(network, source, seed=seed, noise=0.25)[0] - clean for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  for noise in (first, other):
    assert noise.std() == pytest.approx(0.25, abs=0.005)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert stats.kstest(noise[:, 0] / 0.25, "norm").pvalue > 1e-3  # clipped, half would be 0
  for noise in (other[:250], first[250:500]):  # another seed, and the next batch
    assert abs(np.corrcoef(first[:250].ravel(), noise.ravel())[0, 1]) < 0.05


@pytest.mark.full
def test_a_head_for_noisy_images(plain_encoder, kept, tmp_path):
  """It is better on noisy images than a head that never saw any; other protocols take none."""
  data = {"split": "train", "epochs": 60, "augment_copies": 3}
  noisy = adapt(plain_encoder, tmp_path / "noisy", noise=0.3, **data)
  adapt(plain_encoder, tmp_path / "clean", **data)
  source = sources.load("digits", "test")
  network = export.load_encoder(plain_encoder).network
  z, _, labels = slf.features(network, source, seed=5, noise=0.3)
  logits, clean = (model.head(z) for model, _ in kept)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  assert loss(labels, logits) < 0.9 * loss(labels, clean)
  accuracy = np.mean(logits.numpy().argmax(1) == labels)
  assert noisy["validation_accuracy"] == pytest.approx(accuracy, abs=0.07)
  for options in ({"noise": -1}, {"noise": 0.1, "protocol": "alf"}):
    refuses("--noise=", adapt, plain_encoder, tmp_path / "refused", **options)


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_head_sees_a_random_copy_and_a_fresh_z_at_each_step(stochastic):
  """Of 2000 rows with copies at 0 and at 4, and a sigma of 0.5."""
  copies = np.stack([np.zeros((2000, 1)), np.full((2000, 1), 4.0)]).astype(np.float32)
  head = sequential((1,), keras.layers.Dense(1, kernel_initializer="ones"))
  task = types.SimpleNamespace(
    head=head,
    labels=np.zeros((2000, 1), np.float32),
    model=types.SimpleNamespace(stochastic=stochastic),
    seed=0,
    loss=lambda outputs, y: tf.square(outputs[:, 0]),
    merit=lambda outputs, y: outputs[:, 0],
  )
  still, means = keras.optimizers.SGD(0.0), (keras.metrics.Mean(), keras.metrics.Mean())
  still.build(head.trainable_variables)
  scale = np.full((2, 2000, 1), 0.5, np.float32)
  train, found = slf._steps(task, tf.constant(copies), tf.constant(scale), 1000, still, means), []
  for epoch, step in ((0, 0), (0, 1), (1, 0), (1, 0)):
    for mean in means:
      mean.reset_state()
    train(tf.constant(epoch), tf.constant(step), tf.constant(step + 1))
    found.append([float(mean.result()) for mean in means])
  squares, z = np.mean(found[:3], 0)
  assert z == pytest.approx(2, abs=0.15)
  assert squares - 4 * z == pytest.approx(0.25 if stochastic else 0, abs=0.05)
  assert found[2] == found[3]  # the same step again
  assert len({z for _, z in found}) == 3


def test_label_subsets_are_stratified(rng):
  labels = np.concatenate([np.zeros(600), np.ones(300), np.full(99, 2), [3]]).astype(int)
  rng.shuffle(labels)
  # Of 10, the last two classes get one each; the others' shares of the rest are 5.3 and 2.7.
  amounts = (100, [59, 30, 10, 1]), (0.5, [300, 150, 49, 1]), (10, [5, 3, 1, 1]), (4, [1, 1, 1, 1])
  for amount, wanted in amounts:
    chosen = _labels.choose(labels, amount, seed=0)
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.all(np.diff(chosen) > 0)
    assert np.bincount(labels[chosen]).tolist() == wanted
  np.testing.assert_array_equal(_labels.choose(labels, None, 0), np.arange(1000))
  balanced = np.repeat(np.arange(10), 50)
  assert np.bincount(balanced[_labels.choose(balanced, 100, 3)]).tolist() == [10] * 10
  first, again, other = (_labels.choose(balanced, 100, seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


@pytest.mark.parametrize("amount", [0, -5, 2.5, 501, 3, 0.001])
def test_label_counts_that_make_no_sense(amount):
  refuses("--labels", _labels.choose, np.repeat(np.arange(10), 50), amount, 0)


def test_subsets_of_numbers_are_stratified_by_deciles(rng):
  numbers = rng.exponential(size=1000).astype(np.float32)
  chosen = _labels.choose(numbers, 100, seed=0)
  edges = np.quantile(numbers, np.linspace(0, 1, 11))
  assert np.histogram(numbers[chosen], edges)[0].tolist() == [10] * 10
  assert len(_labels.choose(numbers, 3, seed=0)) == 3
  assert len(_labels.choose(np.float32([1, 1, 1, 2]), 2, seed=0)) == 2


def test_few_labels_are_listed(encoder, kept, tmp_path):
  adapt(encoder, tmp_path / "run", epochs=2, labels=0.05)
  listed = json.loads((tmp_path / "run" / "labels.json").read_text())["positions"]
  source = sources.load("digits", "train")
  assert listed == _labels.choose(source.labels, 0.05, 0).tolist()
  assert len(listed) == round(0.05 * source.size)


def test_another_encoder_in_the_same_folder(encoder, signalled, tmp_path):
  """A head that was not finished learned on, from the other encoder's features."""
  layer, again = export.load_encoder(encoder), tmp_path / "encoder"
  export.export_encoder(layer, again)
  signalled(lambda: adapt(again, tmp_path / "cut", epochs=2, log_every=5), 12)
  adapt(again, tmp_path / "run", epochs=1)
  layer.network.get_layer("raw_loc").kernel.assign_add(np.ones([24, 6], np.float32))
  export.export_encoder(layer, again)
  refuses("made from another encoder", adapt, again, tmp_path / "cut", epochs=2, log_every=5)
  refuses("made from another encoder", adapt, again, tmp_path / "run", epochs=1)
  flags = tmp_path / "run" / "flags.cfg"
  flags.write_text(flags.read_text().split("# encoder: ")[0])  # of an older version
  refuses("made from another encoder", adapt, again, tmp_path / "run", epochs=1)


def test_a_signal_between_two_seeds_ends_both(tmp_path, signalled, monkeypatch):
  begun = []
  monkeypatch.setattr(adapting, "adapt", lambda seed, **_: begun.append(seed) or {})
  signalled(lambda: downstream.adapt_seeds(str(tmp_path), 5), at=3)
  assert begun == [0, 1]


def test_seeds_may_go_to_a_folder_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setattr(adapting, "adapt", lambda **_: (tmp_path / "runs").mkdir() or {})
  downstream.adapt_seeds("~/runs", 1)
  assert json.loads((tmp_path / "runs" / "seeds.json").read_text())["seeds"] == [0]


@pytest.mark.full
def test_several_seeds_and_their_mean(encoder, tmp_path, capsys):
  options = {"labels": 100, "epochs": 2, "weight_decay": 1e-4, "validation_split": "test"}
  folder = tmp_path / "seeds"
  found = downstream.adapt_seeds(str(folder), 2, seed=3, encoder=str(encoder), **options)
  adapt(encoder, tmp_path / "alone", seed=4, **options)
  first, second = (run["validation_accuracy"] for run in found["runs"])
  assert found["seeds"] == [3, 4]
  assert first != second  # other labels were drawn
  drawn = [(folder / f"seed-{seed}/labels.json").read_text() for seed in (3, 4)]
  assert drawn[0] != drawn[1] == (tmp_path / "alone/labels.json").read_text()
  assert found["mean"]["validation_accuracy"] == pytest.approx((first + second) / 2)
  spread = abs(first - second) / 2**0.5
  assert found["deviation"]["validation_accuracy"] == pytest.approx(spread)
  ends = found["interval"]["validation_accuracy"]  # Student's t of one degree of freedom
  assert np.diff(ends) == pytest.approx(2 * 12.706 * spread / 2**0.5, rel=1e-3)
  assert json.loads((folder / "seeds.json").read_text()) == found
  assert "classifier" not in found["runs"][0]
  assert (folder / "seed-4/classifier/saved_model.pb").exists()

  capsys.readouterr()
  again = downstream.adapt_seeds(str(folder), 1, seed=3, encoder=str(encoder), **options)
  assert "nothing to do" in capsys.readouterr().out
  assert again["runs"] == found["runs"][:1]
  assert again["deviation"] == again["interval"] == {}
