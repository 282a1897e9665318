"""Encoders, backbones and heads.

```python
backbone = urkle_tf.networks.backbone("resnet18(width=16)", (32, 32, 3))
head = urkle_tf.networks.mlp(backbone.output_shape[-1], [10], "head")
logits = head(backbone(images))  # float32 [n, 10]
```
"""

from urkle_tf.networks.backbones import BACKBONES, backbone
from urkle_tf.networks.convnet import convnet
from urkle_tf.networks.decoder import decoder
from urkle_tf.networks.encoders import ExportedEncoder
from urkle_tf.networks.gaussian import GaussianEncoder
from urkle_tf.networks.heads import mlp
from urkle_tf.networks.kl import kl, kl_mean_part
from urkle_tf.networks.pooled import pooled
from urkle_tf.networks.representations import Representations
from urkle_tf.networks.resnet import resnet18, resnet50

__all__ = [
  "BACKBONES",
  "ExportedEncoder",
  "GaussianEncoder",
  "Representations",
  "backbone",
  "convnet",
  "decoder",
  "kl",
  "kl_mean_part",
  "mlp",
  "pooled",
  "resnet18",
  "resnet50",
]
