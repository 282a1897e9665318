"""Pretexts: what is learnt.  One file each, found by its name."""

from urkle_tf.pretexts.ae import AE
from urkle_tf.pretexts.base import Pretext
from urkle_tf.pretexts.simclr import SimCLR
from urkle_tf.pretexts.supervised import Supervised
from urkle_tf.pretexts.vae import VAE

__all__ = ["AE", "VAE", "Pretext", "SimCLR", "Supervised"]
