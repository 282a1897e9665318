"""RandAugment of keras-cv, as a pure function of an image's noise.

Only for the input pipeline: keras-cv augments one image at a time.
"""

import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import augment

WORKS = ">=0.9,<0.10"  # the versions of keras-cv that have these private parts, as in setup.py


class _Stream:
  """Random numbers for keras-cv's layers, from one seed.

  It has the methods of `tf.random.Generator` that the layers call.  They do so in loops and
  branches of the graph, so the number of draws must be state.  Each execution has its own resource
  for that, so executions can run in parallel.
  """

  # TensorFlow's name for resources that are not shared.
  _ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"

  def __init__(self, seed):
    self._seed = seed
    self._count = tf.raw_ops.VarHandleOp(dtype=tf.int32, shape=[], shared_name=self._ANONYMOUS)
    tf.raw_ops.AssignVariableOp(resource=self._count, value=0)

  def _next(self):
    count = tf.raw_ops.ReadVariableOp(resource=self._count, dtype=tf.int32)
    tf.raw_ops.AssignAddVariableOp(resource=self._count, value=1)
    return tf.random.experimental.stateless_fold_in(self._seed, count)

  def uniform(self, shape, minval=0, maxval=None, dtype=tf.float32):
    maxval = 1 if maxval is None else maxval
    return tf.random.stateless_uniform(shape, self._next(), minval, maxval, dtype)

  def normal(self, shape, mean=0.0, stddev=1.0, dtype=tf.float32):
    return tf.random.stateless_normal(shape, self._next(), mean, stddev, dtype)

  def close(self):
    tf.raw_ops.DestroyResourceOp(resource=self._count)


class _Sampler:
  """A keras-cv factor sampler that draws from a `_Stream`."""

  def __init__(self, factor, stream):
    self._factor = factor
    self._stream = stream

  def __call__(self, shape=(), dtype="float32"):
    factor, dtype = self._factor, tf.as_dtype(dtype)
    if hasattr(factor, "stddev"):
      value = self._stream.normal(shape, factor.mean, factor.stddev, dtype)
      return tf.clip_by_value(value, factor.min_value, factor.max_value)
    return self._stream.uniform(shape, factor.lower, factor.upper, dtype)


def _check(layer):
  """Raises `UserError` if a keras-cv layer lacks the parts that `_lead` replaces."""
  import keras_cv

  samplers = ("NormalFactorSampler", "UniformFactorSampler")
  parts = hasattr(layer, "_random_generator") and hasattr(layer, "_flatten_layers")
  if not (parts and all(hasattr(keras_cv.core, name) for name in samplers)):
    raise errors.UserError(
      f"randaugment does not work with keras-cv {keras_cv.__version__}: pip install "
      f"'keras-cv{WORKS}'"
    )


def _lead(layer, stream):
  """Makes a keras-cv layer, and those inside it, draw from `stream`."""
  import keras_cv

  random = (keras_cv.core.NormalFactorSampler, keras_cv.core.UniformFactorSampler)
  for inner in layer._flatten_layers():
    inner._random_generator = stream
    for name, value in list(vars(inner).items()):
      if isinstance(value, random):
        setattr(inner, name, _Sampler(value, stream))


class RandAugment(augment.Recipe):
  """Cubuk et al., "RandAugment", by keras-cv, after another recipe.

  keras-cv's layers draw from generators and from global random ops.  Here every such draw comes
  from a `_Stream` seeded by the image's own noise.

  Args:
    operations: how many operations an image gets.
    magnitude: mean strength, from 0 to 10.
    deviation: standard deviation of the strength, on the same scale.
    geometric: whether images are also sheared and moved.
    base: spec of the recipe that is applied before, in quotes if it has options:
      `base="simclr(strength=0.5)"`; None for the images themselves.
  """

  on_device = False

  def __init__(self, operations=2, magnitude=5, deviation=1.5, geometric=True, base="crop"):
    errors.whole(1, "randaugment", operations=operations)
    errors.within("[0, 10]", "randaugment", magnitude=magnitude, deviation=deviation)
    self.operations, self.geometric = operations, geometric
    self.magnitude, self.deviation = magnitude, deviation
    self.base = augment.from_spec(base or "none")
    self.noise_size = self.base.noise_size + 2
    _check(self._layer())

  def _layer(self):
    import keras_cv

    strength = {"magnitude": self.magnitude / 10, "magnitude_stddev": self.deviation / 10}
    kinds = {"augmentations_per_image": self.operations, "geometric": self.geometric}
    return keras_cv.layers.RandAugment((0, 1), **strength, **kinds, dtype="float32")

  def __call__(self, images, noise, size=None):
    images = self.base(images, noise[:, :-2], size)
    shape = images.shape[1:]
    if shape[-1] == 1:
      images = tf.image.grayscale_to_rgb(images)
    # 24 bits each, as many as a float32 in [0, 1) holds.
    seeds = tf.cast(noise[:, -2:] * 2**24, tf.int32)
    # A layer for each trace, because it holds the trace's tensors.
    with tf.init_scope():
      layer = self._layer()

    @tf.function  # for its autograph, which keras-cv needs
    def augmented(example):
      image, seed = example
      stream = _Stream(seed)
      _lead(layer, stream)
      image = tf.ensure_shape(layer(image), [*shape[:2], 3])
      with tf.control_dependencies([image]):
        stream.close()
      return image

    images = tf.map_fn(
      augmented, (images, seeds), fn_output_signature=tf.float32, parallel_iterations=1
    )
    images = tf.clip_by_value(tf.ensure_shape(images, [None, *shape[:2], 3]), 0.0, 1.0)
    return images[..., : shape[-1]]


augment.RECIPES["randaugment"] = RandAugment
