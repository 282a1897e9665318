"""Pretexts: what is learnt.  One file each, found by its name."""

from urkle_tf.pretexts.base import Pretext
from urkle_tf.pretexts.simclr import SimCLR

__all__ = ["Pretext", "SimCLR"]
