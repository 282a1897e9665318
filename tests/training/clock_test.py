"""Trainings by the clock: what follows it, when they end, what a kill costs them."""

import math
import shutil
import signal
import sys

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import slow
from small_models import noise_views, rows_of, tiny_trainer

import urkle_tf
from urkle_tf import attacks, robustness
from urkle_tf.training import attack_schedules, checkpoints, jobs, optimizers, recorder
from urkle_tf.training.progress import Progress

SMALL = {"encoder": "convnet(width=4, layers=2)", "latent_dim": 8, "strategy": "one"}
SMALL |= {"split": "train[:64]", "batch_size": 16, "attack_steps": 3, "epsilon": 0.1}
SMALL |= {"learning_rate": 0.05, "log_every": 1, "checkpoint_every": 5}


def _pretrain(folder, **options):
  return urkle_tf.pretrain(output_dir=str(folder), **{**SMALL, **options})


def _column(folder, name):
  return [row[name] for row in rows_of(folder)]


def _trainer(attack=None, **options):
  return tiny_trainer(robustness.Urkle(beta=1.0), attack, by_clock=True, **options)


def _cosine(share, warmup, highest):
  if share < warmup:
    return highest * share / warmup
  return highest * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup))) / 2


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_reads_the_clock_alone(warmup):
  clock = keras.Variable(0.0)
  by_clock = optimizers.build("sgd", 0.4, None, warmup, clock=clock)
  by_steps = optimizers.build("sgd", 0.4, 400, round(400 * warmup))
  for step in (0, 30, 99, 100, 101, 250, 399, 400):
    by_clock.iterations.assign(7 * step % 11)
    by_steps.iterations.assign(step)
    clock.assign(step / 400)
    expected = pytest.approx(_cosine(step / 400, warmup, 0.4), abs=1e-7)
    assert [float(one.learning_rate) for one in (by_clock, by_steps)] == [expected] * 2


def test_shares_of_a_training_by_hand():
  by_steps, by_clock = Progress(10, False), Progress(None, True)
  assert [float(by_steps(step)) for step in (0, 5, 12)] == [0, 0.5, 1]
  assert [float(by_steps.risen(step, 4)) for step in (0, 3, 9)] == [0.25, 1, 1]
  assert [float(by_steps.risen(0, 0)), float(Progress(None, False)(7))] == [1, 0]
  by_clock.clock.assign(0.25)
  assert float(by_clock(3)) == 0.25
  assert [float(by_clock.risen(3, share)) for share in (0.5, 0.1, 0)] == [0.5, 1, 1]


@pytest.mark.parametrize("threat", [attacks.Linf(0.1), *slow(attacks.L2(0.5), attacks.L1(2.0))])
def test_epsilon_rises_from_zero_by_the_clock(threat):
  trainer = _trainer(attacks.PGD(threat, steps=8), epsilon_warmup=0.5)
  views = next(iter(noise_views(steps=1)))["views"]
  for share, risen in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (0.9, 1.0)):
    trainer.clock.assign(share)
    found, info = trainer.adversaries(views, None, [0, 0], 123)
    lengths = threat.distance(*(tf.reshape(x, [-1, 8, 8, 1]) for x in (found, views)))
    np.testing.assert_allclose(np.max(lengths), risen * threat.epsilon, rtol=1e-3, atol=1e-6)
    assert np.isfinite(info["objective"]).all()


@pytest.mark.full
def test_the_added_terms_rise_by_the_clock_on_one_replica_and_on_two(mirrored):
  weights = []
  for scope in (tf.distribute.get_strategy(), mirrored):
    with scope.scope():
      trainer = _trainer(beta_warmup=0.5)
      trainer.compile(optimizers.build("sgd", 0.1, None, 0.5, clock=trainer.clock))
    for share, risen in ((0.125, 0.25), (0.75, 1.0)):
      trainer.clock.assign(share)
      row = {name: v[0] for name, v in trainer.fit(noise_views(steps=1), verbose=0).history.items()}
      assert row["loss"] == pytest.approx(row["nt_xent"] + risen * row["kl"], rel=1e-4)
      assert row["kl"] > 1e-3
    weights.append([v.numpy() for v in trainer.encoder.variables])
  same(*weights, atol=2e-5)


def test_rising_attacks_follow_the_clock():
  trainer = _trainer(schedule=attack_schedules.Rising(first=1))
  for share, steps in ((0.0, 1), (0.49, 1), (0.5, 2), (1.0, 2)):
    trainer.clock.assign(share)
    assert int(trainer.schedule.steps(trainer.progress(99), trainer.attack)) == steps
  assert trainer.progress(99) == 1.0


@pytest.fixture
def one_second(monkeypatch):
  """Each execution takes one second, compilation included."""
  monkeypatch.setattr(recorder.Recorder, "tick", lambda self, images: self.count(images, 1.0))


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs", "one_second")
def test_steps_of_equal_length_are_those_of_a_training_by_steps(tmp_path):
  moving = "byol(momentum=0.5, rising=true, projector=8, projection=4, predictor=8)"
  options = {"attack_schedule": "rising(first=1)", "pretext": moving}
  _pretrain(tmp_path / "steps", epochs=3, warmup_epochs=0.75, **options)
  _pretrain(tmp_path / "clock", minutes=12 / 60, warmup_minutes=3 / 60, **options)
  for name in ("step", "attack_steps", "epoch", "seconds"):
    assert _column(tmp_path / "clock", name) == _column(tmp_path / "steps", name)
  for name in ("learning_rate", "loss", "gradient_norm"):
    ones, others = (_column(tmp_path / run, name) for run in ("clock", "steps"))
    np.testing.assert_allclose(ones, others, rtol=1e-4, atol=1e-8)
  rates = [_cosine(k / 12, 0.25, 0.05) for k in range(1, 13)]  # that the next step takes
  np.testing.assert_allclose(_column(tmp_path / "clock", "learning_rate"), rates, atol=1e-8)


@pytest.mark.usefixtures("plain_runs", "one_second")
def test_it_ends_within_an_epoch_and_an_execution(tmp_path):
  """Of two steps a second, 4 an epoch: after 4.5 seconds, in the fifth."""
  options = {"minutes": 4.5 / 60, "steps_per_execution": 2, "probe_split": "train[100:140]"}
  result = _pretrain(tmp_path, **options)
  assert _column(tmp_path, "step") == [2, 4, 6, 8, 10]
  assert _column(tmp_path, "seconds") == [1, 2, 3, 4, 5]
  expected = [*(_cosine(k / 4.5, 0, 0.05) for k in range(1, 5)), 0.0]
  np.testing.assert_allclose(_column(tmp_path, "learning_rate"), expected, atol=1e-8)
  assert "knn_accuracy" in result  # of the end, though no epoch ends there
  assert max(file.name for file in (tmp_path / "checkpoints").iterdir()) == "step_000000010.npz"
  before = rows_of(tmp_path)
  shutil.rmtree(tmp_path / "encoder")  # as if killed while it was exported
  again = _pretrain(tmp_path, **options)
  assert rows_of(tmp_path) == before
  assert again == result


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs", "one_second")
def test_a_signal_loses_no_time(tmp_path, signalled):
  """Not even that since the last row, which only the checkpoint's clock holds."""
  options = {"minutes": 10 / 60, "log_every": 4}
  assert signalled(lambda: _pretrain(tmp_path, **options), at=6).step % 4
  _pretrain(tmp_path, **options)
  rows = rows_of(tmp_path)
  assert [row["seconds"] for row in rows] == pytest.approx([row["step"] for row in rows], abs=2e-3)
  assert rows[-1]["step"] == 10


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_work_that_a_kill_loses_does_not_count(tmp_path):
  """Real time, a real SIGKILL: the rest is trained, and ends on time."""
  run, limit = tmp_path / "run", 6.0
  options = {**SMALL, "minutes": limit / 60, "log_every": 1, "checkpoint_every": 7}
  flags = [f"--{name}={value}" for name, value in options.items()]
  command = [sys.executable, "-m", "urkle_tf.train", f"--output_dir={run}", *flags]
  process = commands.start(command, tmp_path / "log")

  def lost():
    """How many rows there are beyond the newest checkpoint."""
    files = list(run.glob("checkpoints/step_*.npz"))
    lines = (run / "metrics.jsonl").read_text().count("\n") if files else 0
    return lines - max((int(file.stem[5:]) for file in files), default=0)

  commands.wait(lambda: lost() >= 3, process, tmp_path / "log")
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  before = rows_of(run)
  kept = max(int(file.stem[5:]) for file in (run / "checkpoints").glob("step_*.npz"))
  assert before[-1]["step"] > kept
  assert before[-1]["seconds"] < limit
  flagfile = (run / "flags.cfg").read_text().splitlines()
  assert f"--minutes={limit / 60!r}" in flagfile
  assert not any(line.startswith("--epochs") for line in flagfile)

  urkle_tf.pretrain(output_dir=str(run), **options)
  rows = rows_of(run)
  assert _column(run, "step") == list(range(1, len(rows) + 1))
  assert rows[:kept] == before[:kept]
  # The first step of a process compiles, and is not counted: the clock is that of the checkpoint.
  assert rows[kept]["seconds"] == pytest.approx(before[kept - 1]["seconds"], abs=2e-3)
  assert rows[kept]["seconds"] < before[kept]["seconds"]
  assert rows[-2]["seconds"] < limit <= rows[-1]["seconds"]  # within one execution
  assert rows[-2]["learning_rate"] > rows[-1]["learning_rate"] == 0.0
  assert (run / "encoder").exists()


@pytest.mark.full
def test_checkpoints_of_trainings_by_steps_hold_no_clock():
  states = []
  for options in ({"epochs": 1}, {"minutes": 1.0}):
    with jobs.prepared({**SMALL, "output_dir": None, **options}) as job:
      states.append(sorted(name[6:] for name in checkpoints.names(job.state)))
      if job.learner.clock is not None:
        assert sum(variable is job.learner.clock for variable in job.state) == 1
  assert sorted([*states[0], "scalar"]) == states[1]
