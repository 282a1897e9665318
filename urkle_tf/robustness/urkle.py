"""Urkle: the KL divergence between an image's Gaussian and its worst neighbour's."""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.networks.bounds.kl import kl_bound
from urkle_tf.networks.kl import kl, kl_objective
from urkle_tf.networks.tuples import flat
from urkle_tf.robustness import _grad_align, anchored
from urkle_tf.robustness.base import Robustness


class Urkle(Robustness):
  """Adds beta * mean_x max_{x' in A(x)} KL[p(z|x) || p(z|x')] (Urkle paper, eq. 10 to 12).

  If sigma is the same everywhere and loc has length sqrt(d), as on a sphere,

      KL[p(z|x) || p(z|x')] = d / sigma^2 (1 - cos(loc, loc')),

  so with beta = k sigma^2 / d, the weight of 1 - cos is k, which does not depend on d or sigma.

  Args:
    k: the strength in these units, at least 0: beta = k max_scale^2 / d_z.  DeACL's weight of 1 -
      cos is 2.
    beta: beta_robust, the weight of the KL term in nats, instead of k; at least 0.  Without k and
      beta, the pretext's default applies (`Pretext.strength`).
    positives: whether adversaries join their views as further positives (eq. 12), if the pretext's
      tuples can grow.
    attacked: how many views are attacked; None for all, as in the paper.  The views of an image
      have the same distribution, so attacking one of two estimates the same expectation at half the
      cost.
    anchor: "original" for KL[p0(z|x) || p(z|x')] in attack and loss, with p0 of the frozen original
      (`robustness.anchored`); it needs the pretext `keep`.
    align: the weight of GradAlign in the loss, at least 0, for attacks of one step.  It measures
      how far the encoder is from linear within the ball (`_grad_align`).
    certified: the share of the KL's weight, in [0, 1], that goes to an upper bound of the KL by
      intervals (`networks.bounds.kl`) instead of what the attack finds.  With 1, no attack runs,
      and no adversaries join as positives.  As in other training with intervals (Gowal et al.,
      2018), epsilon and the weight should rise slowly.

  Raises:
    UserError: for an option out of its range, or options that exclude each other.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.Urkle(k=8)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme, attack)
  ```
  """

  sigma = True
  stochastic = True
  terms: tuple[str, ...] = ("kl",)

  def __init__(
    self, k=None, beta=None, positives=True, attacked=None, align=0.0, anchor=None, certified=0.0
  ):
    if k is not None and beta is not None:
      raise errors.UserError(
        f"urkle: got k={k} and beta={beta}, which set the same weight: leave one of them out"
      )
    given = {"k": k, "beta": beta}
    self._strength = {name: value for name, value in given.items() if value is not None}
    errors.at_least(0, "urkle", align=align, **self._strength)
    errors.whole(1, "urkle", attacked=1 if attacked is None else attacked)
    errors.within("[0, 1]", "urkle", certified=certified)
    self.k, self.beta, self.positives, self.attacked = k, beta, positives, attacked
    if anchor not in (None, "original"):
      raise errors.UserError(f"urkle: anchor must be original, or left out, got {anchor!r}")
    if certified and (anchor or align):
      raise errors.UserError(
        "urkle: certified cannot be combined with anchor or align: leave one of them out"
      )
    self.align, self.anchor, self.certified = align, anchor, float(certified)
    self.adversarial = certified < 1
    optional = {"kl": self.adversarial, "misalignment": align, "certified": certified}
    self.terms = tuple(name for name, there in optional.items() if there)

  def check(self, pretext):
    """Needs a random z; adversaries join as positives only if tuples can grow."""
    if not pretext.samples:
      raise errors.UserError(
        f"urkle needs a random z, and {pretext.name} uses z = mu, for which there is no KL: use "
        "--pretext=vae, which samples z, or --robustness=trades"
      )
    if pretext.anchors != (self.anchor == "original"):
      raise errors.UserError(
        '--pretext=keep and --robustness="urkle(anchor=original)" go together: give both or neither'
      )
    self._grow = self.positives and pretext.positives
    if self.attacked is not None and self.attacked > pretext.views:
      raise errors.UserError(
        f"urkle: attacked={self.attacked}, but {pretext.name} makes only {pretext.views} views of "
        "an image"
      )

  def attach(self, encoder, pretext):
    """Sets `weight`, the weight of the KL in nats."""
    self._encoder = encoder
    if self.certified:  # so that a layer without a rule is refused before training starts
      kl_bound(encoder, tf.zeros([1, *encoder.image_shape]), 0.0)
    given = self._strength or pretext.strength
    unit = encoder.max_scale**2 / encoder.latent_dim
    self.weight = given["beta"] if "beta" in given else given["k"] * unit

  def targets(self, views):
    """The first `attacked` views."""
    return views[:, : self.attacked]

  def objective(self, encoder, pretext, views, aux):
    """The KL in closed form, never an estimate from samples of z."""
    if self.anchor:
      return anchored.objective(encoder, flat(self.targets(aux)))
    return kl_objective(encoder, flat(self.targets(views)))

  def tuples(self, views, adversaries):
    """One tuple of the views, or of the views and their adversaries."""
    return [(1.0, range(views + adversaries if self._grow else views))]

  def losses(self, pretext, representations, views, aux):
    """{"kl": (weight, mean over the attacked views of KL[clean || adversary])} (eq. 11)."""
    if not self.adversarial:
      return {}
    adversaries = representations.normal.loc.shape[1] - views
    if self.anchor:
      clean = anchored.original(self._encoder, self.targets(aux))
    else:
      clean = representations.take(range(adversaries)).normal
    adversary = representations.take(range(views, views + adversaries)).normal
    weight = (1 - self.certified) * self.weight
    return {"kl": (weight, tf.reduce_mean(kl(clean, adversary), 1))}  # minimised through both

  def penalties(self, encoder, targets, threat, seed):
    """{"misalignment": (align, [m])} or {"certified": (weight, [m])}, if their options are set."""
    if self.certified:
      bound = kl_bound(encoder, targets, threat.epsilon, training=not encoder.inference)
      return {"certified": (self.certified * self.weight, bound)}
    if not self.align:
      return {}
    return {"misalignment": (self.align, _grad_align.misalignment(encoder, targets, threat, seed))}
