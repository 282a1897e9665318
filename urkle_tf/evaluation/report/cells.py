"""Cells of tables that several parts of a report have."""

from urkle_tf.evaluation.report.document import Share


def share(row, prefix=""):
  """A row's accuracy with its interval."""
  return Share(row[f"{prefix}accuracy"], row[f"{prefix}interval"])


def calibration(row):
  """A row's NLL, ECE and Brier score."""
  return [f"{row[name]:.4f}" for name in ("nll", "ece", "brier")]
