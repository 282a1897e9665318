"""Pretexts: what an encoder learns.  Each is one file, found by its name.

```python
encoder = urkle_tf.GaussianEncoder(backbone)
trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR())
```
"""

from urkle_tf.pretexts.ae import AE
from urkle_tf.pretexts.barlow_twins import BarlowTwins
from urkle_tf.pretexts.base import Pretext
from urkle_tf.pretexts.byol import BYOL
from urkle_tf.pretexts.clusters import Clusters
from urkle_tf.pretexts.distil import Distil
from urkle_tf.pretexts.keep import Keep
from urkle_tf.pretexts.simclr import SimCLR
from urkle_tf.pretexts.simsiam import SimSiam
from urkle_tf.pretexts.supervised import Supervised
from urkle_tf.pretexts.vae import VAE
from urkle_tf.pretexts.vicreg import VICReg

__all__ = [
  "AE",
  "BYOL",
  "VAE",
  "BarlowTwins",
  "Clusters",
  "Distil",
  "Keep",
  "Pretext",
  "SimCLR",
  "SimSiam",
  "Supervised",
  "VICReg",
]
