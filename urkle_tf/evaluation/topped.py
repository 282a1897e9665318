"""Turns an encoder into a classifier: by class prototypes, a saved head, or neighbours."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import tensorflow as tf

from urkle_tf import errors, export, spec
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import scoring
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.settings import data_of

_SCALE = 100.0  # of the cosine, as CLIP's at the end of its training
_FAR = 1e-6  # the weight of references that are not among the nearest
_TINY = 1e-30  # the least score, for a class without references


def classifier(given, source):
  """Makes a classifier from an encoder and a top.

  Args:
    given: the settings, `settings.Assess`, with an `encoder`, and `prototypes` or `head`.
    source: a labelled `Source` of the images.

  Returns:
    A `foreign_models.Loaded` from images to scores; its `about` describes the top.

  Raises:
    UserError: if they do not fit each other or the data.
  """
  if given.prototypes and given.head:
    raise errors.UserError("give --prototypes or --head, not both")
  loaded = embedders.read(given.encoder)
  compatibility.check_images(loaded.size_for(source.image_shape), source, "the encoder")
  compatibility.check_classes(len(source.class_names or ()), None, source)
  embed = embedders.rows(loaded)
  blank = np.zeros([1, *source.image_shape], np.float32)
  width = foreign_models.call(embed, blank, loaded.path).shape[-1]
  if given.prototypes:
    top, about = _prototypes(given.prototypes, width, source), "class prototypes"
    content = pathlib.Path(given.prototypes).read_bytes()
  elif str(given.head).endswith(".keras"):
    top, about = _saved(given.head, width), "a saved head"
    content = pathlib.Path(given.head).read_bytes()
  else:
    make = {"knn": _neighbours}
    data = {"measured": source, "data": data_of(given)}
    top, references = spec.call(make, given.head, f"head ({_HEADS})", embed=embed, **data)
    name = export.settings_without_paths({"dataset": source.name})["dataset"]
    about = f"{given.head} on the images of {name}"
    content = f"{about}, {references}".encode()
  digest = hashlib.sha256(loaded.fingerprint.encode() + content).hexdigest()[:16]
  function = lambda images: top(embed(images))  # noqa: E731
  return dataclasses.replace(loaded, function=function, fingerprint=digest, about=about)


_HEADS = "FILE.keras or knn(split=train, neighbours=20, temperature=0.07)"


def _prototypes(path, width, source):
  """Embeddings [n, d] -> 100 times their cosines with the rows of a file, [n, classes]."""
  classes = len(source.class_names)
  wanted = f"give float32 [{classes}, {width}], one row for each class of {source.name!r}"
  try:
    rows = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise errors.UserError(
      f"cannot read --prototypes={path}: {errors.reason(error)}; {wanted}"
    ) from error
  fault = None
  if not isinstance(rows, np.ndarray) or not np.issubdtype(rows.dtype, np.floating):
    fault = f"holds {getattr(rows, 'dtype', 'several arrays')}"
  elif rows.shape != (classes, width):
    fault = f"holds {list(rows.shape)}"
  elif not np.all(np.isfinite(rows)) or not np.all(np.any(rows, axis=1)):
    fault = "has a row that is zero or not finite"
  if fault:
    raise errors.UserError(f"--prototypes={path} {fault}: {wanted}")
  units = tf.linalg.l2_normalize(tf.constant(rows, tf.float32), -1)
  return lambda z: _SCALE * tf.matmul(tf.linalg.l2_normalize(z, -1), units, transpose_b=True)


def _saved(path, width):
  """The function of a Keras model in a file, embeddings [n, d] -> [n, classes]."""
  if not pathlib.Path(path).is_file():
    raise errors.UserError(f"no file {path!r}: give --head={_HEADS}")
  model = foreign_models.read_keras(path)
  if (shape := getattr(model, "input_shape", None)) != (None, width):
    raise errors.UserError(
      f"--head={path} takes {shape}, but the encoder returns {width} dimensions: give a model from "
      f"[n, {width}] to scores [n, classes]"
    )
  return lambda z: foreign_models.SCORES.of(path, model(z, training=False))


def _neighbours(embed, measured, data, split="train", neighbours=20, temperature=0.07):
  """The weighted vote of the nearest images of a labelled split, as logits (Wu et al., 2018).

      score of class c = sum over images i of class c of  w_i exp(cos(z, z_i) / temperature)

  w_i is 1 for the nearest `neighbours` and a millionth for all others, so that every class has a
  score, and attacks have a gradient.

  Args:
    embed: images -> float32 [n, d].
    measured: the `Source` of the images to classify.
    data: the arguments of `sources.load`, except for the split.
    split: the split of the reference images.
    neighbours: how many vote.
    temperature: of the cosine.

  Returns:
    (embeddings [n, d] -> [n, classes], the fingerprint of the reference images).
  """
  source = sources.load(**{**data, "split": split, "examples": None})
  if not (isinstance(neighbours, int) and 1 <= neighbours <= source.size):
    raise errors.UserError(
      f"--head=knn: neighbours must be from 1 to {source.size:,}, the images of {split!r}, got "
      f"{neighbours!r}"
    )
  errors.above(0, "--head=knn", temperature=temperature)
  compatibility.check_apart(measured, source, "--head=knn")
  keys, labels = scoring.embeddings(embed, source)
  units = tf.linalg.l2_normalize(tf.constant(keys), -1)
  classes = tf.one_hot(labels, len(source.class_names))

  def logits(z):
    cosines = tf.matmul(tf.linalg.l2_normalize(z, -1), units, transpose_b=True)
    last = tf.math.top_k(cosines, neighbours).values[:, -1:]
    weights = tf.where(cosines >= last, 1.0, _FAR)
    top = tf.stop_gradient(tf.reduce_max(cosines, 1, keepdims=True))
    scores = tf.matmul(weights * tf.exp((cosines - top) / temperature), classes)
    return tf.math.log(tf.maximum(scores, _TINY)) + top / temperature

  return logits, source.fingerprint
