"""The interface between a robustness scheme and the trainer."""

from urkle_tf.networks import batch_norm


class Robustness:
  """How adversaries are found and used.

  A scheme decides what the attack maximises, which images the encoder sees in the training pass,
  which tuples of them the pretext's loss is computed on, and which terms are added.

  Attributes:
    adversarial: whether it needs an attack at all.
    certified: the share of an added term that is a certified bound.  It needs an attack's threat
      model, in l_inf.
    clean: how many views the training pass holds besides the adversaries, the first ones; None for
      all.
    dual: whether clean images have separate batch norms (`networks.batch_norm`).
    exact: whether batches with more views than the pretext needs are refused.
    ema: the default decay per step of the moving average that is exported instead of the encoder,
      at least 0 and below 1; None for no average.
    sigma: whether it needs the bounds of sigma, which only a `GaussianEncoder` has.
    stochastic: whether the pretext gets a sampled z (else z = loc).
    terms: names of the entries that `losses` returns.
    weight: after `attach`, the weight of the KL in nats, if "kl" is one of the terms.

  ```python
  scheme = urkle_tf.robustness.RoCL()  # a Robustness
  scheme.check(urkle_tf.pretexts.SimCLR())  # SimCLR contrasts two views, so nothing is raised
  tuples = scheme.tuples(views=2, adversaries=1)  # [(weight, positions in the pass), ...]
  ```
  """

  adversarial = True
  certified = 0.0
  clean: int | None = None
  dual = False
  exact = False
  ema: float | None = None
  sigma = False
  stochastic = False
  terms: tuple[str, ...] = ()
  weight = 0.0

  def check(self, pretext):
    """Raises `UserError` if this scheme makes no sense with `pretext`."""

  def attach(self, encoder, pretext):
    """Reads from a `GaussianEncoder` what the weights depend on; called once, by the trainer."""

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

  def strength(self, progress):
    """The strength of the augmentation, as a factor on the recipe's own strength.

    Args:
      progress: the share of the training that is done, a float32 scalar in [0, 1].

    Returns:
      A float32 scalar; None if the recipe does not change.
    """

  def streams(self, views, adversaries):
    """The batch-norm stream of each member of the training pass, a tuple of names.

    Args:
      views: how many views the pass holds.
      adversaries: how many adversaries.
    """
    clean = batch_norm.CLEAN if self.dual else batch_norm.ADVERSARIAL
    return (clean,) * views + (batch_norm.ADVERSARIAL,) * adversaries

  def tuples(self, views, adversaries):
    """The tuples that the pretext's loss is computed on; by default one, of all views.

    The training pass holds the views first, if any, then the adversaries.

    Args:
      views: how many views the pass holds.
      adversaries: how many adversaries.

    Returns:
      A list of (weight, members), members being positions in the pass.  A weight is a number, or a
      function of the share of the training that is done, a float32 scalar in [0, 1].
    """
    return [(1.0, range(views))]

  def losses(self, pretext, representations, views, aux):
    """The added terms.

    Args:
      pretext: the `Pretext`.
      representations: `Representations` of the whole pass [n, views + adversaries, d_z].
      views: how many of the members are views.
      aux: what the pretext prepared for the n examples.

    Returns:
      {term: (weight, float32 [n])}.
    """
    return {}

  def penalties(self, encoder, targets, threat, seed):
    """The added terms that need separate passes.

    Args:
      encoder: the `GaussianEncoder`.
      targets: the images whose neighbours count, float32 [m, h, w, c].
      threat: the attack's `ThreatModel`, with the epsilon of this step; None without an attack.
      seed: int32 [2].

    Returns:
      {term: (weight, float32 [m])}.
    """
    return {}
