"""The protocol similarity: its term against NumPy, and what it keeps of real digits."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from plain_losses import kl
from scipy import special
from small_models import digits, rows_of, sequential, small_encoder

from urkle_tf import downstream, export
from urkle_tf.downstream import similarity
from urkle_tf.networks.representations import Representations


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  """{whether z is random: the folder of an encoder}."""
  folder, made = tmp_path_factory.mktemp("digits"), small_encoder()
  return {
    stochastic: export.export_encoder(made, folder / str(stochastic), {"stochastic": stochastic})
    for stochastic in (True, False)
  }


@pytest.fixture
def encoder(request, encoders):
  return encoders[getattr(request, "param", True)]


def each_z(*marks):
  """Runs a test with a random z and, with these marks, with z = loc."""
  values = [pytest.param(True, id="random z"), pytest.param(False, id="z = loc", marks=marks)]
  return pytest.mark.parametrize("encoder", values, indirect=True)


SMALL = {"dataset": "digits", "split": "train[:500]", "validation_split": "train[-200:]"}
SMALL |= {"batch_size": 64, "epochs": 6, "learning_rate": 3e-3}


def adapt(encoder, folder, **options):
  return downstream.adapt(encoder=str(encoder), output_dir=str(folder), **SMALL | options)


def near(encoder, weight):
  """The pretext of the protocol, with a linear head on 6 dimensions."""
  model = types.SimpleNamespace(stochastic=export.read_metadata(encoder)["stochastic"])
  fields = {"classifies": True, "standardised": lambda labels: 2 - labels, "model": model}
  head = sequential((6,), keras.layers.Dense(3))
  return similarity._Near(types.SimpleNamespace(head=head, folder=encoder, **fields), weight)


@each_z()
def test_the_term_is_the_plain_formula(rng, encoder):
  pretext = near(encoder, weight=2.5)
  images = digits()[0][:7]
  network = export.load_encoder(encoder).network
  before = {name: value.numpy() for name, value in network(images, training=False).items()}
  labels = rng.integers(0, 3, 7)
  aux = pretext.prepare(tf.constant(images)[:, None], {"label": labels})
  loc = (before["loc"] + rng.normal(0, 0.5, (7, 6))).astype(np.float32)
  scale = (before["scale"] * rng.uniform(0.5, 2, (7, 6))).astype(np.float32)
  z = loc + scale * rng.normal(size=(7, 6)).astype(np.float32)
  normal = tfp.distributions.Normal(loc[:, None], scale[:, None])
  found = pretext.loss(Representations(normal, tf.constant(z[:, None])), aux)
  if export.read_metadata(encoder)["stochastic"]:
    distance = kl(before["loc"], before["scale"], loc, scale).mean(1)
  else:
    lengths = np.linalg.norm(loc, axis=1) * np.linalg.norm(before["loc"], axis=1)
    distance = 1 - (loc * before["loc"]).sum(1) / lengths
  np.testing.assert_allclose(found["similarity"], 2.5 * distance, rtol=1e-3, atol=1e-5)
  kernel, bias = pretext.network.get_weights()
  entropy = -special.log_softmax(z @ kernel + bias, 1)[np.arange(7), 2 - labels]
  np.testing.assert_allclose(found["cross_entropy"], entropy, rtol=1e-4)
  assert not pretext.trainable_variables[2:]  # the head's two: what it is held to stays


def moved(encoder, model):
  """How far the representations of test images are from where they were: mean 1 - cos."""
  images = digits()[0][-300:]
  networks = export.load_encoder(encoder).network, model.network
  before, after = (network(images, training=False)["loc"].numpy() for network in networks)
  cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
  return np.mean(1 - cosine)


@pytest.mark.full
@each_z()
def test_weight_holds_the_representation_where_it_was(encoder, kept, tmp_path):
  distances, entropies = [], []
  for weight in (0, 1, 100):
    folder = tmp_path / str(weight)
    result = adapt(encoder, folder, protocol=f"similarity(weight={weight})")
    rows = rows_of(folder)
    assert result == rows[-1] | {"classifier": str(folder / "classifier")}
    for row in rows:
      assert row["loss"] == pytest.approx(row["cross_entropy"] + row["similarity"], rel=1e-5)
    # Clean validation and the last epoch: nothing is attacked, and nothing chosen by an attack.
    assert len(rows) == 6
    assert "validation_accuracy" in rows[-1]
    assert not any("robust" in name for name in rows[-1])
    distances.append(moved(encoder, kept[-1][0]))
    entropies.append(result["cross_entropy"])
  assert distances[0] > 0.3
  assert distances[0] > 1.3 * distances[1] > 1.3 * 1.5 * distances[2]
  assert distances[2] < 0.1
  assert entropies[0] < entropies[1] < entropies[2]  # which is what it costs


@pytest.mark.full
@each_z(pytest.mark.full)
def test_it_starts_where_the_encoder_is_and_keeps_its_statistics(encoder, kept, tmp_path):
  row = adapt(encoder, tmp_path / "still", protocol="similarity", epochs=1, learning_rate=1e-9)
  assert abs(row["similarity"]) < 1e-6
  adapt(encoder, tmp_path / "run", protocol="similarity(weight=0)", epochs=2)
  before = export.load_encoder(encoder).network
  pairs = zip(before.variables, kept[-1][0].network.variables, strict=True)
  changed = {old.path: np.any(old.numpy() != new.numpy()) for old, new in pairs}
  statistics = [path for path in changed if "moving" in path]
  assert len(statistics) == 8  # of three batch norms and of loc's
  assert not any(changed[path] for path in statistics)
  others = set(changed) - set(statistics)
  if not export.read_metadata(encoder)["stochastic"]:
    others -= {path for path in others if "raw_scale" in path}  # nothing uses it
  assert all(changed[path] for path in others)


def test_numbers_can_be_learnt_and_flags_of_attacks_are_named(encoder, kept, tmp_path, capsys):
  options = {"dataset": "digits:rotation", "epochs": 2, "attack_steps": 3}
  result = adapt(encoder, tmp_path, protocol="similarity", **options)
  assert "similarity does not use --attack_steps" in capsys.readouterr().out
  assert result["loss"] == pytest.approx(result["squared_error"] + result["similarity"], rel=1e-5)
  model = kept[0][0]
  assert model.target == "the angle in degrees"
  before = export.load_encoder(encoder).network.variables
  for old, new in zip(before, model.network.variables, strict=True):
    assert np.all(old.numpy() == new.numpy()) == ("moving" in old.path)
