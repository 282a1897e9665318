"""What a pretext task is to the trainer."""

import keras


class Pretext(keras.layers.Layer):
  """What is learnt: a loss over tuples of representations of the same image.

  A pretext owns its heads (made in `attach`, so that every variable exists before the first
  step), and turns representations into per-example losses.  It knows nothing of attacks.

  Attributes:
    views: how many augmented views of an image it wants.
    needs_labels: whether its batches must hold "label".
    stochastic: whether it consumes the sampled z by itself, whatever the robustness term.
    positives: whether its tuples may grow, so that adversaries join them as positives.
    terms: names of the entries that `loss` returns.
  """

  views = 2
  needs_labels = False
  stochastic = False
  positives = False
  terms: tuple[str, ...] = ()

  def attach(self, encoder):
    """Makes the heads for a `GaussianEncoder`; called once, by the trainer."""

  def prepare(self, batch):
    """Returns what needs no gradient (targets, labels), from a batch's dict."""
    del batch

  def loss(self, representations, aux):
    """The loss of a tuple.

    Args:
      representations: a `Representations` of [n, t, d_z].
      aux: what `prepare` returned.

    Returns:
      {term: float32 [n]}, one value an example.
    """
    raise NotImplementedError

  def after_step(self, encoder):
    """Moves averages once the step has been applied."""
