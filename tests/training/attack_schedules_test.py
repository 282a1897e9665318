"""Attack steps over a training: how many, what they do, and who decides."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from small_models import RUN, FakeRecorder, rows_of, tiny_trainer

import urkle_tf
from urkle_tf import attacks, distribution, robustness
from urkle_tf.data import sources
from urkle_tf.networks.kl import kl_objective
from urkle_tf.training import attack_schedules, jobs

SMALL = {**RUN, "split": "train[:64]", "epochs": 3, "attack_steps": 3, "log_every": 1}


def test_steps_given_to_a_run_are_those_of_an_attack_built_with_them(rng):
  images = tf.constant(rng.uniform(0.2, 0.8, (4, 3, 3, 1)), tf.float32)
  weights = tf.constant(rng.normal(size=(9, 2)), tf.float32)
  objective = lambda x: tf.reduce_sum(tf.sin(3 * tf.reshape(x, [-1, 9]) @ weights), 1)  # noqa: E731
  built = attacks.PGD(attacks.Linf(0.1), steps=4, step_size=0.03)
  expected, info = built.run(objective, images, [1, 2])
  other = attacks.PGD(attacks.Linf(0.1), steps=2, step_size=0.06)
  run = tf.function(lambda steps: other.run(objective, images, [1, 2], steps=steps))
  found, other = run(tf.constant(4))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(other["objective"], info["objective"], rtol=1e-5)
  one = attacks.PGD(attacks.Linf(0.1), steps=1, step_size=0.12).run(objective, images, [1, 2])
  np.testing.assert_allclose(run(tf.constant(1))[0], one[0], atol=1e-6)


def test_rising_gives_each_number_an_equal_part():
  attack = attacks.PGD(attacks.Linf(0.1), steps=4)
  schedule = attack_schedules.Rising(first=2)
  found = [int(schedule.steps(tf.constant(k / 12, tf.float32), attack)) for k in range(13)]
  assert found == [2] * 4 + [3] * 4 + [4] * 5
  found = [int(attack_schedules.from_spec("rising").steps(k, attack)) for k in (0.0, 0.3, 0.9)]
  assert found == [1, 2, 4]


def test_a_schedule_may_begin_with_all_steps_or_end_with_them():
  attack, scheme = attacks.PGD(attacks.Linf(0.1), steps=4), robustness.Urkle()
  attack_schedules.Rising(first=4).check(attack, scheme)
  attack_schedules.Controlled(most=4, low=1).check(attack, scheme)
  refuses("first=5 is more than the attack's 4 steps", attack_schedules.Rising(5).check, attack, 0)
  refuses("high above it, got 1.3 and 1.3", attack_schedules.Controlled, low=1.3)
  schedule = attack_schedules.from_spec("controlled")
  refuses("an added term that is 0", schedule.check, attack, robustness.AdversarialTraining())
  assert (schedule.every, schedule.most) == (300, 20)
  assert [schedule.held_out(size) for size in (5, 500, 5000)] == [1, 50, 128]


def test_a_training_takes_the_steps_of_its_schedule(rng):
  """What step k of three attacks with is what PGD with k + 1 steps finds."""
  attack = attacks.PGD(attacks.Linf(0.1), steps=3, step_size=0.04)
  trainer = tiny_trainer(attack=attack, schedule=attack_schedules.Rising(first=1), steps=3)
  views = tf.constant(rng.uniform(size=(3, 2, 8, 8, 1)), tf.float32)
  flat = tf.reshape(views, [6, 8, 8, 1])
  objective = kl_objective(trainer.encoder, flat)
  for step in range(3):
    found, info = trainer.adversaries(views, None, [1, 2], tf.constant(step))
    by_hand = attacks.PGD(attacks.Linf(0.1), steps=step + 1, step_size=0.12 / (step + 1))
    expected = by_hand(objective, flat, [1, 2])
    np.testing.assert_allclose(tf.reshape(found, [6, 8, 8, 1]), expected, atol=1e-5)
    assert float(info["steps"]) == step + 1
  data = tf.data.Dataset.from_tensors({"views": views}).repeat(3)
  history = trainer.fit(data, epochs=3, steps_per_epoch=1, verbose=0).history
  assert history["attack_steps"] == [1, 2, 3]


def test_the_controller_adds_and_takes_away():
  attack, schedule = attacks.PGD(attacks.Linf(0.1), steps=4), attack_schedules.Controlled(most=8)
  steps = lambda: int(schedule.steps(None, attack))  # noqa: E731
  assert steps() == 4
  found = []
  for ratio in (1.2, 1.31, 2.0, 3.0, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.31):
    schedule.adjust(ratio, steps())
    found.append(steps())
  assert found == [4, 6, 8, 8, 8, 6, 4, 3, 2, 1, 1, 2]


def test_a_weak_attack_is_found_out_and_strengthened(rng, caplog):
  """The ratio against PGD-20 and the training's attack run by hand."""
  weak = attacks.PGD(attacks.Linf(0.1), steps=1, step_size=1e-4, start=1e-3)
  schedule = attack_schedules.Controlled(every=1)
  trainer, metrics = tiny_trainer(attack=weak, schedule=schedule), FakeRecorder()
  views = rng.uniform(size=(6, 2, 8, 8, 1)).astype(np.float32)
  control = attack_schedules.Control(schedule, {"views": tf.constant(views)}, metrics)
  control.set_model(trainer)
  control.on_epoch_begin(0)
  with caplog.at_level(logging.WARNING):
    control.on_train_batch_end(0)
  flat = tf.reshape(views, [12, 8, 8, 1])
  objective = kl_objective(trainer.encoder, flat)
  seed = urkle_tf.distribution.fold([0, 2], 0)
  strong = attacks.PGD(attacks.Linf(0.1), steps=20)
  found = [np.mean(objective(attack(objective, flat, seed))) for attack in (strong, weak)]
  assert metrics.extra["attack_ratio"] == pytest.approx(found[0] / found[1], rel=1e-2)
  assert metrics.extra["attack_ratio"] > 1.3
  assert int(schedule.steps(None, weak)) == 2
  assert "look better than they are" in caplog.text
  metrics.extra.clear()
  control._measured = lambda steps: np.nan
  trainer.optimizer.iterations.assign(1)
  control.on_train_batch_end(1)
  assert metrics.extra == {}
  assert any(variable is schedule.variables[0] for variable in trainer.variables)  # checkpoints


def test_a_period_ends_within_an_execution_of_several_steps(caplog):
  schedule = attack_schedules.Controlled(every=3)
  trainer = tiny_trainer(attack=attacks.PGD(attacks.Linf(0.1), steps=1), schedule=schedule)
  control = attack_schedules.Control(schedule, None, FakeRecorder())
  control.set_model(trainer)
  measured = []

  def measure(steps):
    measured.append(batch + 5)
    return 1.2

  control._measured = measure
  caplog.set_level(logging.WARNING)
  trainer.optimizer.iterations.assign(4)  # resumed
  control.on_epoch_begin(0)
  for batch in range(1, 13, 2):
    control.on_train_batch_end(batch)
  assert measured == [6, 10, 12, 16]
  assert not caplog.records  # the ratio is between both bounds


def test_the_ratio_is_measured_on_images_that_training_never_sees(tmp_path, monkeypatch):
  """What `Control` gets is the end of the split, and no batch of two epochs holds any of it."""
  given = []

  class Seen(Exception):
    pass

  def control(schedule, batch, metrics, agree):
    given.append(batch)
    return keras.callbacks.Callback()

  def fit(self, data, **options):
    given.append([batch["image"].numpy() for batch in data.take(8)])
    raise Seen

  monkeypatch.setattr(attack_schedules, "Control", control)
  monkeypatch.setattr(urkle_tf.Trainer, "fit", fit)
  settings = {**SMALL, "batch_size": 14, "augment": "none"}
  settings["attack_schedule"] = "controlled(every=2, images=5)"
  with pytest.raises(Seen):
    urkle_tf.pretrain(output_dir=str(tmp_path), **settings)
  held, trained = given
  images = sources.load("digits", "train[:64]").images.astype(np.float32) / 255
  rows = lambda batch: {image.tobytes() for image in np.asarray(batch, np.float32)}  # noqa: E731
  assert len(held["image"]) == 5
  assert rows(held["image"]) == rows(images[59:])
  np.testing.assert_allclose(held["views"], np.stack([held["image"]] * 2, 1), atol=1e-6)
  seen = set().union(*map(rows, trained))
  assert len(seen) > 56  # in two epochs of 4 steps, each without 3 others
  assert not seen & rows(held["image"])


def test_what_looks_at_an_encoder_stays_in_the_ball():
  with jobs.prepared({**SMALL, "attack": "n_fgsm"}) as job:
    assert type(job.learner.attack) is attacks.NFGSM
    assert (type(job.attack), type(job.attack.threat)) == (attacks.PGD, attacks.Linf)
    assert job.attack.steps == SMALL["attack_steps"]


@pytest.mark.full
def test_the_controller_works_on_two_replicas(mirrored, tmp_path, monkeypatch):
  monkeypatch.setattr(distribution, "strategy", lambda name: mirrored)
  schedule = {"attack_schedule": "controlled(every=1, images=8)", "log_every": 1}
  urkle_tf.pretrain(str(tmp_path), **{**RUN, **schedule})
  for row in rows_of(tmp_path):
    assert row["attack_steps"] >= 1
    assert row["attack_ratio"] > 0
