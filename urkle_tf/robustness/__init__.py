"""Robustness schemes: how adversaries are found and used.  Each is one file, found by its name.

```python
encoder = urkle_tf.GaussianEncoder(backbone)
scheme = urkle_tf.robustness.Urkle(k=8)
trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme, attack)
```
"""

from urkle_tf.robustness.acl import ACL
from urkle_tf.robustness.adversarial_training import AdversarialTraining
from urkle_tf.robustness.base import Robustness
from urkle_tf.robustness.none import Plain
from urkle_tf.robustness.rocl import RoCL
from urkle_tf.robustness.trades import Trades
from urkle_tf.robustness.urkle import Urkle

SHARED = ("anchored",)  # modules that hold no scheme: see `spec.names`
__all__ = ["ACL", "AdversarialTraining", "Plain", "RoCL", "Robustness", "Trades", "Urkle"]
