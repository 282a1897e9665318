"""What attacks share: their signature, uses and mistakes, and what a step hands to the next."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refused, refuses, slow
from norms import norms, total
from small_models import noise_views, tiny_trainer

from urkle_tf import attacks, distribution, robustness, spec
from urkle_tf.attacks import base
from urkle_tf.evaluation import plans
from urkle_tf.networks.kl import kl_objective
from urkle_tf.training import attack_schedules

NAMES = spec.names("attacks")
IN_TRAINING = {"pgd", "fgsm", "rs_fgsm", "n_fgsm", "apgd"}
ENSEMBLES = ("autoattack", "worst_of_all")
ALONE = [name for name in NAMES if name not in ENSEMBLES]  # that maximise one objective
QUICK = {"steps": 4, "queries": 12, "restarts": 2}


def made(name, threat):
  kind = spec.plugin("attacks", name, base.Attack)
  return kind(threat, **kind.accepted(QUICK))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_each_is_built_or_refused_in_one_line(name, use):
  def build():
    if use == "training":
      return attacks.from_spec(name, attacks.Linf(0.1), steps=6, step_size=0.03)
    return plans.read(name, attacks.Linf(0.1), 6, 0.03, restarts=2, classes=10)

  if name in (IN_TRAINING if use == "training" else set(NAMES) - {"n_fgsm"}):
    found = build()
    if name in ("pgd", "apgd"):  # whose budget is that of the flags
      attack = found if use == "training" else found[0].attack
      assert (attack.steps, attack.restarts) == (6, 1 if use == "training" else 2)
      assert name == "apgd" or attack.step_size == 0.03
    return
  with refused(match=f"^{name} .*: use (a?pgd|pgd, rs_fgsm)"):
    build()


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
  "norm, epsilon, other", [("linf", 0.2, 0.05), *slow(("l2", 1.0, 0.3), ("l1", 4.0, 1.0))]
)
def test_a_radius_may_be_given_to_a_run(rng, name, norm, epsilon, other):
  """It does what an attack built with it does."""
  if name == "n_fgsm" and norm != "linf":
    return
  images = tf.constant(rng.uniform(size=(3, 5, 5, 1)), tf.float32)
  weights = tf.constant(rng.normal(size=(3, 5, 5, 1)), tf.float32)
  # It is 0 between the two radii, for what looks for a boundary.
  objective = lambda x: total(weights * (x - images)) - 3  # noqa: E731
  wide, narrow = (made(name, attacks.from_norm(norm, radius)) for radius in (epsilon, other))
  expected, info = narrow.run(objective, images, [1, 2])
  run = tf.function(lambda e: wide.run(objective, images, [1, 2], epsilon=e), autograph=False)
  found, other_info = run(tf.constant(other))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert set(other_info) == set(info) >= {"objective", "zero_gradients"}
  np.testing.assert_allclose(other_info["objective"], info["objective"], atol=1e-4)
  reach = 3 * other if name == "n_fgsm" else other
  assert (norms(np.asarray(found) - images, norm) <= reach + 1e-5).all()
  assert (norms(wide(objective, images, [1, 2]) - expected, norm) > 1e-3).any()
  if name == "pgd":
    np.testing.assert_array_equal(run(tf.constant(0.0))[0], images)


@pytest.mark.parametrize(
  "name, given",
  [(name, given) for name in ALONE if name != "pgd" for given in ("steps", "step_size")]
  + [(name, "carried") for name in ("apgd", "fab_t", "square")],
)
def test_what_an_attack_does_not_take_is_refused(name, given):
  attack, images = made(name, attacks.Linf(0.1)), tf.fill([1, 4, 4, 1], 0.5)
  options = {given: tf.constant(3)}
  refuses(f"{name} does not accept {given}", attack.run, total, images, [1, 2], **options)


@pytest.mark.parametrize("name", ["n_fgsm", "pgd", *slow("apgd", "fgsm", "rs_fgsm")])
def test_a_training_warms_the_radius_of_any_attack_up(rng, name):
  model = tiny_trainer(attack=made(name, attacks.Linf(0.2)), epsilon_warmup=4)
  views = tf.constant(rng.uniform(0.4, 0.6, (4, 2, 8, 8, 1)), tf.float32)
  farthest = 3 if name == "n_fgsm" else 1
  least = {"pgd": 0.999, "n_fgsm": 0.98}.get(name, 0.7)
  for step, epsilon in ((0, 0.05), (1, 0.1), (3, 0.2), (9, 0.2), (None, 0.2)):
    found, _ = model.adversaries(views, None, [1, 2], step)
    moved = np.abs(found - views).max()
    assert least * farthest * epsilon < moved <= farthest * epsilon + 1e-6


def test_what_no_training_can_use_is_refused_at_the_start():
  for name in set(ALONE) - IN_TRAINING:
    with refused(match=f"^{name} .*: use a?pgd"):
      tiny_trainer(attack=made(name, attacks.Linf(0.1)))
  rising = attack_schedules.Rising()
  for name in IN_TRAINING - {"pgd"}:
    attack, words = made(name, attacks.Linf(0.1)), f"that of {name} is fixed: use --attack=pgd"
    refuses(words, rising.check, attack, None)


def ascent(rng, name, norm):
  """(an attack, its objective, images), which is below 0 there: some look for a boundary."""
  images = rng.uniform(size=(4, 3, 3, 1)).astype(np.float32)
  attack = made(name, attacks.from_norm(norm, {"linf": 0.1, "l2": 0.5, "l1": 1.0}[norm]))
  return attack, lambda z: total(tf.sin(3 * z)) + total(z[:, :2] * z[:, 1:]) - 9, images


@pytest.mark.full
@pytest.mark.parametrize(
  "name, norm, atol",
  [("apgd", norm, 1e-5) for norm in ("linf", "l1")]
  + [("square", "linf", 1e-4), ("square", "l2", 1e-4), ("fab_t", "l2", 1e-4)],
)
def test_xla_gives_the_same(rng, name, norm, atol):
  attack, objective, images = ascent(rng, name, norm)
  run = lambda x: attack(objective, x, [1, 2])  # noqa: E731
  compiled = tf.function(run, jit_compile=True, autograph=False)
  np.testing.assert_allclose(compiled(tf.constant(images)), run(images), atol=atol)


@pytest.mark.full
@pytest.mark.parametrize(
  "name, norm, atol",
  [("pgd", norm, 1e-6) for norm in ("linf", "l2", "l1")]
  + [("apgd", "linf", 1e-5), ("apgd", "l1", 1e-5), ("square", "linf", 1e-5)],
)
def test_two_replicas_equal_one(on_two, rng, name, norm, atol):
  """Half-batches on two replicas start, and end, where the whole batch does."""
  attack, objective, images = ascent(rng, name, norm)
  run = lambda x: attack(objective, x, tf.constant([1, 2]))  # noqa: E731
  np.testing.assert_allclose(on_two(run, images), run(images), atol=atol)


@pytest.mark.parametrize(
  "name, loss, targets, fixed_noise, settings",
  [
    ("apgd_ce", "cross_entropy", 0, False, {"steps": 100, "momentum": 0.75, "rho": 0.75}),
    ("apgd_dlr", "dlr", 0, False, {"steps": 100, "momentum": 0.75, "rho": 0.75}),
    ("apgd_t", "targeted_dlr", 9, False, {"steps": 100, "momentum": 0.75, "rho": 0.75}),
    ("fab_t", "targeted_margin", 9, True, {"overshoot": 1.05, "backward": 0.9, "bias": 0.1}),
    ("square", "margin", 0, True, {"queries": 5000, "share": 0.8}),
    ("hop_skip_jump", "margin", 0, True, {"queries": 5000}),
  ],
)
def test_defaults_are_the_published_ones(name, loss, targets, fixed_noise, settings):
  (plan,) = plans.read(name, attacks.Linf(0.1))
  assert (plan.loss.__name__, plan.targets, plan.fixed_noise) == (loss, targets, fixed_noise)
  assert plan.attack.describe().items() >= settings.items()


def test_step_sizes_by_default():
  assert attacks.PGD(attacks.L1(4.0), steps=20).step_size == 0.5  # 2.5 epsilon / steps
  assert attacks.FGSM(attacks.Linf(0.1)).describe()["step_size"] == 0.1
  assert attacks.RSFGSM(attacks.Linf(0.1)).describe()["step_size"] == 0.125


GREY = np.full([8, 6, 6, 2], 0.5, np.float32)


@pytest.mark.parametrize(
  "kind, options, words",
  [
    (attacks.PGD, {"steps": 0}, "pgd: steps must be a whole number of at least 1, got 0"),
    (attacks.PGD, {"restarts": 0}, "restarts must be"),
    (attacks.PGD, {"start": 0}, "start must be in (0, 1]"),
    (attacks.FGSM, {"start": -1}, "start must be in (0, 1]"),
    (attacks.PGD, {"step_size": 0}, "pgd: step_size must be in (0, inf), got 0"),
    (attacks.PGD, {"step_size": float("inf")}, "step_size must be in (0, inf), got inf"),
    (attacks.PGD, {"keep": "beast"}, "did you mean 'best'"),
    (attacks.APGD, {"steps": 0}, "steps must be a whole number of at least 1"),
    (attacks.APGD, {"rho": 1.5}, "rho must be in"),
    (attacks.APGD, {"momentum": 0}, "momentum must be in (0, 1]"),
    (attacks.APGD, {"momentum": "much"}, "momentum must be in"),
    (attacks.FAB, {"steps": 0}, "steps must be"),
    (attacks.FAB, {"bias": 2}, "bias must be in"),
    (attacks.FAB, {"overshoot": 0.5}, "fab_t: overshoot must be in [1, inf), got 0.5"),
    (attacks.Square, {"queries": 0}, "queries must be"),
    (attacks.Square, {"share": 2}, "share must be in"),
  ],
)
def test_wrong_options_end_in_one_line(kind, options, words):
  refuses(words, kind, attacks.Linf(0.1), **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_radius_is_no_threat_model(name):
  refuses(f"{name} needs a threat model, such as Linf", made, name, 8 / 255)


@pytest.mark.parametrize(
  "threat, objective, images, words",
  [
    (attacks.Linf(0.1), total, np.uint8(255 * GREY), "divide by 255"),
    (attacks.Linf(0.1), tf.reduce_sum, GREY, "one value per image"),
    (attacks.Linf(0.1), lambda z: tf.zeros([8]), GREY, "depend on the images"),
    (attacks.L2(100.0), total, GREY, "0-255 units"),
    (attacks.Linf(0.1), total, 255 * GREY, "pixels go from 127.5 to 127.5, and the threat"),
    (attacks.Linf(0.1), total, GREY * np.nan, "pixels go from nan to nan"),
  ],
)
def test_what_cannot_be_attacked_ends_in_one_line(threat, objective, images, words):
  for kind in (attacks.PGD, attacks.APGD):
    refuses(words, kind(threat), objective, images)


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize(
  "kind, budget", [(attacks.FAB, {"steps": 3}), (attacks.HopSkipJump, {"queries": 50})]
)
def test_an_image_that_nothing_breaks_stays(rng, kind, budget, restarts):
  x = rng.uniform(size=(3, 4, 4, 1)).astype(np.float32)
  attack = kind(attacks.Linf(0.1), restarts=restarts, **budget)
  found, info = attack.run(lambda z: -1.0 - 0.01 * total(z), x, [1, 2])
  np.testing.assert_array_equal(found, x)
  assert np.isposinf(info["distance"]).all()
  np.testing.assert_allclose(info["objective"], -1 - 0.01 * x.sum((1, 2, 3)), rtol=1e-5)


# Attacks that begin with what the step before found.

LINF, L2 = attacks.Linf(0.1), attacks.L2(0.5)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_start_is_moved_by_epsilon_and_projected(threat, rng):
  images = tf.constant(rng.uniform(size=(5, 4, 4, 1)), tf.float32)
  direction = rng.normal(size=(4, 4, 1)).astype(np.float32)
  attack = attacks.PGD(threat, steps=1, step_size=1e-9)  # which stays where it starts
  objective = lambda x: tf.reduce_sum(x, [1, 2, 3])  # noqa: E731
  found, _ = attack.run(objective, images, [1, 2], carried=tf.constant(direction))
  start = threat.random_start(images, distribution.fold([1, 2], 0)).numpy()
  unit = np.sign(direction) if threat is LINF else direction / np.linalg.norm(direction)
  expected = threat.project(start + threat.epsilon * unit, images)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  nothing, _ = attack.run(objective, images, [1, 2], carried=tf.zeros([4, 4, 1]))
  np.testing.assert_allclose(nothing, start, atol=1e-6)


def test_a_step_keeps_the_mean_perturbation_for_the_next():
  attack = attacks.RSFGSM(LINF, carry=True)
  trainer = tiny_trainer(robustness.Urkle(), attack, optimizer=keras.optimizers.SGD(0.05))
  batches = list(noise_views())
  for number, batch in enumerate(batches):
    views, before = batch["views"], trainer._carried.numpy()
    flat = tf.reshape(views, [-1, 8, 8, 1])
    objective = kl_objective(trainer.encoder, flat)
    seed = distribution.fold(distribution.fold([0, 0], number), 1)
    by_hand, _ = attack.run(objective, flat, seed, carried=tf.constant(before))
    trainer.step(batch)
    expected = tf.reduce_mean(by_hand - flat, 0)
    np.testing.assert_allclose(trainer._carried.numpy(), expected, atol=1e-5)
    assert np.abs(before).max() > 0 or number == 0
  assert any(variable is trainer._carried for variable in trainer.variables)  # checkpoints


@pytest.mark.full
def test_one_replica_and_two_carry_the_same(mirrored):
  found = []
  for scope in (tf.distribute.get_strategy(), mirrored):
    with scope.scope():
      trainer = tiny_trainer(robustness.Urkle(), attacks.PGD(LINF, steps=2, carry=True))
    history = trainer.fit(noise_views(), verbose=0).history
    found.append((history["kl"], trainer._carried.numpy()))
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-4)
  np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)
