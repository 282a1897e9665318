"""No robustness: the plain pretext."""

from urkle_tf.robustness.base import Robustness


class Plain(Robustness):
  """The pretext alone, on clean views and z = loc."""

  adversarial = False

  def tuples(self, views, adversaries):
    """One tuple of all the views."""
    return [(1.0, range(views))]
