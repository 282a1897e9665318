"""What TensorBoard is given by a small run: embeddings before and after an attack."""

import numpy as np
import pytest
from PIL import Image
from small_models import RUN

from urkle_tf import export
from urkle_tf.data import sources
from urkle_tf.training import pretraining


@pytest.mark.full
def test_the_projector_shows_images_before_and_after_the_attack(tmp_path):
  folder, options = tmp_path / "run", {**RUN, "split": "train[:128]", "batch_size": 64}
  pretraining.pretrain(folder, robustness="urkle(beta=0.1)", **options)
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
