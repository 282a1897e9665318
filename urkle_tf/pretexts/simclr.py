"""SimCLR: NT-Xent over tuples of any number of positives (Urkle paper, eq. 8 and 9)."""

import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import heads
from urkle_tf.pretexts.base import Pretext


def nt_xent(z, temperature=0.5, denominator="negatives"):
  """The normalised temperature-scaled cross entropy, averaged over positive pairs.

  For the tuple t_i of example i, with s(a, b) the cosine similarity over the temperature:

      1 / (t (t - 1)) sum_{a, b in t_i, a != b}  log D(a) - s(a, b)

  Equation 9 of the Urkle paper lacks the -log (taken literally it would push positives
  apart) and has a sum over pairs; the mean keeps the weight of the KL term beside it the
  same for any batch and tuple size.

  Args:
    z: float32 [n, t, d] on this replica, t at least 2; negatives come from all replicas.
    temperature: above 0; 0.5 in the paper.
    denominator: "negatives", as eq. 9: D(a) = sum of exp s(a, c) over the members c of all
      other tuples; or "all", as SimCLR: over every other embedding, positives included.

  Returns:
    float32 [n].
  """
  n, members = tf.shape(z)[0], z.shape[1]
  z = tf.math.l2_normalize(tf.cast(z, tf.float32), -1)
  everyone = distribution.gather(z)  # [N, t, d]
  total = tf.shape(everyone)[0]
  similarity = tf.einsum("itd,jsd->itjs", z, everyone) / temperature  # [n, t, N, t]
  own = tf.one_hot(distribution.replica_id() * n + tf.range(n), total, dtype=tf.float32)
  itself = own[:, None, :, None] * tf.eye(members)[None, :, None, :]
  excluded = (
    itself if denominator == "all" else tf.broadcast_to(own[:, None, :, None], tf.shape(itself))
  )
  positive = tf.einsum("itjs,ij->its", similarity, own)  # [n, t, t], within the own tuple
  pairs = members * (members - 1)
  attraction = (tf.reduce_sum(positive, [1, 2]) - tf.linalg.trace(positive)) / pairs
  # Excluded entries leave the log-sum-exp through -inf, which exp turns into an exact 0.
  repulsion = tf.reduce_logsumexp(tf.where(excluded > 0, -float("inf"), similarity), [2, 3])
  return tf.reduce_mean(repulsion, 1) - attraction


class SimCLR(Pretext):
  """Views of an image attract, other images repel (Chen et al., 2020).

  Args:
    temperature: of NT-Xent.
    denominator: "negatives" (eq. 9) or "all" (SimCLR's own); see `nt_xent`.
    projector: hidden width of the projector; 0 for none.
    projection: output width of the projector.
  """

  positives = True
  terms = ("nt_xent",)

  def __init__(self, temperature=0.5, denominator="negatives", projector=512, projection=128):
    super().__init__(name="simclr")
    if temperature <= 0:
      raise errors.UserError(f"temperature must be above 0, got {temperature}")
    if denominator not in ("negatives", "all"):
      raise errors.unknown("denominator", denominator, ("negatives", "all"))
    self.temperature, self.denominator = temperature, denominator
    self._widths = (projector, projection)
    self.projector = None

  def attach(self, encoder):
    """Makes the projector: Dense - batch norm - ReLU - Dense."""
    if self._widths[0]:
      self.projector = heads.mlp(encoder.latent_dim, self._widths, "projector")

  def loss(self, representations, aux, training=True):
    """{"nt_xent": [n]} of the projected z."""
    del aux
    z = representations.z  # [n, t, d_z]
    if self.projector is not None:
      z = self.projector(representations.flat, training=training)
      z = tf.reshape(z, [-1, representations.z.shape[1], z.shape[-1]])
    return {"nt_xent": nt_xent(z, self.temperature, self.denominator)}
