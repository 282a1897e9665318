"""Adversarial training (Madry et al., 2018)."""

from urkle_tf import errors
from urkle_tf.networks.representations import Representations
from urkle_tf.robustness.base import Robustness


class AdversarialTraining(Robustness):
  """Trains only on the images that maximise the loss of a class.

      min E[max_{x' in A(x)} -log p(y|x')]

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone, loc="dense")
  scheme = urkle_tf.robustness.AdversarialTraining()
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.Supervised(outputs=10), scheme, attack)
  ```
  """

  clean = 0
  exact = True

  def check(self, pretext):
    """There must be a class for each image."""
    if not pretext.targeted:
      raise errors.UserError(
        f"adversarial_training needs a class for each image, and {pretext.name} has none: use "
        "--pretext=supervised or --pretext=clusters, or --robustness=urkle"
      )

  def objective(self, encoder, pretext, views, aux):
    """The pretext's loss at z = loc, in inference mode."""
    represent = encoder.frozen()

    def loss(neighbours):
      representations = Representations.of(represent(neighbours), 1)
      (value,) = pretext.loss(representations, aux, training=False).values()
      return value

    return loss

  def tuples(self, views, adversaries):
    """The adversary."""
    return [(1.0, range(views, views + adversaries))]
