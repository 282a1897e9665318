"""The protocol semi_supervised: its three stages, and which labels they read."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import refuses
from scipy import special
from small_models import rows_of, sequential, untimed

from urkle_tf import downstream, export
from urkle_tf.data import sources
from urkle_tf.downstream import _labels, semi_supervised
from urkle_tf.networks.representations import Representations

SPLIT = "train[:300]"
SMALL = {"dataset": "digits", "split": SPLIT, "validation_split": "train[-100:]", "labels": 0.2}
SMALL |= {"batch_size": 60, "epochs": 2, "learning_rate": 0.02, "attack_steps": 2}
PROTOCOL = "semi_supervised(clean_epochs=3)"


def adapt(encoder, folder, **options):
  settings = {"protocol": PROTOCOL, **SMALL, **options}
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **settings)


@pytest.fixture
def labelled_by(monkeypatch):
  """The models of stage 1, in the order in which they labelled images."""
  found, probabilities = [], semi_supervised._probabilities

  def keep(model, task):
    assert model.head is not task.head  # which starts stage 3 untrained
    found.append(model)
    return probabilities(model, task)

  monkeypatch.setattr(semi_supervised, "_probabilities", keep)
  return found


def test_the_three_stages(encoder, labelled_by, tmp_path, capsys):
  result = adapt(encoder, tmp_path)
  rows, said = rows_of(tmp_path), capsys.readouterr().err
  stages = [(row["stage"], row["step"], row["epoch"]) for row in rows]
  assert stages[:3] == [("clean", k, k) for k in (1, 2, 3)]
  assert stages[3:] == [("adversarial", 5, 1), ("adversarial", 10, 2)]
  for part in ("stage 1 of 3: 60 labelled images", "labels for 300 images", "stage 3 of 3: 300"):
    assert part in said
  for row in rows[:3]:
    assert row["loss"] == row["cross_entropy"]
    assert not {"divergence", "validation_robust_accuracy"} & set(row)
  for row in rows[3:]:
    wanted = row["distillation"] + 6 * row["divergence"]
    assert row["loss"] == pytest.approx(wanted, rel=1e-5)
  assert rows[2]["seconds"] <= rows[3]["seconds"]

  # The epoch of stage 3 that did best under attack is the result.
  best = max(rows[3:], key=lambda row: row["validation_robust_accuracy"])
  assert result == best | {"classifier": str(tmp_path / "classifier")}
  model = export.load_classifier(tmp_path / "classifier")
  assert model.metadata["selected"]["step"] == best["step"]
  listed = json.loads((tmp_path / "labels.json").read_text())["positions"]
  assert len(listed) == 60

  # The labels of stage 3 are what the model of stage 1 makes of the images, in their order.
  soft = np.load(tmp_path / "pseudo_labels.npy")
  images = (sources.load("digits", SPLIT).images / 255).astype(np.float32)
  (clean,) = labelled_by
  assert (soft.shape, soft.dtype) == ((300, 10), np.float32)
  np.testing.assert_allclose(soft.sum(1), 1, atol=1e-5)
  served = np.exp(clean.log_probabilities(images, [1, 2], 2000))
  assert np.abs(soft - served).mean() < 0.02
  assert np.corrcoef(soft.ravel(), served.ravel())[0, 1] > 0.95

  assert adapt(encoder, tmp_path) == result  # finished: the same row
  refuses("--labels", adapt, encoder, tmp_path, labels=0.3)


@pytest.mark.full
def test_the_same_after_interruptions(encoder, kept, killed, signalled, labelled_by, tmp_path):
  whole = adapt(encoder, tmp_path / "whole")
  again = lambda: adapt(encoder, tmp_path / "killed")  # noqa: E731
  killed(again, saves=2)
  assert rows_of(tmp_path / "killed")[-1]["stage"] == "clean"  # its second epoch of three
  assert signalled(again, at=1).step is None  # while images are labelled
  labelled_by.pop()
  killed(again, saves=1)
  assert rows_of(tmp_path / "killed")[-1]["stage"] == "adversarial"
  resumed = adapt(encoder, tmp_path / "killed")
  assert untimed(whole) == untimed(resumed)
  one, other = ([*map(untimed, rows_of(tmp_path / name))] for name in ("whole", "killed"))
  assert one == other
  assert len(labelled_by) == 2  # images that have been labelled are not labelled again
  (one, _), (other, _) = kept
  same(one.get_weights(), other.get_weights())


@pytest.mark.full
def test_no_other_label_is_read(encoder, kept, tmp_path, monkeypatch):
  known = sources.load("digits", SPLIT)
  chosen = _labels.choose(known.labels, 60, seed=4)
  nonsense = np.random.default_rng(1).integers(0, 10, 300)
  nonsense[chosen] = known.labels[chosen]
  assert np.mean(nonsense == known.labels) < 0.4
  fields = {"name": "digits", "split": SPLIT, "class_names": known.class_names}
  monkeypatch.setattr(_labels, "choose", lambda *args: chosen)
  for name, labels in (("true", known.labels), ("nonsense", nonsense)):
    source = sources.ArraySource(known.images, labels=labels, **fields)
    monkeypatch.setattr(sources, "load", lambda *args, source=source, **options: source)
    adapt(encoder, tmp_path / name, validation_split=None)
  labels = [np.load(tmp_path / name / "pseudo_labels.npy") for name in ("true", "nonsense")]
  np.testing.assert_array_equal(*labels)
  (one, _), (other, _) = kept
  same(one.get_weights(), other.get_weights())


@pytest.mark.full
def test_stage_1_is_that_of_the_clean_stream(encoder, kept, labelled_by, tmp_path):
  """Learning rates so small that each stage leaves its encoder where it was."""
  loaded = export.load_encoder(encoder)
  dual = export.export_encoder(loaded, tmp_path / "encoder", loaded.metadata)
  for variable in loaded.network.trainable_variables:
    variable.assign_add(tf.fill(variable.shape, 0.1))
  export.export_encoder(loaded, dual / "clean", loaded.metadata)
  options = {"learning_rate": 1e-9, "epochs": 1, "protocol": "semi_supervised(clean_epochs=1)"}
  for folder, clean in ((dual, dual / "clean"), (encoder, encoder)):
    adapt(folder, tmp_path / f"run {folder == dual}", validation_split=None, **options)
    stages = (labelled_by[-1].network, clean), (kept[-1][0].network, folder)
    for network, origin in stages:
      wanted = export.load_encoder(origin).network.trainable_variables
      same(network.trainable_variables, wanted, atol=1e-5)
  assert labelled_by[-1].network is not kept[-1][0].network  # a copy


def test_the_cross_entropy_with_soft_labels(rng):
  head = sequential((4,), keras.layers.Dense(3))
  task = types.SimpleNamespace(classifies=True, head=head, standardised=lambda labels: labels)
  pretext = semi_supervised._Soft(task, 0.25)
  z = rng.normal(size=(6, 1, 4)).astype(np.float32)
  soft = rng.dirichlet(np.ones(3), 6).astype(np.float32)
  given = Representations(tfp.distributions.Normal(z, np.ones_like(z)), tf.constant(z))
  labels = pretext.prepare(None, {"label": tf.constant(soft)})
  found = pretext.loss(given, labels)
  assert set(found) == set(pretext.terms) == {"distillation"}
  kernel, bias = head.get_weights()
  log_p = special.log_softmax(z[:, 0] @ kernel + bias, 1)
  np.testing.assert_allclose(found["distillation"], -0.25 * (soft * log_p).sum(1), rtol=1e-4)


def test_each_batch_of_each_seed_has_draws_of_its_own():
  """Of a model whose log-probabilities are its noise: of 300 images, in batches of 250."""
  asked, found = [], []

  def predict(images, _, noise, samples):
    asked.append(samples)
    return tf.repeat(tf.cast(noise[None], tf.float32), tf.shape(images)[0], 0)

  frozen = types.SimpleNamespace(represent=lambda x: (x, x), from_representation=predict)
  model, watch = (types.SimpleNamespace() for _ in range(2))
  model.frozen, watch.check = lambda: frozen, lambda: None
  for seed in (4, 5):
    task = types.SimpleNamespace(source=sources.load("digits", SPLIT), seed=seed, watch=watch)
    rows = semi_supervised._probabilities(model, task)
    assert (rows[:250] == rows[0]).all()
    assert (rows[250:] == rows[-1]).all()
    found += [tuple(np.log(rows[0])), tuple(np.log(rows[-1]))]
  assert len(set(found)) == 4
  assert set(asked) == {20}


def test_labels_by_the_examples_indices(rng):
  source = sources.load("digits", SPLIT)
  soft = rng.uniform(size=(300, 10)).astype(np.float32)
  for batch in semi_supervised._relabelled(source, soft).batches(50, seed=3):
    np.testing.assert_array_equal(batch["label"], soft[batch["index"].numpy()])
    np.testing.assert_array_equal(batch["image"], source.images[batch["index"].numpy()])
