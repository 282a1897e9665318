"""The weight decay that `slf` chooses, and heads on pooled features."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from scipy import special
from small_models import linear_network, small_encoder

import urkle_tf
from urkle_tf import downstream, export, pretexts
from urkle_tf.data import sources
from urkle_tf.downstream import _selection, slf

EPSILON = 8 / 255


# --- A planted problem, whose worst case is known ---


def planted(split):
  """Two classes in the middle of the pixels' range, where no perturbation is clipped.

  The first of 16 pixels tells them apart by far, the next five do so by less than epsilon each,
  and the others not at all.  So few images to train on are fitted by all of them.
  """
  size, seed = {"train": (40, 0), "valid": (400, 1), "test": (30, 2)}[split]
  rng = np.random.default_rng(seed)
  labels = np.arange(size) % 2
  means = np.array([0.1, *[0.02] * 5, *[0.0] * 10])
  spread = np.array([0.08, *[0.03] * 5, *[0.15] * 10])
  x = 0.5 + (2 * labels[:, None] - 1) * means + rng.normal(0, spread, (size, 16))
  images = np.rint(255 * np.clip(x, 0.1, 0.9)).astype(np.uint8).reshape(size, 4, 4, 1)
  fields = {"name": "planted", "split": split, "class_names": ["a", "b"]}
  return sources.ArraySource(images, labels=labels.astype(np.int64), **fields)


def pixels(folder, **metadata):
  """The export of an encoder whose loc is the pixels, 20 (x - 0.5)."""
  images = keras.Input((4, 4, 1))
  network = linear_network((4, 4, 1), 1.0)
  outputs = network(keras.layers.Rescaling(20.0, -10.0)(images))
  encoder = export.ExportedEncoder(keras.Model(images, outputs))
  metadata = {"stochastic": False, "norm": "linf", "epsilon": EPSILON, **metadata}
  return export.export_encoder(encoder, folder / "encoder", metadata)


def adapt(encoder, folder, **options):
  usual = {"dataset": "planted", "epochs": 100, "learning_rate": 0.03, "log_every": 100}
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **usual | options)


def accuracies(head, source):
  """(clean, worst case within epsilon) of a linear head on `pixels`, in closed form."""
  kernel, bias = (np.float64(array) for array in head.get_weights())
  x = 20 * (source.images.reshape(source.size, -1) / 255 - 0.5)
  margin = (2 * source.labels - 1) * (x @ (kernel[:, 1] - kernel[:, 0]) + bias[1] - bias[0])
  reach = 20 * EPSILON * np.abs(kernel[:, 1] - kernel[:, 0]).sum()
  return np.mean(margin > 0), np.mean(margin > reach)


@pytest.mark.full
def test_the_chosen_decay_is_the_best_on_held_out_images(kept, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(sources, "load", lambda dataset, split, *_: planted(split))
  monkeypatch.setattr(_selection, "WEIGHT_DECAYS", (1e-4, 1.0, 3.0, 10.0))
  encoder = pixels(tmp_path)
  options = {"validation_split": "valid"}
  measured = []
  for decay in _selection.WEIGHT_DECAYS:
    result = adapt(encoder, tmp_path / f"{decay:g}", weight_decay=decay, **options)
    assert "selection" not in result
    measured.append(accuracies(kept[-1][0].head, planted("valid")))
  places = {}
  for number, select in enumerate(("clean", "robust")):
    found = adapt(encoder, tmp_path / select, select=select, **options)
    selection = found["selection"]
    candidates = selection["candidates"]
    assert [row["weight_decay"] for row in candidates] == list(_selection.WEIGHT_DECAYS)
    for row, (clean, robust) in zip(candidates, measured, strict=True):
      assert row["validation_accuracy"] == pytest.approx(clean, abs=1e-6)
      wanted = {"validation_robust_accuracy": pytest.approx(robust, abs=0.006)}
      assert {k: v for k, v in row.items() if "robust" in k} == (wanted if number else {})
    scores = [both[number] for both in measured]
    place = places[select] = _selection.WEIGHT_DECAYS.index(selection["weight_decay"])
    assert scores[place] == max(scores)
    assert scores[place] > max(scores[0], scores[-1])  # neither end of the list is the best
    assert (selection["select"], selection["held_out"]) == (select, "valid")
    assert selection["images"] == 400
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "  chosen" in line)
    figures = [f"{candidates[place]['validation_accuracy']:.2%}"]
    if number:
      figures.append(f"{candidates[place]['validation_robust_accuracy']:.2%}")
    assert line.split() == [f"{selection['weight_decay']:g}", *figures, "chosen"]

    # The head that is exported is that of a run with this decay, bit for bit.
    (one, metadata), (other, _) = kept[-1], kept[place]
    same(one.head.get_weights(), other.head.get_weights())
    assert metadata["selection"] == selection
    assert found["validation_accuracy"] == candidates[place]["validation_accuracy"]
  assert places["clean"] < places["robust"]


# --- Which images the choice is made on ---


def task(source, labels=None, validation=None, seed=0):
  """What `hold_out` reads of a `Task`, whose labels are at every second position."""
  chosen = np.arange(0, source.size, 2)
  if labels is None:
    labels = source.labels[chosen]
  classifies = labels.dtype.kind == "i"
  fields = {"chosen": chosen, "labels": labels, "validation": validation}
  return types.SimpleNamespace(source=source, seed=seed, classifies=classifies, **fields)


def digits(split):
  return sources.load("digits", split)


@pytest.mark.parametrize("validation", [None, "test", "all", "test[:50]+train[:50]"])
def test_a_tenth_of_the_labelled_images_is_held_out_by_default(validation):
  train = digits("train")
  found = task(train, validation=validation and digits(validation))
  rest, held = _selection.hold_out(found)
  np.testing.assert_array_equal(rest, ~held)
  assert (len(held), held.sum()) == (719, 72)
  of_each = np.bincount(found.labels[held])
  np.testing.assert_allclose(of_each, np.bincount(found.labels) / 10, atol=1)
  np.testing.assert_array_equal(held, _selection.hold_out(found)[1])
  assert np.any(held != _selection.hold_out(task(train, seed=1))[1])


@pytest.mark.parametrize("name", ["Testing", "testing[:50%]", "train[:50]+TEST"])
def test_a_folder_may_call_its_test_images_otherwise(name):
  _, held = _selection.hold_out(task(digits("train"), validation=types.SimpleNamespace(split=name)))
  assert held.sum() == 72


def test_numbers_are_held_out_evenly_too(rng):
  labels = rng.normal(size=(719, 1)).astype(np.float32)
  rest, held = _selection.hold_out(task(digits("train"), labels))
  tenths = np.histogram(labels[held], np.quantile(labels, np.linspace(0, 1, 11)))[0]
  assert tenths.sum() == held.sum() == (~rest).sum() == 72
  assert set(tenths) <= {7, 8}


@pytest.mark.parametrize("split", ["train", "train[:1000]+train[1200:]", "all"])
def test_validation_images_are_not_what_candidates_are_trained_on(split):
  source, validation = digits(split), digits("train[900:1300]")
  rest, held = _selection.hold_out(task(source, validation=validation))
  assert held is None
  seen = {image.tobytes() for image in validation.images}
  shared = [image.tobytes() in seen for image in source.images[::2]]
  assert 0 < sum(shared) < len(shared)
  np.testing.assert_array_equal(rest, ~np.array(shared))


def test_disjoint_splits_leave_everything_to_the_candidates():
  rest, held = _selection.hold_out(task(digits("train[:900]"), validation=digits("train[900:]")))
  assert rest.all()
  assert held is None


# --- On digits ---


@pytest.fixture
def short(monkeypatch):
  """Two candidates only."""
  monkeypatch.setattr(_selection, "WEIGHT_DECAYS", (1e-4, 3.0))


def on_digits(encoder, folder, **options):
  usual = {"epochs": 3, "batch_size": 128, "attack_steps": 2}
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **usual | options)


@pytest.mark.full
def test_robust_is_the_default_after_an_adversary(encoder, short, kept, tmp_path, capsys):
  found = on_digits(encoder, tmp_path / "robust", labels=200, validation_split="test")
  selection = found["selection"]
  assert (selection["select"], selection["images"]) == ("robust", 20)
  assert selection["held_out"] == "a part of train"
  assert all(0 <= row["validation_robust_accuracy"] <= 1 for row in selection["candidates"])
  assert "validation_accuracy" in found  # of the test images, which nothing was chosen by
  flags = (tmp_path / "robust" / "flags.cfg").read_text()
  assert "--select=robust\n--" in flags
  assert "--epsilon=0.05\n" in flags
  assert "weight_decay" not in flags
  assert (kept[0][1]["norm"], kept[0][1]["epsilon"]) == ("linf", 0.05)

  capsys.readouterr()
  metadata = {"settings": {"robustness": "none"}}
  plain = export.export_encoder(small_encoder(), tmp_path / "plain", metadata)
  found = on_digits(plain, tmp_path / "clean", validation_split="train[1300:]")
  assert found["selection"]["select"] == "clean"
  assert "slf does not use --attack_steps" in capsys.readouterr().out
  # Half of what the head is trained on at last would be its own validation.
  assert "validation_accuracy" not in found
  for row in found["selection"]["candidates"]:
    assert set(row) == {"weight_decay", "validation_accuracy"}

  # An attack that chooses is no training that resists it, and the model card must not say so.
  found = on_digits(plain, tmp_path / "chosen", labels=200, select="robust")
  assert "validation_robust_accuracy" in found["selection"]["candidates"][0]
  assert kept[-1][1]["settings"]["epsilon"] == 8 / 255
  assert not {"norm", "epsilon"} & set(kept[-1][1])


@pytest.mark.full
def test_a_given_decay_is_not_chosen(encoder, kept, tmp_path, capsys):
  found = on_digits(encoder, tmp_path, weight_decay=0.5, select="robust", attack_steps=None)
  assert "selection" not in found
  assert "slf does not use --select with these settings" in capsys.readouterr().out
  assert "--select" not in (tmp_path / "flags.cfg").read_text()
  assert not (tmp_path / "weight_decay.json").exists()
  words = "unknown choice of --select 'robustt'"
  refuses(words, on_digits, encoder, tmp_path / "other", select="robustt")


@pytest.mark.full
def test_decays_that_the_learning_rate_cannot_take_are_left_out(encoder, kept, tmp_path):
  found = on_digits(encoder, tmp_path, select="clean", learning_rate=0.5, attack_steps=None)
  decays = [row["weight_decay"] for row in found["selection"]["candidates"]]
  assert decays == [1e-4, 0.01, 0.1, 0.3, 1.0]


@pytest.mark.full
def test_numbers_are_chosen_by_the_least_error(encoder, short, kept, tmp_path):
  found = on_digits(encoder, tmp_path, dataset="digits:number", head="mlp(width=16, layers=2)")
  rows = found["selection"]["candidates"]
  errors_found = {row["validation_robust_rmse"]: row["weight_decay"] for row in rows}
  assert found["selection"]["weight_decay"] == errors_found[min(errors_found)]
  assert all(row["validation_robust_rmse"] > row["validation_rmse"] for row in rows)


@pytest.mark.full
@pytest.mark.parametrize("at", [17, 28])  # while the second candidate learns; the head itself
@pytest.mark.usefixtures("short")
def test_an_interrupted_choice_ends_the_same(encoder, kept, signalled, monkeypatch, tmp_path, at):
  run, measured = lambda name: on_digits(encoder, tmp_path / name, log_every=5), []
  score = slf._score
  monkeypatch.setattr(slf, "_score", lambda *args: measured.append(1) or score(*args))
  stopped = signalled(lambda: run("cut"), at)
  assert len(measured) == (1 if at == 17 else 2)
  assert (stopped.step is None) == (at == 17)
  found = run("cut")
  assert len(measured) == 2  # what was measured is not measured again
  assert found["selection"] == run("whole")["selection"]
  (one, _), (other, _) = kept
  same(one.head.get_weights(), other.head.get_weights())


@pytest.mark.full
def test_a_choice_of_other_settings_is_not_taken(encoder, short, kept, signalled, tmp_path):
  """Nor one of another encoder."""
  signalled(lambda: on_digits(encoder, tmp_path / "run", log_every=5), 17)
  refuses("holds a run with --epochs=3", on_digits, encoder, tmp_path / "run", epochs=4)
  file = tmp_path / "run" / "weight_decay.json"
  known = json.loads(file.read_text())
  known["encoder_fingerprint"] = "another"
  known["candidates"][0]["validation_accuracy"] = 7.0
  file.write_text(json.dumps(known))
  found = on_digits(encoder, tmp_path / "run")
  assert found["selection"]["candidates"][0]["validation_accuracy"] < 1


# --- Heads on pooled features ---


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["slf", "alf"])
def test_a_head_on_pooled_features(encoder, short, tmp_path, protocol):
  found = on_digits(encoder, tmp_path / "run", protocol=protocol, features="pooled", epochs=1)
  model = export.load_classifier(found["classifier"])
  assert (model.stochastic, model.latent_dim) == (False, 24)
  assert model.metadata["settings"]["features"] == "pooled"
  pretexts.Distil(found["classifier"]).attach(small_encoder())  # its features may teach
  assert ("selection" in found) == (protocol == "slf")
  images = np.float32(digits("test").images / 255)
  backbone = export.load_encoder(encoder).network.get_layer("convnet")
  features = backbone.predict(2 * images - 1, verbose=0)
  kernel, bias = model.head.get_weights()
  logits = features @ kernel + bias
  served = tf.saved_model.load(found["classifier"]).signatures
  np.testing.assert_allclose(served["deterministic"](images=images)["logits"], logits, atol=1e-4)
  wanted = special.softmax(logits, 1)
  np.testing.assert_allclose(served["serve"](images=images)["probabilities"], wanted, atol=1e-4)
  for seed in (0, 1):
    seeds = {"seed": tf.constant([seed, 0]), "samples": tf.constant(3)}
    drawn = served["sampled"](images=images, **seeds)
    np.testing.assert_allclose(np.exp(drawn["log_probabilities"]), wanted, atol=1e-4)
  np.testing.assert_allclose(served["head"](z=features)["logits"], logits, atol=1e-4)

  options = {"attacks": "pgd(steps=2)", "representation_examples": 10, "checks": False}
  result = urkle_tf.assess(classifier=found["classifier"], examples=40, **options)
  assert [row["mode"] for row in result["attacks"]] == ["deterministic"]  # and no other
  assert result["clean"]["accuracy"] == np.mean(logits[:40].argmax(1) == digits("test").labels[:40])
  assert result["representation"]["sigma"] == 1


def test_of_equal_candidates_under_attack_the_best_on_clean_images_is_chosen():
  figures = ((0.6, 0.0), (0.7, 0.0), (0.1, 0.1), (0.1, 0.1))
  rows = [{"clean": clean, "robust": robust} for clean, robust in figures]

  def best(count, classifies):
    task = types.SimpleNamespace(classifies=classifies)
    return rows.index(_selection._best(rows[:count], ("clean", "robust"), task))

  assert _selection._best(rows, ("clean",), types.SimpleNamespace(classifies=True)) is rows[1]
  assert (best(2, True), best(3, True)) == (1, 2)
  assert (best(2, False), best(3, False)) == (0, 0)  # errors
  assert _selection._best(rows, ("robust",), types.SimpleNamespace(classifies=True)) is rows[3]
