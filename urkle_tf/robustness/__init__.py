"""Robustness schemes: how adversaries are found and used.  One file each, found by its name."""

from urkle_tf.robustness.acl import ACL
from urkle_tf.robustness.adversarial_training import AdversarialTraining
from urkle_tf.robustness.base import Robustness
from urkle_tf.robustness.none import Plain
from urkle_tf.robustness.rocl import RoCL
from urkle_tf.robustness.trades import Trades
from urkle_tf.robustness.urkle import Urkle

__all__ = ["ACL", "AdversarialTraining", "Plain", "RoCL", "Robustness", "Trades", "Urkle"]
