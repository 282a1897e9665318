"""SimSiam: predict the projection of the other view, through which no gradient flows."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import heads
from urkle_tf.pretexts._pairs import cosine_to_other_views, through
from urkle_tf.pretexts.base import Pretext


class SimSiam(Pretext):
  """Each member predicts the stopped projection of the other view (Chen and He, 2021, eq. 2).

      mean over members m and clean views k != m % v of  -cos(q(g(z_m)), stop(g(z_k)))

  with projector g and predictor q.  With only v = 2 views, it is the paper's mean of two pairs.  If
  adversaries join the tuple, they predict the other clean view.  Nothing predicts an adversary.

  Args:
    projector: hidden width of the projector, Dense - batch norm - ReLU - Dense - batch norm.
    projection: output width of projector and predictor.
    predictor: hidden width of the predictor, Dense - batch norm - ReLU - Dense.  A quarter of
      `projection`, as in the paper, makes it a bottleneck.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimSiam(projection=512, predictor=128))
  ```
  """

  exact = True
  positives = True
  terms = ("prediction",)

  def __init__(self, projector=512, projection=512, predictor=128):
    super().__init__(name="simsiam")
    errors.whole(1, "simsiam", projector=projector, projection=projection, predictor=predictor)
    self._widths = (projector, projection, predictor)

  def attach(self, encoder):
    """Makes projector and predictor."""
    hidden, projection, predictor = self._widths
    self.projector = heads.mlp(
      encoder.latent_dim, [hidden, projection], "projector", last_norm=True
    )
    self.predictor = heads.mlp(projection, [predictor, projection], "predictor")

  def loss(self, representations, aux, training=True):
    """{"prediction": [n]}, in [-1, 1]."""
    projections = through(self.projector, representations.z, training)
    predictions = through(self.predictor, projections, training)  # [n, t, projection]
    targets = tf.stop_gradient(projections[:, : self.views])
    return {"prediction": -cosine_to_other_views(predictions, targets)}
