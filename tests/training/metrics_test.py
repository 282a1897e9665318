"""Rows of metrics and checkpoints."""

import types

import keras
import pytest
import tensorflow as tf
from small_models import board_of, rows_of

from urkle_tf import distribution
from urkle_tf.training import means, metrics, recorder, runs


class _Model:
  """As much of a trainer as `Metrics` looks at."""

  def __init__(self):
    steps = keras.Variable(0, dtype="int64")
    self.optimizer = type("Optimizer", (), {"iterations": steps, "learning_rate": 0.5})()
    self.means, self.skips = means.Means(["loss"]), distribution.state([0.0, 0.0, 0.0, -1.0])
    self.metrics_variables = self.means.variables

  def reset_metrics(self):
    self.means.reset_state()


def _metrics(folder, steps=10, steps_per_epoch=5, alarms=None, **options):
  """(`Metrics`, its `Recorder`, the steps whose checkpoints it saves)."""
  course = recorder.Course(steps, steps_per_epoch, batch_size=4)
  record = recorder.Recorder(runs.Run(folder, {}, None), course, alarms=alarms)
  saved, options = [], {"log_every": 2, "checkpoint_every": 3, **options}
  found = metrics.Metrics(record, types.SimpleNamespace(save=saved.append), **options)
  found.set_model(_Model())
  return found, record, saved


def _train(callback, losses, epoch=5, at_once=1):
  """Calls the callback as `fit` does, with a loss a step."""
  callback.on_train_begin()
  for step, loss in enumerate(losses):
    number = step % epoch
    if number == 0:
      callback.on_epoch_begin(step // epoch)
    callback.model.means.update_state({"loss": float(loss)})
    callback.model.optimizer.iterations.assign(step + 1)
    if (number + 1) % at_once == 0:
      callback.on_train_batch_end(number)
    if number == epoch - 1:
      callback.on_epoch_end(step // epoch)


def test_several_steps_at_once_are_counted(tmp_path):
  options = {"steps": 12, "steps_per_epoch": 6, "log_every": 3, "checkpoint_every": 5}
  callback, record, saved = _metrics(tmp_path, **options)
  _train(callback, range(1, 13), epoch=6, at_once=2)
  # Due after steps 3, 5, 9 and 10: after the execution that took them.
  assert [row["step"] for row in record.rows] == [4, 6, 10, 12]
  assert [row["loss"] for row in record.rows] == [2.5, 5.5, 8.5, 11.5]
  assert saved == [6, 10, 12]


def test_the_first_step_is_shown_without_a_pace_that_is_not_known(tmp_path, capsys):
  _, record, _ = _metrics(tmp_path, steps=1, steps_per_epoch=1)
  record.tick(4)  # its time includes the compilation
  record.show(1, 1.0, 2.5)
  shown = capsys.readouterr().err
  assert shown == "epoch 1/1 [####################] step 1/1  loss 2.5000\n"


def test_rows_are_means_since_the_last_row(tmp_path):
  callback, _, saved = _metrics(tmp_path)
  _train(callback, range(1, 11))
  rows = rows_of(tmp_path)
  assert [row["step"] for row in rows] == [2, 3, 4, 5, 6, 8, 9, 10]
  assert [row["loss"] for row in rows] == [1.5, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0, 10.0]
  assert [row["epoch"] for row in rows] == [0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 1.8, 2.0]
  assert saved == [3, 6, 9, 10]
  assert rows[0]["images_per_second"] > 0
  assert rows[-1]["seconds"] >= rows[0]["seconds"]


def test_the_clock_stands_still_while_paused(tmp_path, monkeypatch):
  clock = types.SimpleNamespace(seconds=0.0)
  monkeypatch.setattr(recorder, "time", types.SimpleNamespace(perf_counter=lambda: clock.seconds))
  callback, record, _ = _metrics(tmp_path, log_every=4, checkpoint_every=100)
  callback.on_train_begin()
  callback.on_epoch_begin(0)
  for step in range(4):
    callback.model.means.update_state({"loss": 0.0})
    clock.seconds += 0.25
    if step == 2:
      with record.paused():
        clock.seconds += 0.5
    callback.on_train_batch_end(step)
  assert record.rows[-1]["seconds"] == 0.75  # the first step starts the clock


def test_rows_of_skipped_steps_alone_say_so(tmp_path):
  callback, _, saved = _metrics(tmp_path, max_bad_steps=3)
  skips = tf.keras.Variable([0.0, 0.0, 0.0, -1.0])
  callback.model.skips = skips
  callback.on_train_begin()
  callback.on_epoch_begin(0)
  for step in range(1, 5):
    if step in (1, 2):
      callback.model.means.update_state({"loss": 1.0})
    else:
      skips.assign([step - 2, step - 2, step - 2, step - 1])
    callback.on_train_batch_end(step - 1)
  rows = rows_of(tmp_path)
  found = [(row["step"], row["loss"], row["skipped_steps"]) for row in rows]
  assert found == [(2, 1.0, 0), (3, None, 1), (4, None, 2)]
  skips.assign([3, 3, 3, 4])
  with pytest.raises(metrics.NotFinite, match=r"steps 3 to 5 .*--learning_rate") as error:
    callback.on_epoch_end(0)
  assert (error.value.first, error.value.last) == (2, 4)
  assert saved == [3]


class _Said:
  """Alarms of which each row says something that holds."""

  standing = ()

  def look(self, row):
    self.standing = [f"loss {row['loss']}"] if row["loss"] else []
    return self.standing


def test_alarms_are_logged_and_the_first_screen_says_whether_one_holds(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(recorder.logging, "warning", lambda text, *values: said.append(text % values))
  callback, _, _ = _metrics(tmp_path, log_every=1, alarms=_Said())
  _train(callback, [0.0, 2.0, 2.0, 0.0])
  shown = board_of(tmp_path)
  assert shown["1_health/0_warnings"] == [0, 1, 1, 0]
  assert said == ["step 2: loss 2.0", "step 3: loss 2.0"]
  healthy = b"Healthy: no warning holds."
  assert shown["1_health/verdict"] == [healthy, b"- loss 2.0", healthy]
