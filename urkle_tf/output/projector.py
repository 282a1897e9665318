"""Files for TensorBoard's Projector: vectors, their metadata, and thumbnails."""

import json
import math

import numpy as np
import tensorflow as tf

from urkle_tf.output import figures, files

_SIDE = 2048  # pixels of the sprite: the browser holds it as one texture
_LARGEST = 64  # pixels of a thumbnail


def thumbnails(images, count):
  """Images reduced so that a sprite holds `count` of them.

  Args:
    images: float32 [n, h, w, c] in [0, 1].
    count: how many the sprite will hold.

  Returns:
    uint8 [n, h', w', c]: enlarged by a whole factor, or shrunk; the aspect ratio is kept.
  """
  height, width = images.shape[1:3]
  edge = max(min(_LARGEST, _SIDE // math.ceil(math.sqrt(count))), 1)
  longest = max(height, width)
  if longest <= edge:
    times = edge // longest
    small = tf.repeat(tf.repeat(images, times, 1), times, 2)
  else:
    size = [max(round(side * edge / longest), 1) for side in (height, width)]
    small = tf.image.resize(images, size, "area")
  return tf.cast(tf.round(255 * tf.clip_by_value(small, 0, 1)), tf.uint8).numpy()


def sprite(pictures):
  """Pictures in a square grid, row by row, as the Projector reads them.

  Args:
    pictures: uint8 [n, h, w, c].

  Returns:
    uint8 [s * h, s * w, c] with s the root of n, rounded up; empty places are black.
  """
  count, height, width, channels = pictures.shape
  side = math.ceil(math.sqrt(count))
  grid = np.zeros((side * side, height, width, channels), np.uint8)
  grid[:count] = pictures
  grid = grid.reshape(side, side, height, width, channels).transpose(0, 2, 1, 3, 4)
  return grid.reshape(side * height, side * width, channels)


def named(labels, names):
  """The names of labels: "" for -1, which is TFDS's for no label; the labels without `names`."""
  if names is None:
    return list(labels)
  return ["" if label < 0 else names[label] for label in labels]


def write(folder, vectors, columns, pictures=None, name="embedding"):
  """Writes vectors.tsv, metadata.tsv, sprite.png and projector_config.pbtxt.

  `tensorboard --logdir=FOLDER` shows them in its Projector.

  Args:
    folder: a `pathlib.Path`.
    vectors: float [n, d].
    columns: {name: n values}, the metadata of each vector, as text.
    pictures: uint8 [n, h, w, 1 or 3], from `thumbnails`; None for none.
    name: the name of the vectors.
  """
  files.write(
    folder / "vectors.tsv", lambda file: np.savetxt(file, vectors, fmt="%.6g", delimiter="\t")
  )
  lines = ["\t".join(map(_plain, values)) for values in zip(*columns.values(), strict=True)]
  if len(columns) > 1:  # the Projector expects no header over a single column
    lines.insert(0, "\t".join(columns))
  files.write(folder / "metadata.tsv", "\n".join(lines) + "\n")
  shown = ""
  if pictures is not None:
    figures.save(sprite(pictures), folder / "sprite.png")
    height, width = pictures.shape[1:3]
    shown = f"""
  sprite {{
    image_path: "sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}"""
  config = f"""embeddings {{
  tensor_name: {json.dumps(name)}
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"{shown}
}}
"""
  files.write(folder / "projector_config.pbtxt", config)


def _plain(value):
  """A value as text within a cell."""
  return " ".join(str(value).split())
