"""What a run shows: rows, the pictures, the online probe."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from urkle_tf.training import means, monitoring, runs


def test_sheet_lays_out_and_magnifies():
  ones, zeros = np.ones((2, 8, 8, 1), "float32"), np.zeros((2, 8, 8, 1), "float32")
  picture = monitoring.sheet([zeros, ones, zeros])[0, ..., 0]
  assert picture.shape == (2 * 68, 3 * 68)
  assert not picture[:64, :64].any()
  assert picture[:64, 68:132].all()
  assert picture[64:68].all()
  assert picture[:, 64:68].all()


class _Model:
  """As much of a trainer as the callbacks look at."""

  def __init__(self, loc=None):
    steps = keras.Variable(0, dtype="int64")
    self.optimizer = type("Optimizer", (), {"iterations": steps, "learning_rate": 0.5})()
    self.means = means.Means(["loss"])
    self.metrics_variables = self.means.variables
    self.within = False

    def network(images, training):
      assert self.within  # the encoder that would be exported, not the one in training
      return {"loc": loc(images)}

    self.encoder = type("Encoder", (), {"network": staticmethod(network)})()

  @contextlib.contextmanager
  def averaged(self):
    self.within = True
    yield
    self.within = False

  def reset_metrics(self):
    self.means.reset_state()


class _Checkpoints:
  def __init__(self):
    self.saved = []

  def save(self, step):
    self.saved.append(step)


def _metrics(tmp_path, **options):
  saved = _Checkpoints()
  settings = {
    "steps": 10,
    "steps_per_epoch": 5,
    "batch_size": 4,
    "log_every": 2,
    "checkpoint_every": 3,
  }
  writer = tf.summary.create_file_writer(str(tmp_path / "tensorboard"))
  metrics = monitoring.Metrics(runs.Run(tmp_path, {}, None), writer, saved, **settings | options)
  metrics.set_model(_Model())
  return metrics, saved


def _train(metrics, losses, epoch=5, at_once=1):
  """Calls the callback as `fit` does, with a loss a step."""
  metrics.on_train_begin()
  for step, loss in enumerate(losses):
    number = step % epoch
    if number == 0:
      metrics.on_epoch_begin(step // epoch)
    metrics.model.means.update_state({"loss": float(loss)})
    metrics.model.optimizer.iterations.assign(step + 1)
    if (number + 1) % at_once == 0:
      metrics.on_train_batch_end(number)
    if number == epoch - 1:
      metrics.on_epoch_end(step // epoch)


def test_several_steps_at_once_are_counted(tmp_path):
  metrics, saved = _metrics(tmp_path, steps=12, steps_per_epoch=6, log_every=3, checkpoint_every=5)
  _train(metrics, range(1, 13), epoch=6, at_once=2)
  # Due after steps 3, 5, 9 and 10: after the execution that took them.
  assert [row["step"] for row in metrics.rows] == [4, 6, 10, 12]
  assert [row["loss"] for row in metrics.rows] == [2.5, 5.5, 8.5, 11.5]
  assert saved.saved == [6, 10, 12]


def test_rows_are_means_since_the_last_row(tmp_path):
  metrics, saved = _metrics(tmp_path)
  _train(metrics, range(1, 11))
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [2, 3, 4, 5, 6, 8, 9, 10]
  assert [row["loss"] for row in rows] == [1.5, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0, 10.0]
  assert [row["epoch"] for row in rows] == [0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 1.8, 2.0]
  assert saved.saved == [3, 6, 9, 10]
  assert rows[0]["images_per_second"] > 0
  assert rows[-1]["seconds"] >= rows[0]["seconds"]


def test_the_clock_stands_still_while_paused(tmp_path):
  import time

  metrics, _ = _metrics(tmp_path, log_every=4, checkpoint_every=100)
  metrics.on_train_begin()
  metrics.on_epoch_begin(0)
  for step in range(4):
    metrics.model.means.update_state({"loss": 0.0})
    if step == 2:
      with metrics.paused():
        time.sleep(0.5)
    metrics.on_train_batch_end(step)
  assert metrics.rows[-1]["seconds"] < 0.4


def test_rows_of_skipped_steps_alone_say_so(tmp_path):
  metrics, saved = _metrics(tmp_path, max_bad_steps=3)
  skips = tf.keras.Variable([0.0, 0.0, 0.0, -1.0])
  metrics.model.skips = skips
  metrics.on_train_begin()
  metrics.on_epoch_begin(0)
  for step in range(1, 5):
    if step in (1, 2):
      metrics.model.means.update_state({"loss": 1.0})
    else:
      skips.assign([step - 2, step - 2, step - 2, step - 1])
    metrics.on_train_batch_end(step - 1)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"], row["skipped_steps"]) for row in rows] == [
    (2, 1.0, 0),
    (3, None, 1),
    (4, None, 2),
  ]
  skips.assign([3, 3, 3, 4])
  with pytest.raises(monitoring.NotFinite, match=r"steps 3 to 5 .*--learning_rate") as error:
    metrics.on_epoch_end(0)
  assert (error.value.first, error.value.last) == (2, 4)
  assert saved.saved == [3]


class _Said:
  """Alarms of which each row says something."""

  def look(self, row):
    return [f"loss {row['loss']}"]


def test_alarms_are_told_with_the_step(tmp_path, monkeypatch):
  told = []
  monkeypatch.setattr(
    monitoring.logging, "warning", lambda text, *values: told.append(text % values)
  )
  metrics, _ = _metrics(tmp_path, alarms=_Said())
  _train(metrics, [2.0, 2.0])
  assert told == ["step 2: loss 2.0"]


def test_the_probe_votes_among_neighbours(tmp_path, rng):
  labels = rng.integers(0, 4, 400)
  images = np.eye(4, dtype="float32")[labels][:, :, None, None] + 0.01 * rng.random((400, 4, 1, 1))
  metrics, _ = _metrics(tmp_path)
  for wrong, accuracy in ((0, 1.0), (200, 0.0)):
    known = labels.copy()
    known[:wrong] = (known[:wrong] + 1) % 4  # the half that votes
    probe = monitoring.NearestNeighbours(images.astype("float32"), known, metrics)
    probe.set_model(_Model(lambda x: tf.reshape(x, [len(x), -1])))
    probe.on_epoch_end(0)
    assert metrics.extra.pop("knn_accuracy") == accuracy


def test_the_probe_attacks_what_it_classifies(tmp_path, rng, monkeypatch):
  labels = rng.integers(0, 4, 800)
  images = np.eye(4, dtype="float32")[labels][:, :, None, None] + 0.01 * rng.random((800, 4, 1, 1))
  monkeypatch.setattr(monitoring, "kl_objective", lambda encoder, clean: clean)
  seen = []

  def attack(objective, clean, seed):
    del seed
    assert objective is clean
    seen.append(clean.shape[0])
    return tf.concat([tf.roll(clean[:64], 1, 1), clean[64:]], 0)  # 64 now look like another class

  metrics, _ = _metrics(tmp_path)
  probe = monitoring.NearestNeighbours(images.astype("float32"), labels, metrics, attack=attack)
  model = _Model(lambda x: tf.reshape(x, [len(x), -1]))
  model.seed = 0
  probe.set_model(model)
  probe.on_epoch_end(0)
  assert metrics.extra == {"knn_accuracy": 1.0, "knn_robust_accuracy": 0.75}
  assert seen == [256]
