"""Warnings for a training that goes wrong, from its metrics: the likely cause, and a flag."""

_PATIENCE = 3  # consecutive rows


class Alarms:
  """Watches rows of metrics, and warns once about each problem until it is gone.

  Args:
    learner: the `Trainer`.
    rows: rows of earlier processes of the run, whose warnings are not repeated.
  """

  def __init__(self, learner, rows=()):
    self._stochastic = bool(learner.pretext.stochastic or learner.robustness.stochastic)
    self._dimensions = learner.encoder.latent_dim
    self._rows_of = dict.fromkeys(_RULES, 0)
    self._was_robust = False
    self._standing: dict[str, str] = {}
    for row in rows:
      self.look(row)

  @property
  def standing(self):
    """The warnings that still hold, a list of lines."""
    return list(self._standing.values())

  def look(self, row):
    """The warnings for a row of metrics, a list of lines.

    A sign must show in three consecutive rows, or in one row of the probe, since these are rare.
    """
    said = []
    for name, (sign, patience, text) in _RULES.items():
      found = sign(self, row)
      if found is None:  # the row does not say
        continue
      self._rows_of[name] = self._rows_of[name] + 1 if found else 0
      if not found:
        self._standing.pop(name, None)
      if self._rows_of[name] == patience:
        self._standing[name] = text.format(**row, dimensions=self._dimensions)
        said.append(self._standing[name])
    self._was_robust |= bool(row.get("knn_robust_accuracy"))
    return said

  # Each returns whether its sign shows, or None if the row does not say.

  def _collapsed(self, row):
    value = row.get("effective_rank")
    return None if value is None else value < min(2.0, self._dimensions / 2)

  def _noisy(self, row):
    value = row.get("snr")
    return None if value is None or not self._stochastic else value < 1.0

  def _unmoved(self, row):
    value = _divergence(row)
    if value is None or row.get("attack_distance") is None:
      return None
    return value < 1e-3 and row["attack_distance"] < 0.5

  def _lost(self, row):
    value = row.get("drift")
    return None if value is None else value > 1.0

  def _indifferent(self, row):
    value = _divergence(row)
    if value is None or row.get("attack_distance") is None:
      return None
    return value < 1e-3 and row["attack_distance"] >= 0.5

  def _masked(self, row):
    value = row.get("zero_gradients")
    return None if value is None else value > 0.5

  def _beaten(self, row):
    value = row.get("knn_robust_accuracy")
    return None if value is None else value == 0 and self._was_robust


def _divergence(row):
  """The value that adversaries enlarge, if it is 0 for adversaries that do not move."""
  return row.get("kl", row.get("divergence"))


# {name: (sign, consecutive rows, message)}; docs/monitoring.md lists the same.
_RULES = {
  "collapse": (
    Alarms._collapsed,
    _PATIENCE,
    "the representation collapses: effective_rank is {effective_rank:.2f} of {dimensions}; the "
    "robustness term may outweigh the pretext: lower beta in --robustness, give "
    "--beta_warmup_epochs, or a larger --batch_size",
  ),
  "noise": (
    Alarms._noisy,
    _PATIENCE,
    "z is mostly noise: |mu| / sigma is {snr:.2f} on average, sigma {sigma_mean:.2f}, and noise "
    "alone makes the KL small: lower --max_scale, or beta in --robustness",
  ),
  "unmoved": (
    Alarms._unmoved,
    _PATIENCE,
    "the adversaries do not move ({attack_distance:.2f} of epsilon), so a divergence of 0 proves "
    "nothing: give a larger --attack_step_size, more --attack_steps, or a larger --epsilon",
  ),
  "indifferent": (
    Alarms._indifferent,
    _PATIENCE,
    "the adversaries move ({attack_distance:.2f} of epsilon) and the divergence is 0: the encoder "
    "may carry no information about images (effective_rank {effective_rank:.2f}), or its gradient "
    "is masked (zero_gradients {zero_gradients:.2f}): lower beta in --robustness, or give "
    "--beta_warmup_epochs",
  ),
  "masked": (
    Alarms._masked,
    _PATIENCE,
    "{zero_gradients:.0%} of the attack's input gradients are exactly 0: they underflow, or units "
    "are dead or saturated: give --precision=float32, or a lower --learning_rate",
  ),
  "lost": (
    Alarms._lost,
    _PATIENCE,
    "the embeddings moved farther from the original's than those lie apart (drift {drift:.3g}): "
    "the steps are too long for a trained model: give --optimizer=adamw and a lower "
    "--learning_rate, such as 1e-4",
  ),
  "beaten": (
    Alarms._beaten,
    1,
    "the probe's robust accuracy fell to 0 (clean: {knn_accuracy:.2f}): the inner attack may be "
    "too weak, or the robustness term too small: give more --attack_steps, or a larger beta",
  ),
}
