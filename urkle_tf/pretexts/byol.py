"""BYOL: predict the projection of the other view by a moving average of the network."""

import math

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import heads
from urkle_tf.networks.tuples import flat, folded
from urkle_tf.pretexts._momentum import MovingAverage
from urkle_tf.pretexts._pairs import cosine_to_other_views, through
from urkle_tf.pretexts.base import Pretext


class BYOL(Pretext):
  """Each member predicts the target network's projection of the other view (Grill et al., 2020).

      mean over members m and clean views k != m % v of  ||q(g(z_m)) - g'(mu'(x_k))||^2
      = 2 - 2 cos(q(g(z_m)), g'(mu'(x_k))),  both normalised to length 1

  with projector g and predictor q.  g' and mu' belong to the target network, a moving average of
  encoder and projector.  The paper sums over its two pairs.  With the mean, the weight of an added
  KL term is the same for any number of members.  If adversaries join the tuple, they predict the
  target of the other clean view.  No target comes from an adversary.

  The target network uses moving statistics, not the batch's.  They are moving averages of the
  trained network's statistics (Cai et al., 2021, "Exponential Moving Average Normalization").  So a
  target depends only on its image, not on the batch or the number of replicas, and computing it
  moves no statistics.  The exported encoder uses the trained network's own statistics.

  Args:
    momentum: decay of the moving average, in [0, 1); the paper's is 0.996 for 1000 epochs.
    rising: whether it rises to 1 during training, as in the paper:
      1 - (1 - momentum) (cos(pi progress) + 1) / 2.
    projector: hidden width of the projector, Dense - batch norm - ReLU - Dense.
    projection: output width of projector and predictor.
    predictor: hidden width of the predictor, built the same way.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.BYOL(momentum=0.99))
  ```
  """

  positives = True
  terms = ("prediction",)

  def __init__(self, momentum=0.99, rising=False, projector=512, projection=128, predictor=512):
    super().__init__(name="byol")
    errors.within("[0, 1)", "byol", momentum=momentum)
    errors.whole(1, "byol", projector=projector, projection=projection, predictor=predictor)
    self.momentum, self.rising = momentum, rising
    self._widths = (projector, projection, predictor)

  def attach(self, encoder):
    """Makes projector, predictor and the target network."""
    hidden, projection, predictor = self._widths
    self.projector = heads.mlp(encoder.latent_dim, [hidden, projection], "projector")
    self.predictor = heads.mlp(projection, [predictor, projection], "predictor")
    self.target = MovingAverage([encoder.network, self.projector], self.momentum, "target")

  def prepare(self, views, batch):
    """The targets of the clean views, float32 [n, v, projection]."""
    network, projector = self.target.models
    loc = network(flat(views), training=False)["loc"]
    return tf.stop_gradient(folded(projector(loc, training=False), views.shape[1]))

  def loss(self, representations, aux, training=True):
    """{"prediction": [n]}, in [0, 4]."""
    projections = through(self.projector, representations.z, training)
    predictions = through(self.predictor, projections, training)  # [n, t, projection]
    return {"prediction": 2 - 2 * cosine_to_other_views(predictions, aux)}

  def after_step(self, encoder, progress):
    """Moves the target network."""
    momentum = self.momentum
    if self.rising:
      momentum = 1 - (1 - momentum) * (tf.cos(math.pi * progress) + 1) / 2
    self.target.update([encoder.network, self.projector], momentum)
