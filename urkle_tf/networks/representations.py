"""A batch of tuples of Gaussian representations, with one z of each."""

import dataclasses

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import errors
from urkle_tf.networks import batch_norm
from urkle_tf.networks.tuples import flat, folded


def checked(images):
  """Refuses integer images, which a network would treat as values in [0, 1].

  Args:
    images: a network's input.

  Returns:
    The images.

  Raises:
    UserError: if they are not floats.
  """
  dtype = getattr(images, "dtype", None)
  if dtype is not None and not tf.as_dtype(dtype).is_floating:
    name = tf.as_dtype(dtype).name
    raise errors.UserError(f"images must be float32 in [0, 1], got {name}: divide by 255")
  return images


@dataclasses.dataclass(frozen=True)
class Representations:
  """Representations of n examples with t members each (views, adversaries).

  Attributes:
    normal: `tfp.distributions.Normal` of batch shape [n, t, d_z]: p(z|x).
    z: float32 [n, t, d_z]: one sample of it, or its loc without noise.
    streams: the members' batch-norm streams, t names; empty if there is only one stream.

  ```python
  views = np.stack([images, images[:, :, ::-1]], 1)  # [n, 2, h, w, c]
  normal = encoder(views.reshape(-1, *images.shape[1:]))  # of [n * 2, d_z]
  pairs = urkle_tf.networks.Representations.of(normal, members=2)
  z = pairs.z  # float32 [n, 2, d_z]
  ```
  """

  normal: tfp.distributions.Normal
  z: tf.Tensor
  streams: tuple[str, ...] = ()

  @classmethod
  def of(cls, normal, members, noise=None, streams=()):
    """Folds an encoder's output into tuples.

    Args:
      normal: `Normal` of [n * t, d_z], example-major.
      members: t.
      noise: standard normal [n * t, d_z] for the reparameterised sample
        z = loc + scale * noise; None for z = loc.
      streams: the members' streams.
    """
    z = normal.loc if noise is None else normal.loc + normal.scale * noise
    loc, scale, z = (folded(rows, members) for rows in (normal.loc, normal.scale, z))
    return cls(tfp.distributions.Normal(loc, scale), z, tuple(streams))

  def take(self, members):
    """The sub-tuples of these members (a list of Python ints): [n, len(members), d_z]."""
    pick = lambda tensor: tf.gather(tensor, list(members), axis=1)  # noqa: E731
    normal = tfp.distributions.Normal(pick(self.normal.loc), pick(self.normal.scale))
    streams = tuple(self.streams[member] for member in members) if self.streams else ()
    return Representations(normal, pick(self.z), streams)

  @property
  def flat(self):
    """The z of all members, one after the other: float32 [n * t, d_z], example-major."""
    return flat(self.z)

  def through(self, head):
    """The outputs of a head for the z of all members, with one call per stream.

    Args:
      head: (z float32 [m, d_z], stream) -> [m, ...].

    Returns:
      [n * t, ...], example-major.
    """
    streams = self.streams or (batch_norm.ADVERSARIAL,) * self.z.shape[1]
    return batch_norm.by_stream(head, self.z, streams)

  def repeat(self, rows):
    """Rows of the n examples, once for each member: [n, ...] -> [n * t, ...]."""
    return tf.repeat(rows, self.z.shape[1], axis=0)

  def mean(self, values):
    """The mean over each tuple's members: [n * t] -> [n]."""
    return tf.reduce_mean(folded(values, self.z.shape[1]), 1)
