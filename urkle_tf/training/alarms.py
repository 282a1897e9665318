"""Warnings for a training that goes wrong: the likely cause, and a flag that helps."""

_PATIENCE = 3  # consecutive rows


class Alarms:
  """Watches rows of metrics, and warns about each problem once until it is gone.

  Args:
    learner: the `Trainer`.
    rows: rows of earlier processes of the run, whose warnings are not repeated.
  """

  def __init__(self, learner, rows=()):
    self.stochastic = bool(learner.pretext.stochastic or learner.robustness.stochastic)
    self._dimensions = learner.encoder.latent_dim
    self._rows_of = dict.fromkeys(_RULES, 0)
    self.was_robust = False
    self._standing: dict[str, str] = {}
    for row in rows:
      self.look(row)

  @property
  def standing(self):
    """The warnings that still hold, a list of lines."""
    return list(self._standing.values())

  def look(self, row):
    """The warnings for a row of metrics, a list of lines.

    A sign must show in three consecutive rows, or in one row of the probe, because these are rare.
    """
    said = []
    # What the adversaries enlarge, if it is 0 for adversaries that do nothing.
    divergence = row.get("kl", row.get("divergence"))
    row = {**row, "divergence": divergence, "dimensions": self._dimensions}
    for name, (needed, sign, patience, text) in _RULES.items():
      if any(row.get(key) is None for key in needed):  # the row lacks a figure
        continue
      found = sign(self, row)
      self._rows_of[name] = self._rows_of[name] + 1 if found else 0
      if not found:
        self._standing.pop(name, None)
      if self._rows_of[name] == patience:
        self._standing[name] = text.format(**row)
        said.append(self._standing[name])
    self.was_robust |= bool(row.get("knn_robust_accuracy"))
    return said


# {name: (figures it needs, whether the sign is there, consecutive rows, the warning)};
# docs/monitoring.md lists the same.
_RULES = {
  "collapse": (
    ("effective_rank",),
    lambda alarms, row: row["effective_rank"] < min(2.0, row["dimensions"] / 2),
    _PATIENCE,
    "the representation collapses: effective_rank is {effective_rank:.2f} of {dimensions}; the "
    "robustness term may outweigh the pretext: lower beta in --robustness, give "
    "--beta_warmup_epochs, or a larger --batch_size",
  ),
  "noise": (
    ("snr",),
    lambda alarms, row: alarms.stochastic and row["snr"] < 1.0,
    _PATIENCE,
    "z is mostly noise: |mu| / sigma is {snr:.2f} on average, sigma {sigma_mean:.2f}, and noise "
    "alone makes the KL small: lower --max_scale, or beta in --robustness",
  ),
  "unmoved": (
    ("divergence", "attack_distance"),
    lambda alarms, row: row["divergence"] < 1e-3 and row["attack_distance"] < 0.5,
    _PATIENCE,
    "the adversaries do not move ({attack_distance:.2f} of epsilon), so a divergence of 0 proves "
    "nothing: give a larger --attack_step_size, more --attack_steps, or a larger --epsilon",
  ),
  "indifferent": (
    ("divergence", "attack_distance"),
    lambda alarms, row: row["divergence"] < 1e-3 and row["attack_distance"] >= 0.5,
    _PATIENCE,
    "the adversaries move ({attack_distance:.2f} of epsilon) and the divergence is 0: the encoder "
    "may carry no information about images (effective_rank {effective_rank:.2f}), or its gradient "
    "is masked (zero_gradients {zero_gradients:.2f}): lower beta in --robustness, or give "
    "--beta_warmup_epochs",
  ),
  "masked": (
    ("zero_gradients",),
    lambda alarms, row: row["zero_gradients"] > 0.5,
    _PATIENCE,
    "{zero_gradients:.0%} of the attack's input gradients are exactly 0, because they underflow, "
    "or units are dead or saturated: give --precision=float32, or a lower --learning_rate",
  ),
  "lost": (
    ("drift",),
    lambda alarms, row: row["drift"] > 1.0,
    _PATIENCE,
    "the embeddings moved farther from the original's than these are from each other (drift "
    "{drift:.3g}), so the steps are too long for a trained model: give --optimizer=adamw and a "
    "lower --learning_rate, such as 1e-4",
  ),
  "beaten": (
    ("knn_robust_accuracy",),
    lambda alarms, row: row["knn_robust_accuracy"] == 0 and alarms.was_robust,
    1,
    "the probe's robust accuracy fell to 0 (clean: {knn_accuracy:.2f}): the inner attack may be "
    "too weak, or the robustness term too small: give more --attack_steps, or a larger beta",
  ),
}
