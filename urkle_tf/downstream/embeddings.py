"""`represent`: embeds images, for arrays and the Projector; the function behind `embed`."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import compatibility, pipeline, sources
from urkle_tf.networks.saved import embedders
from urkle_tf.output import files, progress, projector
from urkle_tf.settings import Represent, arguments, data_of
from urkle_tf.training import runs


@arguments(Represent)
def represent(given):
  """Embeds images, and writes the embeddings and files for TensorBoard's Projector.

  Returns:
    The content of embeddings.npz, NumPy arrays in the order of the split: "loc", float32 [n, d];
    "scale", of the same shape, for an encoder of this package; "labels" [n] and "class_names", if
    the data has them; "names", paths within the folder, if images are files.  The same folder gets
    vectors.tsv (loc), metadata.tsv, sprite.png and projector_config.pbtxt.

  Raises:
    UserError: for settings, data or folders that are wrong.

  ```python
  found = urkle_tf.represent("runs/digits/encoder", dataset="digits", examples=8)
  embeddings, labels = found["loc"], found["labels"]  # float32 [8, d_z] and int [8]
  ```
  """
  if not given.encoder:
    raise errors.UserError("give --encoder=FOLDER, the folder of an encoder")
  errors.at_least(1, None, batch_size=given.batch_size)
  errors.at_least(0, None, projector_examples=given.projector_examples)
  embed, size_for = _read(given.encoder)
  source = sources.load(**data_of(given))
  compatibility.check_images(size_for(source.image_shape), source, "the encoder")
  with runs.opened(given.output_dir, dataclasses.asdict(given)) as run:
    shown = min(given.projector_examples, source.size) if run else 0
    found, pictures = _embed(embed, source, given.batch_size, shown)
    if run:
      if shown:
        vectors = found["loc"][:shown]
        projector.write(run.path, vectors, _columns(found, shown), pictures, "loc")
      files.write(run.path / "embeddings.npz", lambda file: np.savez(file, **found))
  return found


def _read(path):
  """(images -> {"loc"} or {"loc", "scale"}, image size of the data -> that of the encoder)."""
  model = embedders.read(path)
  if model.format == embedders.OWN:
    return lambda images: model.network(images, training=False), model.size_for
  embed = embedders.rows(model)
  return lambda images: {"loc": embed(images)}, model.size_for


def _embed(embed, source, batch_size, shown):
  """The result of `represent`, and thumbnails of the first `shown` images (None for 0)."""
  signature = [tf.TensorSpec([None, *source.image_shape], tf.float32)]
  compiled = tf.function(embed, input_signature=signature, autograph=False)
  bar = progress.Progress("embedding", source.size)
  parts: dict[str, list[np.ndarray]] = {}
  labels, pictures, left = [], [], shown
  with sources.naming_unreadable(source):
    for batch in source.batches(batch_size, shuffle=False, drop_remainder=False):
      images = pipeline.to_float(batch["image"])
      for name, values in compiled(images).items():
        parts.setdefault(name, []).append(values.numpy())
      if source.labelled:
        labels.append(batch["label"].numpy())
      if left > 0:
        pictures.append(projector.thumbnails(images[:left], shown))
        left -= len(pictures[-1])
      bar.add(len(images))
  found = {name: np.concatenate(values) for name, values in parts.items()}
  errors.check_finite(found["loc"], "the encoder")
  if source.labelled:
    found["labels"] = np.concatenate(labels)
  if source.class_names is not None:
    found["class_names"] = np.array(source.class_names)
  if source.names is not None:
    found["names"] = np.array(source.names)
  return found, np.concatenate(pictures) if pictures else None


def _columns(found, count):
  """The Projector's metadata, {column: values}; the first column labels the points."""
  columns: dict[str, Sequence] = {}
  if "labels" in found:
    columns["label"] = projector.named(found["labels"][:count], found.get("class_names"))
  if "names" in found:
    columns["name"] = found["names"][:count]
  if "scale" in found:
    columns["sigma"] = [f"{sigma:.4g}" for sigma in found["scale"][:count].mean(1)]
  return {**columns, "index": range(count)}
