"""The input of every measurement: a model, images, a threat, and the results so far."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from urkle_tf import attacks, errors, networks
from urkle_tf.data import sources
from urkle_tf.evaluation import scoring
from urkle_tf.evaluation.store import Store
from urkle_tf.output import progress, tables


@dataclasses.dataclass
class Context:
  """An evaluation of one model on one data set.

  Attributes:
    source: the `Source` of images.
    norm: of the threat model.
    epsilons: its radii in pixel units; `epsilon` is the first.
    model: a `Classifier`, `Foreign` or `Regressor`; None for an encoder alone, and before it is
      loaded.
    network: Keras model, images -> {"loc", "scale"}; None without an encoder of this package.
    embedder: images -> embeddings float32 [n, d], for an encoder made elsewhere.
    kind: one of `Measurement.kinds`.
    metadata: the export's metadata.
    where: how further data sets are loaded: `data_dir`, `download`, `image_size`, `examples`.
    modes: the readings of z that are measured, the served one first; None for those of `model`.
    batch_size: images that are attacked or scored together.
    eot: samples of z in each evaluation of an attack's objective.
    samples: the least number of samples of z that score the sampled model.
    seed: of all randomness.
    save_images: whether adversaries and per-image results go into `arrays`.
    folder: where figures go; None to draw none.
    store: the `Store` of earlier results.
    prepared: {measurement: what its `prepare` returned}.
    report: {measurement: what was found}, so far.
    arrays: {name: array}, what images.npz will hold.
    notes: entries of the report's "config" besides the settings.
    robust: bool [n], which images no attack broke at `epsilon` in the served mode; None before the
      attacks.
  """

  source: sources.Source
  norm: str
  epsilons: list[float]
  model: Any = None
  network: keras.Model | None = None
  embedder: Callable | None = None
  kind: str = "classifier"
  metadata: dict = dataclasses.field(default_factory=dict)
  where: dict[str, Any] = dataclasses.field(default_factory=dict)
  modes: tuple[str, ...] | None = None
  batch_size: int = 250
  eot: int = 20
  samples: int = 200
  seed: int = 0
  save_images: bool = False
  folder: pathlib.Path | None = None
  store: Store = dataclasses.field(default_factory=Store)
  prepared: dict[str, Any] = dataclasses.field(default_factory=dict)
  report: dict[str, Any] = dataclasses.field(default_factory=dict)
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)
  robust: np.ndarray | None = None

  def __post_init__(self):
    self.batch_size = min(self.batch_size, self.source.size)
    if self.modes is None and self.model is not None:
      self.modes = self.model.modes

  @property
  def epsilon(self):
    """The radius of measurements with only one."""
    return self.epsilons[0]

  @property
  def threat(self):
    """The threat model of measurements with only one radius."""
    return attacks.from_norm(self.norm, self.epsilon)

  def title(self, text):
    """A progress line's title, with the threat."""
    return f"{text} {self.norm} {tables.radius(self.epsilon, self.norm)}"

  @functools.cached_property
  def scorer(self):
    """The `Scorer` of the classifier, in the modes that are measured."""
    return scoring.Scorer(self.model, self.batch_size, self.samples, self.seed, self.modes)

  @property
  def labels(self):
    """The classes of all images, int [n]."""
    return self._clean[1]

  @property
  def on_clean(self):
    """The `Scores` of all images as they are."""
    return self._clean[0]

  @functools.cached_property
  def _clean(self):
    scored, labels = [], []
    for number, (_, images, truth) in enumerate(scoring.stream(self.source, self.batch_size)):
      if truth.min() < 0 or truth.max() >= self.model.classes:
        raise errors.UserError(
          f"{self.source.name!r} has a label outside the classifier's {self.model.classes} "
          "classes: give data with these classes"
        )
      score = functools.partial(self.scorer.both, images)
      scored.append(self.store.arrays(f"clean-{number}", lambda score=score: score().arrays()))
      labels.append(truth)
    return scoring.Scores.join(scored, self.modes), np.concatenate(labels)

  @property
  def embed(self):
    """Images float32 [n, h, w, c] -> embeddings float32 [n, d], loc, in inference mode."""
    if self.embedder is not None:
      return self.embedder
    represent = networks.ExportedEncoder(self.network).frozen()
    return lambda images: represent(images).loc

  def over_first(self, count, name, title, compute):
    """Measures the first images, batch by batch; the store keeps each batch.

    Args:
      count: of images.
      name: of the batches in the store.
      title: of the progress line, which shows the batch's mean of "kl", if there is one.
      compute: (number, images, labels) of a batch -> {name: array [n, ...]}, with "kl" in nats.

    Returns:
      {name: array [count, ...]}.

    Raises:
      UserError: if a value is not finite.
    """
    bar, parts = progress.Progress(self.title(title), count), []
    batches = scoring.stream(self.source, min(self.batch_size, count), count)
    for number, (_, images, labels) in enumerate(batches):
      found = functools.partial(compute, number, images, labels)
      parts.append(self.store.arrays(f"{name}-{number}", found))
      for values in parts[-1].values():
        errors.check_finite(values, f"the {self.kind.removeprefix('foreign_')}")
      bar.add(len(images), f"{np.mean(parts[-1]['kl']):.3g} nats" if "kl" in parts[-1] else "")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
