"""Every cell of the grid, pretext x robustness, through every property.

By default each cell goes through two properties, in turn; `pytest --full` runs all of them.
"""

import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import urkle_tf
from urkle_tf import attacks, checkpoints, errors, networks, pretexts, robustness, spec

PRETEXTS = {
  "simclr": "simclr(projector=16, projection=4)",
  "byol": "byol(projector=8, projection=4, predictor=8)",
  "simsiam": "simsiam(projector=8, projection=8, predictor=4)",
  "barlow_twins": "barlow_twins(projector=8, projection=4)",
  "vicreg": "vicreg(projector=8, projection=4)",
  "distil": "distil(teacher=...)",  # its folder is made below
  "vae": "vae(beta=0.1, width=4, layers=2)",
  "ae": "ae(width=4, layers=2)",
  "supervised": "supervised(width=8, layers=2)",
}
SCHEMES = {
  "none": "none",
  "urkle": "urkle(beta=0.1)",
  "trades": "trades(beta=1)",
  "adversarial_training": "adversarial_training",
  "rocl": "rocl",
  "acl": "acl(form=ds)",
}
REFUSED = {
  ("simclr", "trades"): "simclr makes none",
  ("simclr", "adversarial_training"): "simclr reads none",
  ("vae", "trades"): "vae makes none",
  ("vae", "adversarial_training"): "vae reads none",
  ("ae", "urkle"): "urkle needs a random z",
  ("ae", "adversarial_training"): "ae reads none",
}
# Nothing is predicted of one image, and no label is read.
for name in ("byol", "simsiam", "barlow_twins", "vicreg", "distil"):
  REFUSED[name, "trades"] = f"{name} makes none"
  REFUSED[name, "adversarial_training"] = f"{name} reads none"
for name in PRETEXTS:
  if name != "simclr":
    REFUSED |= {(name, scheme): f"{name} has none" for scheme in ("rocl", "acl")}
CELLS = [cell for cell in itertools.product(PRETEXTS, SCHEMES) if cell not in REFUSED]
# Options that change what a step does, with one pretext.
FORMS = {
  "acl_a2a": "acl(form=a2a)",
  "acl_a2s": "acl(form=a2s)",
  "acl_dynamic": "acl(anneal=3, adversarial_weight=2/3, ema=0.9)",
}
SCHEMES |= FORMS
CELLS += [("simclr", form) for form in FORMS]


@pytest.fixture(autouse=True, scope="module")
def teacher(tmp_path_factory):
  """A teacher for `distil`, of another width than the student."""
  encoder = networks.GaussianEncoder(networks.convnet((8, 8, 1), width=4, layers=2), 5)
  folder = urkle_tf.export_encoder(encoder, tmp_path_factory.mktemp("teacher"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(PRETEXTS, "distil", f"distil(teacher={folder})")
    yield


def _trainer(pretext, scheme, **compilation):
  keras.utils.set_random_seed(0)
  task = spec.build("pretexts", PRETEXTS[pretext], pretexts.Pretext)
  if pretext == "supervised":
    task.outputs = 3
  trainer = urkle_tf.Trainer(
    networks.GaussianEncoder(networks.convnet((8, 8, 1), width=4, layers=2), 6),
    task,
    spec.build("robustness", SCHEMES[scheme], robustness.Robustness),
    attacks.PGD(attacks.Linf(0.1), steps=2),
    steps=3,
  )
  trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9), **compilation)
  return trainer


def _data(trainer, steps=3, batch=8):
  rng = np.random.default_rng(0)
  shape = (steps * batch, trainer.pretext.views, 8, 8, 1)
  rows = {
    "views": rng.uniform(size=shape).astype("float32"),
    "label": rng.integers(0, 3, steps * batch),
  }
  return tf.data.Dataset.from_tensor_slices(rows).batch(batch, drop_remainder=True)


def _fit(trainer):
  history = trainer.fit(_data(trainer), verbose=0).history
  return {name: values[-1] for name, values in history.items()}


def _weights(trainer):
  return [v.numpy() for v in trainer.weights]


def _xla(pretext, scheme, **fixtures):
  """The compiled step is the step."""
  del fixtures
  plain, compiled = _trainer(pretext, scheme), _trainer(pretext, scheme, jit_compile=True)
  expected, found = _fit(plain), _fit(compiled)
  assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
  for one, other in zip(_weights(plain), _weights(compiled), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-3)


def _bfloat16(pretext, scheme, **fixtures):
  """Low precision stays near, and everything that is reported is finite float32."""
  del fixtures
  expected = _fit(_trainer(pretext, scheme))
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  try:
    trainer = _trainer(pretext, scheme)
    found = _fit(trainer)
  finally:
    keras.mixed_precision.set_global_policy("float32")
  assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
  assert all(np.isfinite(value) for value in found.values())
  outputs = trainer.encoder.network(tf.zeros([2, 8, 8, 1]))
  assert {tensor.dtype for tensor in outputs.values()} == {tf.float32}


def _replicas(pretext, scheme, mirrored, **fixtures):
  """One replica and two give the same step."""
  del fixtures
  results, weights = [], []
  for scope in (tf.distribute.get_strategy(), mirrored):
    with scope.scope():
      trainer = _trainer(pretext, scheme)
    results.append(_fit(trainer))
    weights.append(_weights(trainer))
  for one, other in zip(*weights, strict=True):
    np.testing.assert_allclose(one, other, atol=5e-5, rtol=5e-5)
  for name in (*trainer.pretext.terms, *trainer.robustness.terms, "gradient_norm"):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=5e-4, atol=1e-6)


class _Killed(Exception):
  pass


def _resume(pretext, scheme, tmp_path, monkeypatch, **fixtures):
  """A killed and resumed run leaves the weights, rows and exports of one that was not."""
  del fixtures
  options = {
    "pretext": PRETEXTS[pretext],
    "robustness": SCHEMES[scheme],
    "encoder": "convnet(width=4, layers=2)",
    "latent_dim": 6,
    "split": "train[:48]",
    "batch_size": 16,
    "epochs": 2,
    "attack_steps": 2,
    "epsilon": 0.1,
    # Some schemes change the augmentation's strength.
    "augment": "simclr" if scheme == "acl_dynamic" else "crop(padding=1, flip=false)",
    "checkpoint_every": 2,
  }
  whole = urkle_tf.pretrain(output_dir=str(tmp_path / "whole"), **options)
  save = checkpoints.Checkpoints.save

  def save_and_die(self, step):
    save(self, step)
    if step == 4:
      raise _Killed

  monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_die)
  with pytest.raises(_Killed):
    urkle_tf.pretrain(output_dir=str(tmp_path / "killed"), **options)
  monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
  resumed = urkle_tf.pretrain(output_dir=str(tmp_path / "killed"), **options)
  timing = ("seconds", "images_per_second", "encoder", "classifier")
  strip = lambda row: {k: v for k, v in row.items() if k not in timing}  # noqa: E731
  assert strip(whole) == strip(resumed)
  dual = scheme in ("acl", "acl_a2s", "acl_dynamic")
  for place in ("clean", "") if dual else ("",):
    folders = [pathlib.Path(run["encoder"], place) for run in (whole, resumed)]
    encoders = [urkle_tf.load_encoder(folder) for folder in folders]
    for one, other in zip(*(e.network.get_weights() for e in encoders), strict=True):
      np.testing.assert_array_equal(one, other)
  assert ("stream" in encoders[0].metadata) is dual
  sampled = scheme == "urkle" or pretext == "vae"
  assert encoders[0].metadata["stochastic"] is sampled
  assert ("classifier" in whole) == (pretext == "supervised")
  if "classifier" in whole:
    served = urkle_tf.load_classifier(whole["classifier"])(np.zeros((2, 8, 8, 1), np.float32))
    np.testing.assert_allclose(np.sum(served, 1), 1.0, rtol=1e-5)
    assert served.shape == (2, 10)


PROPERTIES = {"xla": _xla, "bfloat16": _bfloat16, "replicas": _replicas, "resume": _resume}
# Neighbouring cells go through different pairs, so that each pretext and each scheme meets all.
_USUAL = {
  (cell, name)
  for number, cell in enumerate(CELLS)
  for name in itertools.islice(itertools.cycle(PROPERTIES), number, number + 2)
}


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_cell(cell, name, request, mirrored, tmp_path, monkeypatch):
  if (cell, name) not in _USUAL and not request.config.getoption("--full"):
    pytest.skip("run with --full")
  PROPERTIES[name](*cell, mirrored=mirrored, tmp_path=tmp_path, monkeypatch=monkeypatch)


@pytest.mark.parametrize("cell", REFUSED, ids="-".join)
def test_a_cell_that_makes_no_sense_ends_in_one_line(cell, tmp_path):
  pretext, scheme = cell
  with pytest.raises(errors.UserError, match=REFUSED[cell]) as caught:
    urkle_tf.pretrain(
      output_dir=str(tmp_path / "run"), pretext=PRETEXTS[pretext], robustness=SCHEMES[scheme]
    )
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()
