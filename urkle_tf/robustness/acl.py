"""ACL: contrast between adversaries, with separate batch norms; and DynACL."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks import batch_norm
from urkle_tf.robustness import _contrast
from urkle_tf.robustness.base import Robustness

_FORMS = ("ds", "a2a", "a2s")


class ACL(Robustness):
  """Adversarial contrastive learning with views v1, v2 and their adversaries a1, a2.

      a2a   NT-Xent(a1, a2)                               adversarial to adversarial
      a2s   NT-Xent(v1, a2)                               adversarial to standard
      ds    1/2 NT-Xent(v1, v2) + 1/2 NT-Xent(a1, a2)     dual stream

  at z = loc (Jiang et al., "Robust pre-training by adversarial contrastive learning", 2020).  The
  attack finds both adversaries together, to maximise their NT-Xent; in a2s it finds a2 alone,
  against the clean v1.  In a2s and ds clean images have separate batch norms
  (`networks.batch_norm`) in the encoder and the projector.  The attack uses those of the loss that
  it maximises, in inference mode.  Its negatives are our reading: see `_contrast.objective`.

  The other arguments turn it into DynACL (Luo et al., "Rethinking the effect of data augmentation
  in adversarial contrastive learning", 2023: anneal 20 in 1,000 epochs, adversarial_weight 2/3, ema
  0.99).  Let s be the strength of the augmentation, 1 in the first of `anneal` stages of the
  training and 1 / anneal in the last, and lambda the `adversarial_weight`:

      w = lambda (1 - s)
      ds    (1 - w) / 2 NT-Xent(v1, v2) + (1 + w) / 2 NT-Xent(a1, a2)

  Its published code also embeds the second view, in loss and attack, by the moving average.  Here
  the average is only exported.

  Args:
    form: "ds", "a2a" or "a2s".
    anneal: the number of stages, at least 1 and of equal length, over which the augmentation loses
      its strength.  None keeps its strength.
    adversarial_weight: lambda, from 0 to 1; needs `anneal` and form ds.
    ema: decay per step of the moving average of weights and batch statistics that is exported as
      the encoder; at least 0 and below 1.  `Trainer(ema=...)` takes precedence.  None exports the
      encoder itself.

  Raises:
    UserError: for an option out of its range, or one that needs another option.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.ACL(form="ds")
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme, attack)
  ```
  """

  exact = True

  def __init__(self, form="ds", anneal=None, adversarial_weight=0.0, ema=None):
    errors.one_of("form of acl", form, _FORMS)
    if anneal is not None:
      errors.whole(1, "acl", anneal=anneal)
    errors.within("[0, 1]", "acl", adversarial_weight=adversarial_weight)
    if adversarial_weight and (anneal is None or form != "ds"):
      raise errors.UserError(
        f"acl: adversarial_weight needs anneal and form=ds, got anneal={anneal} and form={form}: "
        "give anneal=STAGES and form=ds, or leave it out"
      )
    if ema is not None:
      errors.within("[0, 1)", "acl", ema=ema)
    self.form, self.anneal, self.ema = form, anneal, ema
    self.adversarial_weight = adversarial_weight
    self.dual = form != "a2a"
    self.clean = {"a2a": 0, "a2s": 1, "ds": None}[form]

  def check(self, pretext):
    """The pretext must contrast two views."""
    _contrast.check("acl", pretext)

  def targets(self, views):
    """Both views; in a2s the second."""
    return views[:, 1:] if self.form == "a2s" else views

  def objective(self, encoder, pretext, views, aux):
    """NT-Xent of the adversaries, or in a2s of the first view and the adversary."""
    if self.form == "a2s":
      streams = (batch_norm.CLEAN, batch_norm.ADVERSARIAL)
      return _contrast.objective(encoder, pretext, views, [1], streams)
    return _contrast.objective(encoder, pretext, views, [0, 1])

  def strength(self, progress):
    """1 - floor(anneal * progress) / anneal, if `anneal` is given."""
    if self.anneal is None:
      return None
    # A stage begins with its first step, whatever the rounding of the quotient `progress`.
    stage = tf.floor(self.anneal * tf.convert_to_tensor(progress, tf.float32) + 1e-4)
    return 1.0 - stage / self.anneal

  def tuples(self, views, adversaries):
    """The adversaries; in a2s the first view and the adversary; in ds the views too."""
    if self.form != "ds":
      return [(1.0, (0, 1))]

    if not self.adversarial_weight:
      return [(0.5, (0, 1)), (0.5, (2, 3))]
    w = lambda progress: self.adversarial_weight * (1.0 - self.strength(progress))  # noqa: E731
    return [
      (lambda progress: (1.0 - w(progress)) / 2, (0, 1)),
      (lambda progress: (1.0 + w(progress)) / 2, (2, 3)),
    ]
