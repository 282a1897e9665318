"""What every attack of the package's folder shares: one signature, and who may use it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from norms import norms, total

import urkle_tf
from urkle_tf import attacks, errors, networks, pretexts, robustness, spec
from urkle_tf.attacks import base
from urkle_tf.evaluation import plans
from urkle_tf.training import attack_schedules

NAMES = spec.names("attacks")
IN_TRAINING = {"pgd", "fgsm", "rs_fgsm", "n_fgsm", "apgd"}
ENSEMBLES = ("autoattack", "worst_of_all")
ALONE = [name for name in NAMES if name not in ENSEMBLES]  # that climb one objective
QUICK = {"steps": 4, "queries": 12, "restarts": 2}


def made(name, threat):
  kind = spec.plugin("attacks", name, base.Attack)
  return kind(threat, **kind.accepted(QUICK))


def test_the_files_are_the_attacks():
  assert set(NAMES) == IN_TRAINING | {
    *("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "hop_skip_jump", *ENSEMBLES)
  }
  for name in ALONE:
    assert made(name, attacks.Linf(0.1)).name == name

  class Mine(attacks.PGD):
    pass

  assert Mine(attacks.Linf(0.1)).name == "pgd"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_each_is_built_or_refused_in_one_line(name, use):
  def build():
    if use == "training":
      return attacks.from_spec(name, attacks.Linf(0.1), steps=6, step_size=0.03)
    return plans.read(name, "linf", [0.1, 0.2], (8, 8, 1), 6, 0.03, restarts=2, classes=10)

  if name in (IN_TRAINING if use == "training" else set(NAMES) - {"n_fgsm"}):
    found = build()
    if name in ("pgd", "apgd"):  # whose budget is that of the flags
      attack = found if use == "training" else found[0].attack
      assert (attack.steps, attack.restarts) == (6, 1 if use == "training" else 2)
      assert name == "apgd" or attack.step_size == 0.03
    return
  with pytest.raises(errors.UserError, match=f"^{name} .*: use (a?pgd|pgd, rs_fgsm)") as caught:
    build()
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("norm, epsilon, other", [("linf", 0.2, 0.05), *slow(("l2", 1.0, 0.3))])
def test_a_radius_given_to_a_run_is_that_of_an_attack_built_with_it(
  rng, name, norm, epsilon, other
):
  if name == "n_fgsm" and norm != "linf":
    return
  images = tf.constant(rng.uniform(size=(3, 5, 5, 1)), tf.float32)
  weights = tf.constant(rng.normal(size=(3, 5, 5, 1)), tf.float32)
  # It is 0 between the two radii, for what looks for a boundary.
  objective = lambda x: total(weights * (x - images)) - 3  # noqa: E731
  wide, narrow = (made(name, attacks.from_norm(norm, radius)) for radius in (epsilon, other))
  expected, info = narrow.run(objective, images, [1, 2])
  run = tf.function(lambda e: wide.run(objective, images, [1, 2], epsilon=e), autograph=False)
  found, told = run(tf.constant(other))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert set(told) == set(info) >= {"objective", "zero_gradients"}
  np.testing.assert_allclose(told["objective"], info["objective"], atol=1e-4)
  reach = 3 * other if name == "n_fgsm" else other
  assert (norms(np.asarray(found) - images, norm) <= reach + 1e-5).all()
  assert (norms(wide(objective, images, [1, 2]) - expected, norm) > 1e-3).any()


@pytest.mark.parametrize(
  "name, given",
  [(name, "steps") for name in ALONE if name != "pgd"]
  + [(name, "step_size") for name in ALONE if name != "pgd"]
  + [(name, "carried") for name in ("apgd", "fab_t", "square")],
)
def test_what_an_attack_does_not_take_is_refused(name, given):
  attack, images = made(name, attacks.Linf(0.1)), tf.fill([1, 4, 4, 1], 0.5)
  with pytest.raises(errors.UserError, match=f"{name} takes no other {given}"):
    attack.run(total, images, [1, 2], **{given: tf.constant(3)})


def trainer(attack, **options):
  keras.utils.set_random_seed(0)
  encoder = networks.GaussianEncoder(networks.convnet((8, 8, 1), width=4, layers=2), 6, loc="dense")
  task = pretexts.SimCLR(projector=8, projection=4)
  return urkle_tf.Trainer(encoder, task, robustness.Urkle(beta=0.1), attack, **options)


@pytest.mark.parametrize("name", ["n_fgsm", *slow(*sorted(IN_TRAINING - {"n_fgsm"}))])
def test_a_training_warms_the_radius_of_any_attack_up(rng, name):
  model = trainer(made(name, attacks.Linf(0.2)), epsilon_warmup=4)
  views = tf.constant(rng.uniform(0.4, 0.6, (4, 2, 8, 8, 1)), tf.float32)
  farthest = 3 if name == "n_fgsm" else 1
  for step, epsilon in ((0, 0.05), (1, 0.1), (9, 0.2)):
    found, _ = model.adversaries(views, None, [1, 2], tf.constant(step))
    moved = np.abs(found - views).max()
    assert 0.7 * farthest * epsilon < moved <= farthest * epsilon + 1e-6


def test_what_no_training_can_use_is_refused_at_the_start(tmp_path):
  for name in set(ALONE) - IN_TRAINING:
    with pytest.raises(errors.UserError, match=f"^{name} .*: use a?pgd"):
      trainer(made(name, attacks.Linf(0.1)))
  for options, words in [
    ({"attack": "square"}, "square makes thousands of forward passes"),
    ({"attack": "apgd", "attack_schedule": "rising"}, "apgd has its own: use --attack=pgd"),
  ]:
    with pytest.raises(errors.UserError, match=words):
      urkle_tf.pretrain(output_dir=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()
  rising = attack_schedules.Rising()
  for name in IN_TRAINING - {"pgd"}:
    with pytest.raises(errors.UserError, match=f"{name} has its own"):
      rising.check(made(name, attacks.Linf(0.1)), None)


@pytest.mark.full
def test_apgd_trains_with_a_warm_up(rng):
  model = trainer(attacks.from_spec("apgd", attacks.Linf(0.1), steps=3), epsilon_warmup=2)
  model.compile("sgd")
  views = tf.constant(rng.uniform(size=(8, 2, 8, 8, 1)), tf.float32)
  data = tf.data.Dataset.from_tensors({"views": views}).repeat(3)
  history = model.fit(data, epochs=3, steps_per_epoch=1, verbose=0).history
  assert history["attack_distance"] == pytest.approx([0.5, 1, 1], abs=0.02)
