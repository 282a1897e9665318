"""What TensorBoard is given by a small run: embeddings before and after an attack."""

import numpy as np
import pytest
from PIL import Image
from small_models import RUN, array_source, tiny_encoder

from urkle_tf import attacks, export
from urkle_tf.data import sources
from urkle_tf.training import board, pretraining


@pytest.mark.full
def test_the_projector_shows_images_before_and_after_the_attack(tmp_path):
  folder, options = tmp_path / "run", {**RUN, "split": "train[:128]", "batch_size": 64}
  pretraining.pretrain(folder, robustness="urkle(beta=0.1)", **options)
  shown = folder / "tensorboard"
  vectors = np.loadtxt(shown / "vectors.tsv")
  head, *lines = (shown / "metadata.tsv").read_text().splitlines()
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
  sprite = np.asarray(Image.open(shown / "sprite.png"))
  assert sprite.shape[0] == sprite.shape[1]
  side = sprite.shape[0] // 16
  first, attacked = sprite[:side, :side], sprite[8 * side : 9 * side, :side]  # 16 a row
  change = np.abs(first.astype(int) - attacked.astype(int))
  assert 0 < change.max() <= round(0.1 * 255) + 1


def test_an_image_without_a_label_has_none_in_the_projector(tmp_path):
  """As the unlabelled split of STL-10: TFDS labels it -1, which was taken for the last class."""
  encoder, attack = tiny_encoder(), attacks.PGD(attacks.Linf(0.1), steps=1)
  source = array_source(np.zeros((3, *encoder.image_shape), np.uint8), [1, -1, 0])
  board.embeddings(encoder, attack, source, tmp_path)
  head, *lines = (tmp_path / "metadata.tsv").read_text().splitlines()
  assert head.split("\t")[0] == "label"
  names = source.class_names
  assert [line.split("\t")[0] for line in lines] == 2 * [names[1], "", names[0]]
