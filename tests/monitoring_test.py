"""What a run shows: rows, the pictures, the online probe."""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf

from urkle_tf import errors, monitoring, runs


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
    self.optimizer = type("Optimizer", (), {"iterations": 0, "learning_rate": 0.5})()
    self.loss = tf.keras.metrics.Mean(name="loss")
    self.metrics = [self.loss]
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
    self.loss.reset_state()


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


def test_rows_are_means_since_the_last_row(tmp_path):
  metrics, saved = _metrics(tmp_path)
  for step in range(1, 11):
    metrics.model.optimizer.iterations = step
    metrics.model.loss.update_state(float(step))
    metrics.on_train_batch_end(step)
    if step % 5 == 0:
      metrics.on_epoch_end(step)
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
  for step in range(1, 5):
    metrics.model.optimizer.iterations = step
    metrics.model.loss.update_state(0.0)
    if step == 3:
      with metrics.paused():
        time.sleep(0.5)
    metrics.on_train_batch_end(step)
  assert metrics.rows[-1]["seconds"] < 0.4


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
  metrics, _ = _metrics(tmp_path)
  metrics.model.optimizer.iterations = 2
  metrics.model.loss.update_state(float("nan"))
  with pytest.raises(errors.UserError, match=r"loss is nan at step 2.*learning_rate"):
    metrics.on_train_batch_end(2)


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
