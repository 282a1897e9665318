"""SimCLR: NT-Xent over tuples of any number of positives (Urkle paper, eq. 8 and 9)."""

import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import batch_norm, heads
from urkle_tf.networks.folding import fold
from urkle_tf.networks.tuples import folded
from urkle_tf.pretexts.base import Pretext

_NOTHING = -1e9  # similarity of what is left out: its exp is exactly 0


def _to_negatives(z, others, temperature):
  """Similarities of unit embeddings to those of other images, divided by the temperature.

  Args:
    z: float32 [n, t, d], of length 1.
    others: as in `nt_xent`.
    temperature: above 0.

  Returns:
    float32 [n, t, N * s]; `_NOTHING` for the same image.
  """
  n, members = tf.shape(z)[0], z.shape[1]
  everyone = distribution.gather(z) if others is None else tf.math.l2_normalize(others, -1)
  own = tf.range(n) + distribution.replica_id() * n
  own = tf.one_hot(own, tf.shape(everyone)[0], on_value=True, off_value=False)[:, None, :, None]
  similarity = tf.einsum("itd,jsd->itjs", z, everyone) / temperature  # [n, t, N, s]
  return tf.reshape(tf.where(own, _NOTHING, similarity), [n, members, -1])


def nt_xent(z, temperature=0.5, denominator="negatives", others=None):
  """The normalised temperature-scaled cross entropy, averaged over positive pairs.

  For the tuple t_i of example i, with s(a, b) the cosine similarity divided by the temperature:

      1 / (t (t - 1)) sum_{a, b in t_i, a != b}  log D(a) - s(a, b)

  Equation 9 of the Urkle paper lacks the -log (taken literally, it would push positives apart) and
  sums over pairs.  With the mean, the weight of an added KL term is the same for any batch and
  tuple size.

  Args:
    z: float32 [n, t, d] on this replica, t at least 2; negatives come from all replicas.
    temperature: above 0; 0.5 in the paper.
    denominator: "negatives", as in eq. 9: D(a) = sum of exp s(a, c) over the members c of all
      other tuples; or "all", as in SimCLR: over every other embedding, including positives.
    others: float32 [N, s, d], embeddings of all replicas' images, used as negatives instead of
      those of `z`, so that nothing is gathered; None for those of `z`.

  Returns:
    float32 [n]; minus infinity if there is nothing to sum, as for the negatives of a single image.
  """
  members = z.shape[1]
  z = tf.math.l2_normalize(tf.cast(z, tf.float32), -1)
  summands = _to_negatives(z, others, temperature)
  positive = tf.einsum("itd,isd->its", z, z) / temperature  # [n, t, t], within the own tuple
  if denominator == "all":
    itself = tf.eye(members, dtype=tf.bool)
    summands = tf.concat([summands, tf.where(itself, _NOTHING, positive)], 2)
  repulsion = tf.reduce_logsumexp(summands, 2)  # log D(a), [n, t]
  # A single image has no negatives.  A loss that is not finite makes `Trainer` skip the step.
  repulsion = tf.where(repulsion > _NOTHING / 2, repulsion, -float("inf"))
  pairs = members * (members - 1)
  attraction = (tf.reduce_sum(positive, [1, 2]) - tf.linalg.trace(positive)) / pairs
  return tf.reduce_mean(repulsion, 1) - attraction


def consistency(z, temperature=0.5):
  """How far the members of a tuple disagree about which other images they resemble.

  This is the Jensen-Shannon divergence of AugMix (Hendrycks et al., 2020, eq. 2 and 3), on
  contrastive distributions instead of a classifier's.  With s(a, c) as in `nt_xent`,

      p_a(c) = exp s(a, c) / sum_c' exp s(a, c'),   c over the members of all other tuples
      1/t sum_a KL[p_a || m],   m = 1/t sum_a p_a

  It is in [0, log t], and 0 if all members agree.

  Args:
    z: float32 [n, t, d] on this replica; the other tuples come from all replicas.
    temperature: above 0.

  Returns:
    float32 [n], nats.
  """
  z = tf.math.l2_normalize(tf.cast(z, tf.float32), -1)
  log_p = tf.nn.log_softmax(_to_negatives(z, None, temperature))  # [n, t, N t]
  log_m = tf.reduce_logsumexp(log_p, 1, keepdims=True) - tf.math.log(float(z.shape[1]))
  return tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_m), 2), 1)


class SimCLR(Pretext):
  """Views of an image attract, other images repel (Chen et al., 2020).

  With a weight for `consistency`, the views must also agree about the other images, and there are
  three unless you say how many.  This is AugMix's consistency of a clean image and two mixtures,
  for the contrastive task.  URRL combines the two.  Only the abstract and introduction of its paper
  are public, so this is our reading.  `--augment="simclr, augmix(base=simclr),
  augmix(base=simclr)"` leaves the first view unmixed.

  Args:
    temperature: of NT-Xent, above 0.
    denominator: "negatives" (eq. 9) or "all" (SimCLR's own); see `nt_xent`.
    projector: hidden width of the projector; 0 for none.
    projection: output width of the projector.
    consistency: weight of the term of that name, at least 0; 12 in AugMix.  With 0 there is no such
      term.
    views: of each image, at least 2; None for 2, or 3 with consistency.
    projector_norm: whether the projector has a batch norm.

  Raises:
    UserError: for an option out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  pretext = urkle_tf.pretexts.SimCLR(temperature=0.5)
  trainer = urkle_tf.Trainer(encoder, pretext, urkle_tf.robustness.Urkle(k=8), attack)
  ```
  """

  positives = True
  contrastive = True
  couples = True
  terms: tuple[str, ...] = ("nt_xent",)

  def __init__(
    self,
    temperature=0.5,
    denominator="negatives",
    projector=512,
    projection=128,
    consistency=0.0,
    views=None,
    projector_norm=True,
  ):
    super().__init__(name="simclr")
    errors.at_least(0, "simclr", consistency=consistency)
    errors.above(0, "simclr", temperature=temperature)
    errors.whole(0, "simclr", projector=projector)
    errors.whole(1, "simclr", projection=projection)
    errors.one_of("denominator", denominator, ("negatives", "all"))
    self.temperature, self.denominator = temperature, denominator
    self._widths, self._norm = (projector, projection), projector_norm
    self.projector = None
    self.consistency = consistency
    self.views = views if views is not None else (3 if consistency else 2)
    errors.whole(2, "simclr", views=self.views)
    if consistency:
      self.terms = ("nt_xent", "consistency")

  def attach(self, encoder):
    """Makes the projector, Dense - (batch norm) - ReLU - Dense, and its twin if one is needed."""
    if self._widths[0]:
      options = encoder.latent_dim, self._widths, "projector"
      self.projector = heads.mlp(*options, norm=self._norm)
      self._projectors = {batch_norm.ADVERSARIAL: self.projector}
      if batch_norm.CLEAN in encoder.streams:
        self._projectors[batch_norm.CLEAN] = batch_norm.twin(self.projector)

  def embedding(self, stream):
    """The stream's projector, its batch norm folded."""
    return fold(self._projectors[stream]) if self.projector is not None else lambda z: z

  def contrast(self, embeddings, others):
    """NT-Xent, float32 [n]."""
    return nt_xent(embeddings, self.temperature, self.denominator, others)

  def loss(self, representations, aux, training=True):
    """{"nt_xent": [n]} of the projected z, and with a weight "consistency", times the weight."""
    z = representations.z  # [n, t, d_z]
    if self.projector is not None:
      project = lambda rows, stream: self._projectors[stream](rows, training=training)  # noqa: E731
      z = folded(representations.through(project), z.shape[1])
    found = {"nt_xent": nt_xent(z, self.temperature, self.denominator)}
    if self.consistency:
      found["consistency"] = self.consistency * consistency(z, self.temperature)
    return found
