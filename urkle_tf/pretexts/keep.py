"""Keep an encoder's embeddings of clean images, with a budget for how far they may move."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.pretexts.base import squared_distance
from urkle_tf.pretexts.distil import Distil

_RHO_OF = ("spread", "length")
_RATE, _STIFFNESS = 0.05, 1.0  # how fast the multiplier follows, per step and at once; see `Keep`
_FARTHEST = 2.0


class Keep(Distil):
  """Keeps the embeddings of clean images near the original's, by their squared distance.

  With f the encoder's loc and f0 the frozen original's,

      drift = mean |f(x) - f0(x)|^2 / mean |f0(x) - mean f0|^2        rho_of=spread
      drift = mean |f(x) - f0(x)|^2 / mean |f0(x)|^2                  rho_of=length, as LORE

  where the denominators are means over the data set's first 1,024 images, before training.  The
  loss is multiplier * drift.  The multiplier, at least 0, enforces drift <= rho:

      v = (drift of the batch - rho) / rho, at most 2
      held <- max(0, held + 0.05 v),    multiplier = max(0, held + v)

  (the method of multipliers: Bertsekas, Constrained Optimization and Lagrange Multiplier Methods,
  1982).  It is part of the checkpoint.  Without a budget, `rho=None`, the multiplier is 1.

  Use it with `urkle(anchor=original)` and with loc = pooled, the original's own embedding.  Sigma
  is in units of the original's spread.  While it is fixed (`min_scale` equal to `max_scale`), the
  KL term is k |f(x') - f0(x)|^2 / (2 spread).

  Args:
    original: a `.keras` file or a SavedModel's folder of a model from images to an embedding; the
      encoder starts as a copy of it with `--encoder=FILE.keras`.
    rho: the budget, above 0; None for a constant weight of 1 instead.
    rho_of: what rho is a share of, "spread" or "length", as above.

  Raises:
    UserError: as `Distil`, or if an option is out of its range.

  ```python
  backbone.save("original.keras")  # any Keras model from images in [0, 1] to an embedding
  pretext = urkle_tf.pretexts.Keep(original="original.keras", rho=0.1)
  pretext.measure(images)  # `pretrain` takes the data set's first 1,024
  encoder = urkle_tf.GaussianEncoder(backbone, loc="pooled", preprocess=lambda images: images)
  scheme = urkle_tf.robustness.Urkle(anchor="original")
  trainer = urkle_tf.Trainer(encoder, pretext, scheme, attack)
  ```
  """

  positives = False
  anchors = True
  loc = "pooled"
  strength = {"k": 2.0}
  measured = 1024

  def __init__(self, original, rho=0.1, rho_of="spread"):
    errors.one_of("rho_of of keep", rho_of, _RHO_OF)
    if rho is not None:
      errors.within("(0, inf)", "keep", rho=rho)
    super().__init__(teacher=original)
    self.rho, self.rho_of = rho, rho_of
    self.terms = ("drift",) if rho is None else ("drift", "multiplier")
    self._measures = None

  def measure(self, images):
    """Measures the spread and length of the original's embeddings; before `attach`.

    Args:
      images: float32 [n, h, w, c] in [0, 1], n at least 2.

    Raises:
      UserError: as in `Distil`, or for fewer images.
    """
    found = self.embed([images])
    if len(found) < 2:
      raise errors.UserError(
        "keep: a spread needs at least two images: give measure more, such as the first 1,024"
      )
    spread = np.mean(np.sum(np.square(found - found.mean(0)), -1))
    self._measures = {"spread": spread, "length": np.mean(np.sum(np.square(found), -1))}

  def attach(self, encoder):
    """As in `Distil`; also sets the unit of sigma."""
    if self._measures is None:
      raise errors.UserError("keep: call measure(images) before the Trainer is made")
    super().attach(encoder)
    if self.projector is not None:
      raise errors.UserError(
        f"keep needs --loc=pooled and an encoder of the original's width: the original has "
        f"{self._output[-1]} dimensions, and the encoder has {encoder.latent_dim}"
      )
    encoder.calibrate(math.sqrt(self._measures["spread"] / encoder.latent_dim))
    self._unit = distribution.state(self._measures[self.rho_of])
    self._held: Any = None  # held, multiplier
    if self.rho is not None:
      self._held = distribution.state([0.0, 0.0])

  def loss(self, representations, aux, training=True):
    """{"drift": [n], "multiplier": [n]}; see `weight`."""
    loc = representations.normal.loc
    rows = squared_distance(loc, aux[:, : loc.shape[1]]) / loc.shape[1]
    drift = rows / tf.convert_to_tensor(self._unit.value)
    if self._held is None:
      return {"drift": drift}
    if training:
      self._hold(tf.reduce_mean(drift))
    return {"drift": drift, "multiplier": self.weight("drift") * tf.ones_like(drift)}

  def _hold(self, drift):
    """Updates the multiplier with the drift of a batch, over all replicas."""
    beyond = tf.minimum((distribution.mean(drift) - self.rho) / self.rho, _FARTHEST)
    held = tf.maximum(0.0, self._held[0] + _RATE * beyond)
    self._held.assign(tf.stack([held, tf.maximum(0.0, held + _STIFFNESS * beyond)]))

  def weight(self, term):
    """The multiplier, for drift; 0 for the multiplier itself, which is only reported."""
    if term == "multiplier":
      return 0.0
    return 1.0 if self._held is None else tf.convert_to_tensor(self._held.value)[1]
