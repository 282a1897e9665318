"""The figures that a step reports besides its terms; docs/monitoring.md explains them."""

import tensorflow as tf

from urkle_tf.networks.kl import kl, kl_mean_part
from urkle_tf.networks.tuples import flat
from urkle_tf.training import attack_schedules

# Health of a run.
DIAGNOSTICS = (
  *("gradient_norm", "sigma_min", "sigma_mean", "sigma_max"),
  *("snr", "sigma_over_spread", "loc_std", "effective_rank"),
)
ATTACK_DIAGNOSTICS = ("attack_objective", "attack_distance", "zero_gradients")
PAIR_DIAGNOSTICS = ("kl_mean_part", "kl_scale_part")  # of an image and its adversary


class Diagnostics:
  """The figures that the steps of a cell of the grid report.

  Args:
    scheme: the `Robustness`.
    schedule: the schedule of the attack's steps.

  Attributes:
    names: the names of the figures, in their order in checkpoints.
  """

  def __init__(self, scheme, schedule):
    self._scheme = scheme
    # Whether each adversary's view is in the same pass, through the same batch norms.
    self._pairs = scheme.adversarial and scheme.clean is None and not scheme.dual
    names = list(DIAGNOSTICS)
    if scheme.adversarial:
      names += ATTACK_DIAGNOSTICS + (PAIR_DIAGNOSTICS if self._pairs else ())
      if type(schedule) is not attack_schedules.Constant:
        names.append("attack_steps")
    if "kl" in scheme.terms:
      names.append("effective_k")
    self.names = tuple(names)

  def of_attack(self, threat, targets, adversaries, info):
    """{name: float32 scalar} of an attack.

    Args:
      threat: the `ThreatModel`.
      targets: float32 [n, a, h, w, c].
      adversaries: their adversaries, of the same shape.
      info: the dict that the attack returned.
    """
    moved = tf.reduce_mean(threat.distance(flat(adversaries), flat(targets)))
    values = {
      "attack_objective": tf.reduce_mean(info["objective"]),
      "zero_gradients": info["zero_gradients"],
      "attack_distance": moved / max(threat.epsilon, 1e-12),
    }
    return values | ({"attack_steps": info["steps"]} if "steps" in info else {})

  def of_pass(self, normal, views):
    """{name: float32 scalar} of a training pass.

    Args:
      normal: `tfp.distributions.Normal` of [n, members, d_z], the views first.
      views: how many members are views; the others are adversaries of the first ones.
    """
    loc, scale = normal.loc, normal.scale
    first = loc[:, 0]
    spread = tf.sqrt(tf.reduce_mean(tf.math.reduce_variance(first, 0)) + 1e-12)
    values = {
      "sigma_min": tf.reduce_min(scale),
      "sigma_mean": tf.reduce_mean(scale),
      "sigma_max": tf.reduce_max(scale),
      "snr": tf.reduce_mean(tf.abs(loc) / scale),
      "sigma_over_spread": tf.reduce_mean(scale) / spread,
      "loc_std": tf.reduce_mean(tf.math.reduce_std(first, 0)),
      "effective_rank": effective_rank(first),
    }
    if "effective_k" in self.names:
      # The weight of 1 - cos: see `robustness.Urkle`.
      squares = tf.reduce_mean(tf.reduce_sum(tf.square(loc), -1))
      values["effective_k"] = self._scheme.weight * (squares / tf.reduce_mean(tf.square(scale)))
    adversaries = loc.shape[1] - views
    if self._pairs and adversaries:
      part = lambda low, high: type(normal)(loc[:, low:high], scale[:, low:high])  # noqa: E731
      clean, adversary = part(0, adversaries), part(views, views + adversaries)
      mean_part = kl_mean_part(clean, adversary)
      values["kl_mean_part"] = tf.reduce_mean(mean_part)
      values["kl_scale_part"] = tf.reduce_mean(kl(clean, adversary) - mean_part)
    return values


def effective_rank(loc):
  """The number of dimensions that a batch of representations spans: tr(C)^2 / tr(C^2).

  C is the covariance of loc over the batch; 1 for a line, d_z for an isotropic cloud.

  Args:
    loc: float32 [n, d_z].

  Returns:
    float32 scalar.
  """
  centred = loc - tf.reduce_mean(loc, 0)
  gram = tf.matmul(centred, centred, transpose_b=True)  # [n, n]: the non-zero spectrum of C
  return tf.square(tf.linalg.trace(gram)) / (tf.reduce_sum(tf.square(gram)) + 1e-12)
