"""No robustness: the plain pretext."""

from urkle_tf.robustness.base import Robustness


class Plain(Robustness):
  """The pretext alone, on clean views and z = loc.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.Plain()
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme)
  ```
  """

  adversarial = False
