"""Nearest neighbours under an attack on the embedding itself, without labels."""

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import representation, scoring
from urkle_tf.networks.saved import embedders, foreign_models

_STREAM = 11  # of a seed
_PROBE = 8  # images for examining an encoder


def look_at(path, source):
  """Reads any encoder, and examines it with the first images of data.

  Args:
    path: as in `embedders.read`.
    source: a `Source`.

  Returns:
    (function from images float32 [n, h, w, c] to embeddings float32 [n, d], the encoder's metadata
    for a report).

  Raises:
    UserError: if there is no such encoder, or the data do not fit it.
  """
  loaded = embedders.read(path)
  compatibility.check_images(loaded.size_for(source.image_shape), source, "the encoder")
  embed = embedders.rows(loaded)
  _, images, _ = next(scoring.stream(source, min(_PROBE, source.size)))
  found = foreign_models.call(embed, images, loaded.path)
  if found.ndim != 2:
    raise errors.UserError(
      f"{loaded.path!r} must return embeddings [n, d], but returned {list(found.shape)}: give the "
      "part of it that does"
    )
  errors.check_finite(found, repr(loaded.path))
  return embed, {
    "kind": "encoder",
    "format": loaded.format,
    "fingerprint": loaded.fingerprint,
    "image_size": list(source.image_shape),
    "latent_dim": found.shape[1],
    "stochastic": False,
  }


def objective(embed, images, distance):
  """The distance of embeddings from those of images, as a function to maximise.

  Args:
    embed: images float32 [n, h, w, c] -> float32 [n, d].
    images: float32 [n, h, w, c], the clean ones.
    distance: "squared", |f(x') - f(x)|^2, or "cosine", 1 - cos(f(x'), f(x)).

  Returns:
    A function from images to float32 [n].  At the clean images its gradient is zero, so an attack
    has to start elsewhere.
  """
  clean = tf.stop_gradient(embed(images))
  if distance == "squared":
    return lambda neighbours: tf.reduce_sum(tf.square(embed(neighbours) - clean), -1)
  unit = lambda z: tf.linalg.l2_normalize(z, -1)  # noqa: E731
  return lambda neighbours: 1 - tf.reduce_sum(unit(embed(neighbours)) * unit(clean), -1)


def overlap(near, others):
  """The shares of nearest keys that two queries of each image have in common.

  Args:
    near: int64 [n, count], of `representation.nearest`.
    others: the same, of other queries of the same images.

  Returns:
    float64 [n], in [0, 1].
  """
  pairs = zip(near, others, strict=True)
  return np.array([len(np.intersect1d(one, other)) / len(one) for one, other in pairs])


def measure(context, options):
  """The report's part "retrieval".

  Args:
    context: a `Context` with an `embed`; labels are not read.
    options: a `measurements.retrieval.Retrieval`.

  Returns:
    A dict: "overlap", the mean share of an image's nearest neighbours (cosine) that are still
    among them when the image is attacked; "first_kept", the share of images whose nearest stays;
    "moved", mean |f(x') - f(x)|^2 over mean |f(x) - mean f|^2; "cosine", mean cos(f(x'), f(x));
    "neighbours", "steps", "restarts", "distance", "norm", "epsilon", "examples", and "references",
    the number of images that are searched.  With an original f0, also "original", the first four
    for f0, attacked itself; "drift", mean |f(x) - f0(x)|^2 over mean |f0(x) - mean f0|^2; and
    "index" and "index_attacked", for queries of f in an index of f0's embeddings: the mean share of
    the neighbours of f0(x) that f(x) finds, and that f(x') finds.
  """
  total = min(options.examples, context.source.size)
  keys = context.prepared[options.name]
  found = _Embedded(context, options, "retrieval", context.embed, total, keys["source"])
  part = found.figures() | {
    **{name: getattr(options, name) for name in ("neighbours", "steps", "restarts", "distance")},
    "norm": context.norm,
    "epsilon": float(context.epsilon),
    "examples": total,
    "references": len(found.keys),
  }
  if keys["original"] is None:
    return part
  before = _Embedded(context, options, "original", keys["original"], total, keys["source"])
  part["original"] = before.figures()
  if before.clean.shape[1] == found.clean.shape[1]:
    part["drift"] = float(np.mean(np.sum((found.clean - before.clean) ** 2, 1)) / before.spread)
    index = lambda rows: float(overlap(before.near, before.nearest(rows)).mean())  # noqa: E731
    part |= {"index": index(found.clean), "index_attacked": index(found.moved)}
  return part


class _Embedded:
  """An encoder's embeddings of images, clean and attacked, and of the references.

  Attributes:
    clean: float64 [n, d].
    moved: float64 [n, d], of the attacked images.
    keys: float64 [m, d], of the references.
    near: int64 [n, neighbours], the references nearest to the clean images.
    spread: mean |f(x) - mean f|^2.
  """

  def __init__(self, context, options, name, embed, total, reference):
    self._count = options.neighbours
    attack = attacks.PGD(context.threat, options.steps, restarts=options.restarts, keep="best")
    seed = distribution.fold([context.seed, 0], _STREAM)

    @tf.function(autograph=False)
    def attacked(images, seed):
      moved = embed(attack(objective(embed, images, options.distance), images, seed))
      return {"clean": embed(images), "moved": moved}

    title = f"{name}({options.steps}x{options.restarts})"
    compute = scoring.by_batch(attacked, min(context.batch_size, total), seed)
    values = context.over_first(total, name, title, compute)
    self.clean, self.moved = (values[key].astype(np.float64) for key in ("clean", "moved"))
    self._itself = reference is None
    self.keys = self.clean if self._itself else scoring.embeddings(embed, reference)[0]
    self.near = self.nearest(self.clean)
    middle = self.clean.mean(0)
    self.spread = max(float(np.mean(np.sum((self.clean - middle) ** 2, 1))), 1e-30)

  def nearest(self, rows):
    """The references nearest to embeddings [n, d], int64 [n, neighbours]."""
    return representation.nearest(rows, self.keys, self._count, self._itself)

  def figures(self):
    """{"overlap", "first_kept", "moved", "cosine"}; see `measure`."""
    near, unit = self.nearest(self.moved), representation.unit
    return {
      "overlap": float(overlap(self.near, near).mean()),
      "first_kept": float(np.mean(self.near[:, 0] == near[:, 0])),
      "moved": float(np.mean(np.sum((self.moved - self.clean) ** 2, 1)) / self.spread),
      "cosine": float(np.sum(unit(self.clean) * unit(self.moved), 1).mean()),
    }


def prepare(context, options):
  """Loads what the options name: {"source": references or None, "original": `embed` or None}.

  Raises:
    UserError: for options that do not fit the data.
  """
  source = None
  if options.reference:
    data = {"dataset": context.source.name, "split": options.reference, **context.where}
    source = sources.load(**{**data, "examples": None})
  known = source.size if source else min(options.examples, context.source.size) - 1
  if not 1 <= options.neighbours <= known:
    raise errors.UserError(
      f"retrieval: neighbours must be from 1 to {known:,}, the number of other images, got "
      f"{options.neighbours}"
    )
  if source:
    compatibility.check_apart(context.source, source, "retrieval", options.examples)
  original = look_at(options.original, context.source)[0] if options.original else None
  return {"source": source, "original": original}
