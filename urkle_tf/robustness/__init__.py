"""Robustness schemes: how adversaries are found and used.  One file each, found by its name."""

from urkle_tf.robustness.base import Robustness
from urkle_tf.robustness.none import Plain
from urkle_tf.robustness.urkle import Urkle

__all__ = ["Plain", "Robustness", "Urkle"]
