"""What TensorBoard is given by a small run: health first, settings, embeddings before and after."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_models import RUN
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.training import pretraining


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run, and its event files as they are read."""
  folder = tmp_path_factory.mktemp("board") / "run"
  pretraining.pretrain(
    folder,
    robustness="urkle(beta=0.1)",
    **{**RUN, "split": "train[:128]", "batch_size": 64},
  )
  events = event_accumulator.EventAccumulator(
    str(folder / "tensorboard"), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  return folder, events


def test_the_first_group_tells_whether_the_run_is_healthy(run):
  _, events = run
  scalars = [
    tag
    for tag in events.Tags()["tensors"]
    if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
  ]
  first = sorted(scalars)[0].split("/")[0]
  assert {tag for tag in scalars if tag.startswith(f"{first}/")} == {
    f"1_health/{name}"
    for name in ("0_warnings", "loss", "kl", "attack_objective", "effective_rank", "sigma_mean")
  }
  for name, group in (("loss", "loss"), ("sigma_mean", "sigma")):
    again = [tf.make_ndarray(e.tensor_proto) for e in events.Tensors(f"{group}/{name}")]
    shown = [tf.make_ndarray(e.tensor_proto) for e in events.Tensors(f"1_health/{name}")]
    assert shown == again
    assert len(shown) == 2


def test_flags_are_told_as_text(run):
  folder, events = run
  (event,) = events.Tensors("flags")
  (text,) = tf.make_ndarray(event.tensor_proto).ravel()
  lines = text.decode().splitlines()
  assert "    --robustness=urkle(beta=0.1)" in lines
  assert "    --epochs=2" in lines
  assert str(folder) not in text.decode()


def test_runs_can_be_compared_by_their_settings(run):
  _, events = run
  content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
  started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
  assert started.hparams["robustness"].string_value == "urkle(beta=0.1)"
  assert started.hparams["epsilon"].number_value == 0.1
  content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
  experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
  assert "1_health/loss" in {metric.name.tag for metric in experiment.metric_infos}


def test_the_projector_shows_images_before_and_after_the_attack(run):
  folder, _ = run
  board = folder / "tensorboard"
  vectors = np.loadtxt(board / "vectors.tsv")
  head, *lines = (board / "metadata.tsv").read_text().splitlines()
  rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
  assert len(rows) == len(vectors) == 256
  assert [row["state"] for row in rows] == 128 * ["clean"] + 128 * ["attacked"]
  assert [int(row["image"]) for row in rows] == 2 * list(range(128))
  source = sources.load("digits", "train", examples=128)
  assert [row["label"] for row in rows[:128]] == [str(label) for label in source.labels]
  encoder = export.load_encoder(folder / "encoder")
  clean = encoder(source.images.astype(np.float32) / 255).loc
  np.testing.assert_allclose(vectors[:128], clean, atol=2e-5)
  moved = np.linalg.norm(vectors[128:] - vectors[:128], axis=1)
  assert moved.min() > 0.01
  sprite = np.asarray(Image.open(board / "sprite.png"))
  assert sprite.shape[0] == sprite.shape[1]
  side = sprite.shape[0] // 16
  first, attacked = sprite[:side, :side], sprite[8 * side : 9 * side, :side]  # 16 a row
  change = np.abs(first.astype(int) - attacked.astype(int))
  assert 0 < change.max() <= round(0.1 * 255) + 1
