"""The protocols alf and aff, against closed forms of linear models, and on digits."""

import dataclasses
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import slow
from scipy import optimize, special
from small_models import array_source, linear_head, linear_network, rows_of, untimed

from urkle_tf import attacks, downstream, export
from urkle_tf.data import sources
from urkle_tf.downstream import _training, aff, alf, base
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.regressor import Regressor
from urkle_tf.networks.representations import Representations
from urkle_tf.pretexts import Supervised

EPSILON = 0.05
OPTIONAL = [field.name for field in dataclasses.fields(base.Task) if field.name != "watch"]


# --- Linear models: the worst case is known ---


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
  """An encoder whose loc is the pixels of [2, 2, 1] images themselves, and whose z is loc."""
  encoder = export.ExportedEncoder(linear_network((2, 2, 1), 1.0, norm=False))
  folder = tmp_path_factory.mktemp("pixels") / "encoder"
  return export.export_encoder(encoder, folder, {"stochastic": False})


@pytest.fixture
def blobs(monkeypatch):
  """Two classes in the middle of the pixels' range, where no perturbation is clipped.

  The first pixel tells them apart by far, the others together do so too but each by less than
  epsilon: an ordinary classifier uses all of them.
  """
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1], 200)
  sign = 2 * labels[:, None] - 1
  means = np.array([0.13, 0.03, 0.03, 0.03])
  x = 0.5 + sign * means + rng.normal(0, [0.1, 0.02, 0.02, 0.02], (400, 4))
  images = np.rint(255 * np.clip(x, 0.1, 0.9)).astype(np.uint8).reshape(-1, 2, 2, 1)
  source = array_source(images, labels.astype(np.int64))
  monkeypatch.setattr(sources, "load", lambda *args, **kwargs: source)
  return source


def worst_losses(source, weights, bias, norm="linf"):
  """log(1 + exp(-y (w x + b) + epsilon ||w||)) with the dual norm, for y = -1 and 1."""
  x = source.images.reshape(len(source.images), -1) / 255
  dual = np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights)
  margin = (2 * source.labels - 1) * (x @ weights + bias)
  return np.logaddexp(0, EPSILON * dual - margin)


def difference(head):
  """What the two logits of a linear head differ by: (weights, bias)."""
  kernel, bias = head.get_weights()
  return kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]


def adapt(encoder, folder, **options):
  defaults = {"epsilon": EPSILON, "norm": "linf", "weight_decay": 0.0}
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **defaults | options)


@pytest.mark.parametrize("norm", ["linf", *slow("l2")])
def test_alf_trains_on_the_worst_case(pixels, blobs, kept, tmp_path, norm):
  # A step so small that the head stays as it is: what is reported is its loss.
  options = {"epochs": 1, "batch_size": 400, "learning_rate": 1e-9, "norm": norm}
  row = adapt(pixels, tmp_path / "run", protocol="alf", attack_steps=20, **options)
  wanted = worst_losses(blobs, *difference(kept[0][0].head), norm).mean()
  assert row["loss"] == row["cross_entropy"] == pytest.approx(wanted, rel=5e-3)
  x = blobs.images.reshape(400, -1) / 255
  clean = np.logaddexp(0, (1 - 2 * blobs.labels) * (x @ difference(kept[0][0].head)[0])).mean()
  assert row["loss"] > 1.01 * clean


@pytest.mark.full
def test_alf_finds_the_robust_head(pixels, blobs, kept, tmp_path):
  options = {"batch_size": 100, "learning_rate": 0.2, "epochs": 60}
  adapt(pixels, tmp_path / "slf", **options)
  # One step of 2.5 epsilon reaches the corner that is worst.
  adapt(pixels, tmp_path / "alf", protocol="alf", attack_steps=1, **options)
  plain, robust = (worst_losses(blobs, *difference(model.head)).mean() for model, _ in kept)
  loss = lambda p: worst_losses(blobs, p[:4], p[4]).mean()  # noqa: E731
  best = optimize.minimize(loss, np.zeros(5), method="Powell").fun
  assert best <= robust < 1.03 * best
  assert plain > 1.05 * best


def kl(before, after):
  """KL of two Bernoullis given by their logits."""
  return sum(special.rel_entr(special.expit(s * before), special.expit(s * after)) for s in (1, -1))


def test_aff_minimises_trades(pixels, blobs, kept, tmp_path):
  options = {"epochs": 1, "batch_size": 400, "learning_rate": 1e-9, "attack_steps": 20}
  row = adapt(pixels, tmp_path / "run", protocol="aff(beta=3)", **options)
  weights, bias = difference(kept[0][0].head)
  x = blobs.images.reshape(400, -1) / 255
  margin = x @ weights + bias
  clean = np.logaddexp(0, (1 - 2 * blobs.labels) * margin).mean()
  assert row["cross_entropy"] == pytest.approx(clean, rel=1e-4)
  assert row["loss"] == pytest.approx(row["cross_entropy"] + 3 * row["divergence"], rel=1e-5)
  # The divergence grows in both directions from the image, and the start says in which one goes.
  reach = EPSILON * np.abs(weights).sum()
  both = np.stack([kl(margin, margin + reach), kl(margin, margin - reach)])
  assert both.min(0).mean() * 0.99 <= row["divergence"] <= both.max(0).mean() * 1.01
  assert both.min(0).mean() > 0.5 * both.max(0).mean()  # so that this says something


def test_the_weight_decay_of_aff_is_the_published_one():
  """There 2e-4 times the weight joins the gradient, and the momentum of 0.9 repeats it."""
  weight, velocity, rate, steps = 1.0, 0.0, 0.1, 2000
  for _ in range(steps):
    velocity = 0.9 * velocity - rate * 2e-4 * weight
    weight += velocity
  decoupled = (1 - rate * aff.AFF.defaults["weight_decay"]) ** steps
  assert decoupled == pytest.approx(weight, rel=0.01)  # about exp(-0.4)


def test_aff_compares_at_the_same_noise(rng):
  pretext = Supervised(outputs=3, layers=1)
  pretext.network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
  loc = rng.normal(size=(5, 2, 4)).astype(np.float32)
  scale = rng.uniform(0.1, 1, (5, 2, 4)).astype(np.float32)
  noise = rng.normal(size=(5, 2, 4)).astype(np.float32)
  given = Representations(tfp.distributions.Normal(loc, scale), tf.constant(loc + scale * noise))
  sampled = types.SimpleNamespace(model=types.SimpleNamespace(stochastic=True))
  weight, found = aff.scheme(sampled, 2.5).losses(pretext, given, 1, None)["divergence"]
  assert weight == 2.5
  kernel, bias = pretext.network.get_weights()
  z = loc + scale * noise[:, :1]  # the noise of the image is the adversary's too
  before, after = np.moveaxis(special.softmax(z @ kernel + bias, -1), 1, 0)
  np.testing.assert_allclose(found, special.rel_entr(before, after).sum(-1), rtol=1e-4)


def test_alf_attacks_the_mean_over_samples_of_z():
  """Of squared errors (2 z)^2 / 2, whose mean is 2 (loc^2 + scale^2)."""

  class Pixels:
    latent_dim = 1

    def __call__(self, images):
      return tfp.distributions.Normal(images[:, 0, 0], tf.constant([[0.5], [1.0], [0.0]]))

  pretext = Supervised(task="regression", layers=1)
  pretext.attach(Pixels())
  pretext.network.set_weights([np.array([[2.0]]), np.array([0.0])])
  scheme, images = alf._OnSamples(20000), tf.reshape([1.0, 0.0, 2.0], [3, 1, 1, 1])
  one, other = (
    scheme.objective(Pixels(), pretext, None, (tf.zeros(3), seed)) for seed in ([0, 1], [0, 2])
  )
  np.testing.assert_allclose(one(images), [2.5, 2.0, 8.0], rtol=0.05)
  np.testing.assert_array_equal(one(images), one(images))
  assert np.all(one(images)[:2] != other(images)[:2])


@pytest.mark.parametrize("classifies", [True, False])
def test_held_out_images_are_scored_as_they_are_and_at_their_worst(rng, classifies):
  """The first 1,000 of them, by linear models; numbers in the target's units."""
  images = rng.integers(60, 190, (1100, 2, 2, 1)).astype(np.uint8)
  weights, x = rng.normal(size=(4, 2)).astype(np.float32), images.reshape(1100, 4) / 255
  network, none = linear_network((2, 2, 1), 1.0), dict.fromkeys(OPTIONAL)
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=10)
  if classifies:
    bias = -np.median(x @ weights, 0)
    model = Classifier(network, linear_head(weights, bias), False)
    source = array_source(images, rng.integers(0, 2, 1100))
    margin = (1 - 2 * source.labels) * (x @ (weights[:, 0] - weights[:, 1]) + bias[0] - bias[1])
    reach = EPSILON * np.abs(weights[:, 0] - weights[:, 1]).sum()
    wanted = [np.mean(margin[:1000] > at) for at in (0, reach)]
  else:
    model = Regressor(network, linear_head(weights[:, :1], np.ones(1)), False)
    source = array_source(images, rng.normal(3, 2, 1100).astype(np.float32))
    error = np.abs(2 * (x @ weights[:, 0] + 1) + 3 - source.labels)[:1000]
    reach = 2 * EPSILON * np.abs(weights[:, 0]).sum()
    wanted = [np.sqrt(np.mean((error + more) ** 2)) for more in (0, reach)]
  task = base.Task(**none | {"model": model, "attack": attack, "seed": 0, "offset": 3, "spread": 2})
  found = _training.Scorer(task, source)()
  assert list(found) == list(task.measures)
  np.testing.assert_allclose(list(found.values()), wanted, atol=2e-3)


@pytest.mark.parametrize("classifies, wanted", [(True, [0, 1, 0, 1, 0]), (False, [0, 1, 0, 0, 1])])
def test_the_first_of_the_best_epochs_is_kept(classifies, wanted):
  watch = object.__new__(_training._Validation)
  watch._task, watch._record = object.__new__(base.Task), None
  model = object.__new__(Classifier if classifies else Regressor)
  object.__setattr__(watch._task, "model", model)
  scores = [{watch._task.measures[1]: value} for value in (np.nan, 0.5, 0.5, 0.6, 0.4)]
  assert [watch._offer(row) for row in scores] == wanted
  assert not watch._offer({})


# --- Digits ---


SMALL = {"epochs": 3, "batch_size": 64, "attack_steps": 2, "norm": None, "epsilon": None}
SMALL |= {"split": "train[:300]", "validation_split": "train[-200:]"}


@pytest.mark.full
def test_alf_leaves_the_encoder_alone(encoder, tmp_path):
  options = {**SMALL, "protocol": "alf", "labels": 0.5, "learning_rate": 0.03}
  result = adapt(encoder, tmp_path / "run", **options)
  model = export.load_classifier(result["classifier"])
  before = export.load_encoder(encoder).network
  trainable = lambda network: [layer.trainable for layer in network.layers]  # noqa: E731
  assert trainable(before) == trainable(model.network)
  same(before.get_weights(), model.network.get_weights())
  assert model.stochastic
  assert (model.metadata["norm"], model.metadata["epsilon"]) == ("linf", EPSILON)

  # The labels that were used: half of them, of every class its share.
  listed = json.loads((tmp_path / "run" / "labels.json").read_text())["positions"]
  used = sources.load("digits", "train[:300]").labels
  assert len(listed) == 150
  assert np.abs(np.bincount(used[listed]) - np.bincount(used) / 2).max() <= 1

  # The epoch that did best under attack was kept.
  rows = rows_of(tmp_path / "run")
  scores = {row["step"]: row["validation_robust_accuracy"] for row in rows}
  assert len(scores) == 3
  assert scores[result["step"]] == max(scores.values())
  assert all(row["validation_robust_accuracy"] <= row["validation_accuracy"] for row in rows)
  assert model.metadata["selected"]["step"] == result["step"]
  assert adapt(encoder, tmp_path / "run", **options) == result  # finished: the same row


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["alf", "aff", "similarity"])
def test_the_same_seed_gives_the_same_after_an_interruption(
  encoder, kept, killed, signalled, tmp_path, protocol
):
  options = {**SMALL, "protocol": protocol, "learning_rate": 0.02, "augment": "crop(padding=1)"}
  whole = adapt(encoder, tmp_path / "whole", **options)
  again = lambda: adapt(encoder, tmp_path / "killed", **options)  # noqa: E731
  if protocol != "aff":
    killed(again, saves=2)
  else:  # in the middle of the second epoch of 4 steps each, and of the means of its row
    assert signalled(again, at=6).step == 6
    assert (tmp_path / "killed" / "checkpoints" / "step_000000006.npz").exists()
  resumed = again()
  assert untimed(whole) == untimed(resumed)
  (one, _), (other, _) = kept
  same(one.head.get_weights(), other.head.get_weights())
  same(one.network.get_weights(), other.network.get_weights())
  before = export.load_encoder(encoder).network
  pairs = zip(before.variables, one.network.variables, strict=True)
  changed = [np.any(old.numpy() != new.numpy()) for old, new in pairs]
  # aff: everything, the head for the scale and moving averages too, since z is sampled.
  assert {"alf": not any(changed), "aff": all(changed), "similarity": any(changed)}[protocol]


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["alf", "aff"])
def test_numbers_can_be_learnt_under_attack(encoder, kept, tmp_path, protocol):
  options = {**SMALL, "protocol": protocol, "learning_rate": 0.02, "epochs": 2}
  result = adapt(encoder, tmp_path, dataset="digits:rotation(degrees=30)", **options)
  rows = rows_of(tmp_path)
  scores = {row["step"]: row["validation_robust_rmse"] for row in rows}
  assert scores[result["step"]] == min(scores.values())
  assert result["validation_robust_rmse"] > result["validation_rmse"]
  ((model, metadata),) = kept
  assert model.target == "the angle in degrees"
  assert metadata["settings"]["epsilon"] == EPSILON
  held = sources.load("digits:rotation(degrees=30)", "train[-200:]")
  (batch,) = held.batches(200, shuffle=False)
  predicted = model.predictions(tf.cast(batch["image"], tf.float32) / 255, [0, 0], 100)[:, 0]
  error = np.sqrt(np.mean((predicted - batch["label"]) ** 2))  # in degrees
  assert error == pytest.approx(result["validation_rmse"], rel=0.05)
