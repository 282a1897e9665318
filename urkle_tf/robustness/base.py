"""What a robustness scheme is to the trainer."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf.export import ExportedEncoder
from urkle_tf.networks.folding import fold
from urkle_tf.networks.gaussian import GaussianEncoder


def inference(encoder):
  """An encoder as an attack sees it: in inference mode, its weights as they are now.

  Args:
    encoder: images -> `tfp.distributions.Normal` [n, d_z]; takes `training`.  The batch norms
      of our own encoders are folded, here and once.

  Returns:
    A function of images to their Normal.
  """
  if type(encoder) not in (GaussianEncoder, ExportedEncoder):
    return lambda images: encoder(images, training=False)
  network = fold(encoder.network)

  def normal(images):
    outputs = network(images)
    return tfp.distributions.Normal(outputs["loc"], outputs["scale"])

  return normal


def flat(members):
  """Members one after the other: [n, t, h, w, c] -> [n * t, h, w, c], example-major."""
  return tf.reshape(members, [-1, *members.shape[2:]])


class Robustness:
  """How adversaries are found and used.

  A scheme says what the attack maximises, which images the encoder sees in the training
  pass, which tuples of them the pretext's loss is computed on, and which terms are added.

  Attributes:
    adversarial: whether an attack is run at all.
    clean: whether the training pass holds the clean views, too, and not the adversaries alone.
    stochastic: whether the pretext is given the sampled z (else z = loc).
    terms: names of the entries that `losses` returns.
  """

  adversarial = True
  clean = True
  stochastic = False
  terms: tuple[str, ...] = ()

  def check(self, pretext):
    """Raises `UserError` if this scheme makes no sense with `pretext`."""

  def targets(self, views):
    """The images to attack, of views [n, v, h, w, c]: [n, a, h, w, c]."""
    return views

  def objective(self, encoder, pretext, views, aux):
    """What the attack maximises; it starts from `flat(self.targets(views))`.

    Args:
      encoder: the `GaussianEncoder`.
      pretext: the `Pretext`.
      views: float32 [n, v, h, w, c].
      aux: what the pretext prepared for the n examples.

    Returns:
      A function of images [m, h, w, c], the targets' neighbours, m = n * a, to float32 [m].
    """
    raise NotImplementedError

  def tuples(self, views, adversaries):
    """The tuples the pretext's loss is computed on.

    The training pass holds the views first, if at all, then the adversaries.

    Args:
      views: how many views the pass holds.
      adversaries: how many adversaries.

    Returns:
      A list of (weight, members), members being positions in the pass.  A weight is a number,
      or a function of how much of the training lies behind, float32 scalar in [0, 1].
    """
    raise NotImplementedError

  def losses(self, pretext, representations, views):
    """The added terms.

    Args:
      pretext: the `Pretext`.
      representations: `Representations` of the whole pass [n, views + adversaries, d_z].
      views: how many of the members are views.

    Returns:
      {term: (weight, float32 [n])}.
    """
    del pretext, representations, views
    return {}
