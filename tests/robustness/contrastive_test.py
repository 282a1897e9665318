"""RoCL and ACL: forms, attacks, losses and streams; DynACL's schedule and recipe."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses
from commands import ROOT
from norms import assert_inside
from plain_losses import nt_xent_loop
from small_models import settled, tiny_encoder, tiny_trainer, worst_of_corners

import urkle_tf
from urkle_tf import attacks, errors, pretexts, robustness, spec
from urkle_tf.data import augment, pipeline, sources
from urkle_tf.pretexts.simclr import nt_xent

EPSILON = 0.05
FORMS = ("ds", "a2a", "a2s")  # of ACL


def _trainer(form="ds", steps=None, augment=None, **options):
  attack = attacks.PGD(attacks.Linf(EPSILON), steps=5)
  optimizer = keras.optimizers.SGD(0.05)
  scheme = robustness.RoCL() if form == "rocl" else robustness.ACL(form, **options)
  return tiny_trainer(scheme, attack, optimizer=optimizer, augment=augment, steps=steps)


def _embed(trainer, images, stream, training=False):
  loc = trainer.encoder.streams[stream](images, training=training)["loc"]
  return trainer.pretext._projectors[stream](loc, training=training).numpy()


@pytest.fixture(scope="module")
def views():
  return tf.constant(np.random.default_rng(2).uniform(size=(6, 2, 8, 8, 1)), tf.float32)


@pytest.fixture(scope="module", params=("rocl", *FORMS))
def trainer(request):
  return settled(_trainer(request.param))


def _objective(trainer, views):
  return trainer.robustness.objective(trainer.encoder, trainer.pretext, views, None)


def test_objective_is_the_contrast_of_the_attacked_tuple(trainer, views):
  near = np.clip(views + 0.03, 0, 1)
  before = [v.numpy() for v in trainer.variables]
  form = getattr(trainer.robustness, "form", "rocl")
  first, second = ("clean" if form == "a2s" else "adversarial"), "adversarial"
  embed = lambda one, two: np.stack(  # noqa: E731
    [_embed(trainer, one, first), _embed(trainer, two, second)], 1
  )
  clean = embed(views[:, 0], views[:, 1])
  if form == "a2s":  # the second view alone is attacked
    neighbours, expected = near[:, 1], nt_xent_loop(embed(views[:, 0], near[:, 1]), clean)
    targets = views[:, 1:]
  elif form == "rocl":  # the first
    neighbours, expected = near[:, 0], nt_xent_loop(embed(near[:, 0], views[:, 1]), clean)
    targets = views[:, :1]
  else:
    neighbours, targets = near.reshape(12, 8, 8, 1), views
    expected = np.repeat(nt_xent_loop(embed(near[:, 0], near[:, 1]), clean), 2)
  found = _objective(trainer, views)(tf.constant(neighbours))
  np.testing.assert_allclose(found, expected, rtol=2e-4)
  np.testing.assert_array_equal(trainer.robustness.targets(views), targets)
  same(trainer.variables, before)


def test_the_attack_raises_the_objective_inside_the_ball(trainer, views):
  objective, clean = _objective(trainer, views), trainer.robustness.targets(views)
  found, _ = trainer.adversaries(views, None, tf.constant([0, 1]))
  assert found.shape == clean.shape
  assert_inside(found, clean, "linf", EPSILON)
  assert np.all(np.abs(found - clean).max((2, 3, 4)) > EPSILON / 2)  # all that are attacked move
  found, clean = (tf.reshape(x, [-1, 8, 8, 1]) for x in (found, clean))
  assert np.all(objective(found) > objective(clean))
  assert np.all(objective(found) > worst_of_corners(objective, clean, EPSILON))


@pytest.mark.parametrize("form, moves", [("rocl", [4]), ("ds", [4, 5])])
def test_views_of_an_image_are_attacked_jointly_and_images_apart(views, form, moves):
  """Another image's neighbour changes nothing: its negatives are clean constants."""
  trainer = settled(_trainer(form))
  objective = _objective(trainer, views)
  near = tf.reshape(trainer.robustness.targets(views), [-1, 8, 8, 1]).numpy()
  before = objective(tf.constant(near)).numpy()
  near[4] += 0.05  # of ds, the first view of image 2
  changed = objective(tf.constant(near)).numpy() != before
  assert np.flatnonzero(changed).tolist() == moves


def test_the_attacks_negatives_are_those_of_all_replicas(views, mirrored, on_two):
  with mirrored.scope():
    trainer = _trainer("a2a")
  found = on_two(lambda x: _objective(trainer, x)(tf.reshape(x, [-1, 8, 8, 1])), views.numpy())
  z = _embed(trainer, tf.reshape(views, [-1, 8, 8, 1]), "adversarial").reshape(6, 2, -1)
  np.testing.assert_allclose(found, np.repeat(nt_xent_loop(z, z), 2), rtol=2e-4)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_nt_xent_among_given_negatives_is_the_plain_loop(rng, denominator):
  tuples, negatives = (rng.normal(size=(5, n, 4)).astype("float32") for n in (3, 2))
  found = nt_xent(tuples, 0.3, denominator, negatives)
  np.testing.assert_allclose(found, nt_xent_loop(tuples, negatives, 0.3, denominator), rtol=1e-5)


@pytest.mark.parametrize("form, weight", [*((form, 0) for form in FORMS), ("ds", 2 / 3)])
def test_a_steps_loss_is_that_of_each_member_in_its_stream(form, weight, views):
  """Recomputed outside of the trainer, stream by stream, from the adversaries that it finds.

  With a weight, in the second of two stages of DynACL, at half strength: w is a third.
  """
  step = 1 if weight else 0
  options = {"steps": 2, "anneal": 2, "adversarial_weight": weight} if weight else {}
  trainer = settled(_trainer(form, **options))
  trainer.optimizer.iterations.assign(step)
  seed = urkle_tf.distribution.fold(urkle_tf.distribution.fold([0, 0], step), 1)
  adversaries, _ = trainer.adversaries(views, None, seed, step)
  before = [v.numpy() for v in trainer.variables]

  def embed(stream, *members):
    images = np.stack(members, 1).reshape(-1, 8, 8, 1)
    return _embed(trainer, images, stream, training=True).reshape(6, len(members), 4)

  v1, v2 = views[:, 0], views[:, 1]
  if form == "a2s":
    pairs = [np.concatenate([embed("clean", v1), embed("adversarial", adversaries[:, 0])], 1)]
  else:
    pairs = [embed("adversarial", adversaries[:, 0], adversaries[:, 1])]
    pairs += [embed("clean", v1, v2)] if form == "ds" else []
  losses = [nt_xent_loop(pair, pair).mean() for pair in pairs]
  expected = np.average(losses, weights=[1 + weight / 2, 1 - weight / 2][: len(losses)])
  statistics = [v.numpy() for v in trainer.weights if "moving" in v.path]
  for variable, value in zip(trainer.variables, before, strict=True):
    variable.assign(value)
  row = trainer.train_step({"views": views})
  np.testing.assert_allclose(row["loss"], expected, rtol=1e-4)
  # Each stream's statistics are those of its own images alone.
  found = [v.numpy() for v in trainer.weights if "moving" in v.path]
  assert len(found) == {"a2a": 8, "a2s": 16, "ds": 16}[form]
  same(found, statistics, rtol=1e-4, atol=1e-6)


def test_one_form_needs_one_stream(views):
  trainer = _trainer("a2a")
  assert list(trainer.encoder.streams) == ["adversarial"]
  assert list(_trainer("ds").encoder.streams) == ["adversarial", "clean"]


@pytest.mark.parametrize("rate", [1, 97])  # steps an epoch
def test_strength_falls_in_twenty_stages_of_fifty_epochs(rate):
  trainer = _trainer(steps=1000 * rate, anneal=20, adversarial_weight=2 / 3)
  assert [float(trainer.strength(epoch * rate)) for epoch in (0, 49, 50, 500, 999, 1050)] == (
    pytest.approx([1.0, 1.0, 0.95, 0.5, 0.05, 0.0])
  )
  for stage in range(1, 20):  # each begins with its first step
    ends = [float(trainer.strength(50 * stage * rate + offset)) for offset in (-1, 0)]
    assert ends == pytest.approx([1 - (stage - 1) / 20, 1 - stage / 20])
  # In float32, 22 times this quotient is below 13.
  assert float(robustness.ACL(anneal=22).strength(tf.constant(13.0) / 22)) == pytest.approx(9 / 22)


def test_adversaries_weigh_more_as_the_augmentation_weakens():
  scheme = robustness.ACL(anneal=20, adversarial_weight=2 / 3)
  for progress, clean, adversarial in (
    (0.0, 1.0, 1.0),
    (0.5, 2 / 3, 4 / 3),
    (0.999, 1 - 0.95 * 2 / 3, 1 + 0.95 * 2 / 3),
    (1.0, 1 / 3, 5 / 3),  # DynACL's 1.67, where the strength would be 0
  ):
    (one, first), (two, second) = scheme.tuples(2, 2)
    assert (first, second) == ((0, 1), (2, 3))
    found = [float(one(tf.constant(progress))), float(two(tf.constant(progress)))]
    assert found == pytest.approx([clean / 2, adversarial / 2])
  assert [weight for weight, _ in robustness.ACL(anneal=20).tuples(2, 2)] == [0.5, 0.5]


class _Shown(augment.Recipe):
  """A recipe whose images show the strength that it was called with."""

  strength = 0.5

  def __call__(self, images, noise, size=None, strength=None):
    return tf.zeros_like(images) + (self.strength if strength is None else strength)


@pytest.mark.full
def test_the_pipeline_and_the_step_augment_at_the_same_strength():
  """Of 6 steps in 3 stages; the pipeline is a function of the step, so it can be resumed."""
  trainer = _trainer(steps=6, anneal=3, augment=_Shown())
  source = sources.load("digits", "train[:40]")
  expected = [0.5, 0.5, 1 / 3, 1 / 3, 1 / 6, 1 / 6]
  for start in (0, 3):
    batches = pipeline.views(
      source, _Shown(), 16, seed=0, start_step=start, strength=trainer.strength
    )
    shown = [float(b["views"][0, 1, 0, 0, 0]) for b in batches.take(6 - start)]
    assert shown == pytest.approx(expected[start:])
  batch = {"image": tf.zeros([4, 8, 8, 1], tf.uint8)}
  shown = [float(trainer.views(batch, step)[0][0, 0, 0, 0, 0]) for step in range(6)]
  assert shown == pytest.approx(expected)
  plain = next(iter(pipeline.views(source, _Shown(), 16, seed=0)))["views"]
  assert float(plain[0, 0, 0, 0, 0]) == 0.5


def test_what_strength_cannot_reach_is_refused():
  source = sources.load("digits", "train[:40]")
  with pytest.raises(errors.UserError, match="Crop has no strength"):
    pipeline.views(source, augment.Crop(), 16, seed=0, strength=lambda step: 1.0)
  refuses("Trainer(..., steps=)", _trainer, anneal=3)


def test_a_step_of_rocl_has_the_sum_of_both_terms(views):
  """Recomputed outside of the trainer, from the adversary that it finds."""
  trainer = settled(_trainer("rocl"))
  seed = urkle_tf.distribution.fold(urkle_tf.distribution.fold([0, 0], 0), 1)
  adversary, _ = trainer.adversaries(views, None, seed, 0)
  before = [v.numpy() for v in trainer.variables]
  images = np.concatenate([views, adversary], 1).reshape(-1, 8, 8, 1)
  loc = trainer.encoder(images, training=True).loc.numpy().reshape(6, 3, 6)
  expected = 0.0
  for weight, members in ((1.0, [0, 1, 2]), (1 / 256, [1, 2])):  # (t1, t2, t1') and (t2, t1')
    z = trainer.pretext.projector(loc[:, members].reshape(-1, 6), training=True)
    z = z.numpy().reshape(6, len(members), 4)
    expected += weight * nt_xent_loop(z, z).mean()
  for variable, value in zip(trainer.variables, before, strict=True):
    variable.assign(value)
  row = trainer.train_step({"views": views})
  np.testing.assert_allclose(row["loss"], expected, rtol=1e-4)
  scale = trainer.encoder.network.get_layer("raw_scale")
  assert not scale.kernel.numpy().any()  # z = loc: nothing moves the scale


def test_the_projector_of_rocls_config_is_that_of_its_implementation():
  text = (ROOT / "configs" / "cifar10_rocl.cfg").read_text(encoding="utf-8")
  (pretext,) = re.findall("--pretext=(.*)", text)
  pretext = spec.build("pretexts", pretext, pretexts.Pretext)
  pretext.attach(tiny_encoder())
  _, *layers = pretext.projector.layers
  assert [type(layer).__name__ for layer in layers] == ["Dense", "ReLU", "Dense"]
  assert [layers[0].units, layers[2].units] == [2048, 128]
