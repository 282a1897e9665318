"""A regressor on a Gaussian representation: numbers predicted from images."""

import keras
import tensorflow as tf

from urkle_tf.networks import predictor


class _Predictions(predictor.Predictions):
  """Predictions from network and head."""

  def deterministic(self, images):
    """The prediction at z = loc: [n, h, w, c] -> float32 [n, outputs]."""
    return self.head(self.represent(images)[0], training=False)

  def predictions(self, images, seed=None, samples=None):
    """The mean over samples of z of the head's predictions, 1/s sum_s f(loc + scale * noise_s).

    The mean minimises the expected squared error.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      seed: int32 [2] of the noise; None draws fresh noise.
      samples: the number of z, an int or an int32 scalar; None for `self.samples`.

    Returns:
      float32 [n, outputs]; the prediction at z = loc if the regressor is deterministic.
    """
    return self.from_representation(*self.represent(images), seed=seed, samples=samples)

  def from_representation(self, loc, scale, seed=None, samples=None):
    """As `predictions`, from loc and scale, both float32 [n, d_z]."""
    return self._mean(loc, scale, seed, samples)


class _Frozen(predictor.Frozen, _Predictions):
  """See `predictor.Frozen`."""


@keras.saving.register_keras_serializable("urkle_tf")
class Regressor(_Predictions, predictor.Predictor):
  """f(x) = E[f(z)] over z ~ Normal(loc(x), scale(x)): numbers predicted from images.

  Two regressors in one, as a `Classifier` is two classifiers: the sampled one and z = loc.
  Arguments and errors are those of `Predictor`; the head's outputs are in the target's units.

  Attributes:
    image_shape: (height, width, channels).
    latent_dim: d_z.
    outputs: how many numbers are predicted for an image.
    target: what the numbers are, such as "the angle in degrees", or None.
    metadata: the export's metadata, or {}.
  """

  Frozen, LABEL = _Frozen, "target"
  link = staticmethod(tf.identity)  # from the head's outputs to predictions
  target: str | None = None

  def call(self, images, training=None):
    """Served predictions: [n, h, w, c] -> float32 [n, outputs]."""
    return self.predictions(images)
