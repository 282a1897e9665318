"""Every cell of the grid, pretext x robustness, through every property.

By default a cell goes through one property, that of `USUAL`; `pytest --full` runs all.
"""

import functools
import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from interruptions import copied
from small_models import PRETEXTS, RUN, noise_views, precision, tiny_encoder, tiny_trainer, untimed

import urkle_tf
from urkle_tf import networks, pretexts, robustness, spec

SCHEMES = {
  "none": "none",
  "urkle": "urkle(beta=0.1)",
  "trades": "trades(beta=1)",
  "adversarial_training": "adversarial_training",
  "rocl": "rocl",
  "acl": "acl(form=ds)",
}
REFUSED = {("ae", "urkle"): "urkle needs a random z", ("keep", "urkle"): "go together"}
REFUSED["ae", "adversarial_training"] = "ae has none"
# Nothing is predicted of one image.
for name in ("simclr", "vae", "byol", "simsiam", "barlow_twins", "vicreg", "distil", "keep"):
  REFUSED |= {(name, scheme): f"{name} has none" for scheme in ("trades", "adversarial_training")}
for name in PRETEXTS:
  if name != "simclr":
    REFUSED |= {(name, scheme): f"{name} is not one" for scheme in ("rocl", "acl")}
CELLS = [cell for cell in itertools.product(PRETEXTS, SCHEMES) if cell not in REFUSED]
# Options that change what a step does, with one pretext.
FORMS = {
  "acl_a2a": "acl(form=a2a)",
  "acl_a2s": "acl(form=a2s)",
  "acl_dynamic": "acl(anneal=3, adversarial_weight=2/3, ema=0.9)",
  "urkle_original": "urkle(anchor=original)",
  "urkle_certified": "urkle(beta=0.1, certified=0.5)",
}
SCHEMES |= FORMS
CELLS += [("keep" if form == "urkle_original" else "simclr", form) for form in FORMS]


@pytest.fixture(autouse=True, scope="module")
def teacher(tmp_path_factory):
  """A teacher, of another width than the student, and an original for `keep`."""
  folder = urkle_tf.export_encoder(tiny_encoder(5), tmp_path_factory.mktemp("teacher"))
  original = tmp_path_factory.mktemp("original") / "original.keras"
  keras.utils.set_random_seed(1)
  networks.convnet((8, 8, 1), width=4, layers=2).save(original)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(PRETEXTS, "keep", f"keep(original={original})")
    patch.setitem(PRETEXTS, "distil", f"distil(teacher={folder}, start=true)")
    patch.setitem(PRETEXTS, "clusters", f"clusters(teacher={folder}, count=3)")
    yield


def _heads(pretext):
  """Where loc lies."""
  own = pretext == "keep"
  return {"latent_dim": None if own else 6, "loc": "pooled" if own else "dense"}


def _trainer(pretext, scheme, **compilation):
  task = spec.build("pretexts", PRETEXTS[pretext], pretexts.Pretext)
  if pretext == "supervised":
    task.outputs = 3
  images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
  if pretext == "keep":
    task.measure(images)
  if pretext == "clusters":
    task.find(images)
  built = spec.build("robustness", SCHEMES[scheme], robustness.Robustness)
  trainer = tiny_trainer(built, pretext=task, encoder=tiny_encoder(**_heads(pretext)), steps=3)
  trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9), **compilation)
  return trainer


def _fit(trainer):
  history = trainer.fit(noise_views(views=trainer.pretext.views), verbose=0).history
  return {name: values[-1] for name, values in history.items()}


def _steps(trainer, eager=False):
  """What `_fit` does, without Keras's loop, which takes as long to trace again."""
  step = trainer.train_step if eager else tf.function(trainer.train_step, autograph=False)
  for batch in noise_views(views=trainer.pretext.views):
    row = step(batch)
  return {name: float(value) for name, value in row.items()}


def _weights(trainer):
  return [v.numpy() for v in trainer.weights]


@functools.lru_cache(maxsize=1)
def _plain(pretext, scheme):
  """(metrics, weights) of a cell without any property, step by step in eager mode."""
  trainer = _trainer(pretext, scheme)
  return _steps(trainer, eager=True), _weights(trainer)


def _xla(pretext, scheme, **fixtures):
  """The compiled step is the step."""
  expected, weights = _plain(pretext, scheme)
  compiled = _trainer(pretext, scheme, jit_compile=True)
  found = _fit(compiled)
  assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
  same(weights, _weights(compiled), atol=2e-3)


def _bfloat16(pretext, scheme, **fixtures):
  """Low precision stays near, and everything that is reported is finite float32."""
  expected, _ = _plain(pretext, scheme)
  with precision("mixed_bfloat16"):
    trainer = _trainer(pretext, scheme)
    found = _steps(trainer)
  assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
  assert all(np.isfinite(value) for value in found.values())
  outputs = trainer.encoder.network(tf.zeros([2, 8, 8, 1]))
  assert {tensor.dtype for tensor in outputs.values()} == {tf.float32}


def _replicas(pretext, scheme, mirrored, **fixtures):
  """One replica and two give the same step."""
  expected, weights = _plain(pretext, scheme)
  with mirrored.scope():
    trainer = _trainer(pretext, scheme)
  found = _fit(trainer)
  same(weights, _weights(trainer), atol=5e-5, rtol=5e-5)
  for name in (*trainer.pretext.terms, *trainer.robustness.terms, "gradient_norm"):
    np.testing.assert_allclose(expected[name], found[name], rtol=5e-4, atol=1e-6)


def _resume(pretext, scheme, tmp_path, **fixtures):
  """A killed and resumed run leaves the weights, rows and exports of one that was not."""
  options = {
    **RUN,
    **_heads(pretext),
    "pretext": PRETEXTS[pretext],
    "robustness": SCHEMES[scheme],
    # Some schemes change the augmentation's strength.
    "augment": "simclr" if scheme == "acl_dynamic" else "crop(padding=1, flip=false)",
    "checkpoint_every": 2,
  }
  with copied({2: tmp_path / "killed"}):
    whole = urkle_tf.pretrain(output_dir=str(tmp_path / "whole"), **options)
  assert not (tmp_path / "killed" / "encoder").exists()
  resumed = urkle_tf.pretrain(output_dir=str(tmp_path / "killed"), **options)
  assert untimed(whole) == untimed(resumed)
  dual = scheme in ("acl", "acl_a2s", "acl_dynamic")
  for place in ("clean", "") if dual else ("",):
    folders = [pathlib.Path(run["encoder"], place) for run in (whole, resumed)]
    encoders = [urkle_tf.load_encoder(folder) for folder in folders]
    same(*(e.network.get_weights() for e in encoders))
  assert ("stream" in encoders[0].metadata) is dual
  sampled = scheme.startswith("urkle") or pretext == "vae"
  assert encoders[0].metadata["stochastic"] is sampled
  assert ("classifier" in whole) == (pretext == "supervised")
  if "classifier" in whole:
    served = urkle_tf.load_classifier(whole["classifier"])(np.zeros((2, 8, 8, 1), np.float32))
    np.testing.assert_allclose(np.sum(served, 1), 1.0, rtol=1e-5)
    assert served.shape == (2, 10)


PROPERTIES = {"xla": _xla, "bfloat16": _bfloat16, "replicas": _replicas, "resume": _resume}
# By default: each scheme under SimCLR, each pretext under Urkle.
USUAL = {cell: "bfloat16" for cell in CELLS if cell[0] == "simclr" or cell[1] == "urkle"}
USUAL["barlow_twins", "urkle"] = "replicas"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_cell(cell, name, request, mirrored, tmp_path):
  if name != USUAL.get(cell) and not request.config.getoption("--full"):
    pytest.skip("run with --full")
  PROPERTIES[name](*cell, mirrored=mirrored, tmp_path=tmp_path)


@pytest.mark.parametrize("cell", REFUSED, ids="-".join)
def test_a_cell_that_makes_no_sense_ends_in_one_line(cell, tmp_path):
  pretext, scheme = cell
  options = {"pretext": PRETEXTS[pretext], "robustness": SCHEMES[scheme]}
  refuses(REFUSED[cell], urkle_tf.pretrain, tmp_path / "run", **options)
  assert not (tmp_path / "run").exists()
