"""The Urkle regulariser on its own, for any model and any training loop."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import attacks, distribution, errors
from urkle_tf.attacks.base import assert_pixels
from urkle_tf.networks import keras_private, representations
from urkle_tf.networks.encoders import Encoder
from urkle_tf.networks.folding import fold
from urkle_tf.networks.kl import kl, kl_from

_SCALE = 0.5  # of features, in units of their spread


def kl_robustness(encoder, images, attack, seed=None, training=False, scale=_SCALE):
  """Max over x' in A(x) of KL[p(z|x) || p(z|x')] for each image (Urkle paper, eq. 4 and 10).

  It is differentiable in the encoder's weights, through both distributions.  Add its mean, times
  beta, to any loss.

  Args:
    encoder: a Keras model or layer, or a function that takes `training`: images -> a
      `tfp.distributions.Normal` [n, d_z]; or {"loc", "scale"}; or features [n, ..., d], which
      are averaged over the axes in between.
    images: float32 [n, h, w, c] in [0, 1].
    attack: for example `attacks.PGD(attacks.Linf(epsilon=8 / 255), steps=7)`.
    seed: int32 [2] of the attack's random start; None draws one.
    training: the mode of the pass that is differentiated; the attack itself always runs in
      inference mode.
    scale: above 0; for features, their sigma in units of their spread over the batch, the root of
      their variance averaged over the dimensions.  The KL is then

          sum_d (f_d(x) - f_d(x'))^2 / (2 scale^2 spread^2),

      which does not change when all features shrink.  For a batch of one image, the spread is the
      root mean square of its features.

  Returns:
    float32 [n], in nats, at least 0.

  Raises:
    UserError: for images that are not floats, do not fit the encoder, or are not within the
      attack's pixel bounds (in a `tf.function`, TensorFlow's error says so, and XLA returns NaN
      instead), an epsilon that looks like 0-255 units, an attack that looks for a decision
      boundary, an encoder of several outputs or of a single number, or a scale, its own or the
      argument, that is not above 0.

  ```python
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255), steps=7)
  nats = urkle_tf.kl_robustness(encoder, images, attack)  # float32 [n]
  penalty = 0.1 * tf.reduce_mean(nats)  # part of the loss of your own training loop
  ```
  """
  if not tf.is_symbolic_tensor(scale):
    errors.above(0, "kl_robustness", scale=scale)
  return _measure(encoder, images, attack, seed, training, scale)[1]


def _measure(encoder, images, attack, seed, training, scale):
  """(the encoder's outputs for the images, KL [n]), in one pass of images and adversaries."""
  _check(attack)
  images = _fitting(encoder, representations.checked(tf.convert_to_tensor(images)))
  with keras_private.losses_kept(encoder):  # what its layers add counts once, in the pass below
    frozen = fold(_network(encoder))
    clean = _each(tf.stop_gradient, _checked(frozen(images)))
    _check_scale(clean)
    sigma = _sigma(clean, scale)
    represent = lambda neighbours: _normal(frozen(neighbours), sigma)  # noqa: E731
    adversaries = attack(kl_from(_normal(clean, sigma), represent), images, seed)
  # Not the network of our own encoders: their call in training also follows the spread of loc, and
  # keeps a backbone in inference mode.
  both = encoder(tf.concat([images, tf.cast(adversaries, images.dtype)], 0), training=training)
  clean, attacked = (_each(lambda x, part=part: tf.split(x, 2)[part], both) for part in (0, 1))
  sigma = _sigma(clean, scale)
  nats = kl(_normal(clean, sigma), _normal(attacked, sigma))
  if tf.is_symbolic_tensor(images) and isinstance(attack, attacks.Attack):
    nats = assert_pixels(images, attack.threat, nats)
  return clean, nats


def _check(attack):
  """Raises `UserError` for what is not an attack, or finds no boundary, since the KL has none."""
  if not callable(attack):
    raise errors.UserError(
      f"the regulariser needs an attack, such as PGD(Linf(epsilon=8 / 255)), got {attack!r}"
    )
  if getattr(attack, "boundary", False):
    attack.check("training")


def _fitting(encoder, images):
  """The images; raises `UserError` if there are none, or the encoder takes other shapes."""
  wanted = getattr(_network(encoder), "input_shape", None)
  if isinstance(wanted, tuple) and not images.shape.is_compatible_with(wanted):
    shown = ", ".join("n" if side is None else str(side) for side in wanted)
    raise errors.UserError(f"the encoder takes images [{shown}], got {images.shape.as_list()}")
  if images.shape.rank and images.shape[0] == 0:
    raise errors.UserError("an empty batch of images has no KL: give at least one image")
  return images


def _network(encoder):
  """The model in inference mode: for our own encoders, the network beneath the Normal."""
  return encoder.network if isinstance(encoder, Encoder) else encoder


def _sigma(outputs, scale):
  """The sigma of features that an encoder returned; None if the encoder has its own sigma."""
  if isinstance(outputs, dict | tfp.distributions.Distribution):
    return None
  features = _features(outputs)
  # Sums, since replicas may hold different numbers of rows.
  count = distribution.total(tf.cast(tf.shape(features)[0], tf.float32))
  mean = distribution.total(tf.reduce_sum(features, 0)) / count
  centre = tf.where(count > 1, mean, 0.0)  # or the variance of a single image would be 0
  variance = distribution.total(tf.reduce_sum(tf.square(features - centre), 0)) / count
  return scale * tf.sqrt(tf.reduce_mean(variance) + 1e-12)


def _normal(outputs, sigma):
  """The p(z|x) of an encoder's outputs, float32: low precision does not resolve a sum over d_z."""
  outputs = _each(lambda x: tf.cast(x, tf.float32), outputs)
  if isinstance(outputs, tfp.distributions.Distribution):
    return outputs
  if isinstance(outputs, dict):
    return tfp.distributions.Normal(outputs["loc"], outputs["scale"])
  loc = _features(outputs)
  return tfp.distributions.Normal(loc, sigma * tf.ones_like(loc))


def _features(outputs):
  """float32 [n, d], averaged over space."""
  return tf.reduce_mean(tf.cast(outputs, tf.float32), list(range(1, outputs.shape.rank - 1)))


def _checked(outputs):
  """An encoder's outputs; raises `UserError` unless they are features or {"loc", "scale"}."""
  lacking = isinstance(outputs, dict) and not {"loc", "scale"} <= set(outputs)
  if isinstance(outputs, list | tuple) or lacking:
    raise errors.UserError(
      "the encoder returns several outputs: give the part of it that returns features, "
      "keras.Model(images, features), or loc and scale"
    )
  if tf.is_tensor(outputs) and outputs.shape.rank == 1:
    raise errors.UserError(
      "the encoder returns a single number for each image: give one that returns features [n, d]"
    )
  return outputs


def _check_scale(outputs):
  """Raises `UserError`, or in a graph stops, for a {"loc", "scale"} whose KL would be NaN."""
  if not isinstance(outputs, dict):
    return
  wrong = tf.reduce_any(outputs["scale"] <= 0)  # NaN, of a training that diverged, is not
  words = "the encoder's scale must be above 0: end it with activation='softplus'"
  if tf.is_symbolic_tensor(wrong):
    tf.debugging.Assert(~wrong, [words])
  elif wrong:
    raise errors.UserError(words)


def _each(function, outputs):
  """Applies a function of tensors to an encoder's outputs of any kind."""
  if isinstance(outputs, tfp.distributions.Distribution):
    return type(outputs)(function(outputs.loc), function(outputs.scale))
  return tf.nest.map_structure(function, outputs)


@keras.saving.register_keras_serializable("urkle_tf")
class UrkleRegularizer(keras_private.OwnLosses):
  """A layer that stands in for an encoder, and makes it robust wherever it is trained.

      features = UrkleRegularizer(encoder, attack, beta=0.1)(images)     # was: encoder(images)

  While it trains, it finds each image's worst neighbour, and adds

      beta * mean_x max_{x' in A(x)} KL[p(z|x) || p(z|x')]

  to `losses` (Urkle paper, eq. 10).  `keras.Model.fit` minimises them with its own loss; your own
  loop adds `sum(layer.losses)`.  Outside training, the layer is only the encoder.  `fit` reports
  the KL, which is NaN if it is not measured, as in validation.

  Args:
    encoder: a Keras model or layer of images float [n, h, w, c] in [0, 1], built.  It may return
      whatever `kl_robustness` accepts.  For a Normal, or {"loc", "scale"}, the layer returns a
      sample in training, and loc otherwise; features are returned unchanged.
    attack: for example `attacks.PGD(attacks.Linf(epsilon=8 / 255), steps=7)`.
    beta: the weight of the KL, at least 0.
    scale: for features, see `kl_robustness`; above 0.
    seed: of the attack's starts and of the noise; None draws one.
    metric: the name under which `fit` reports the KL.  Several layers in a model need different
      ones: of metrics of one name, Keras shows only the last.

  Attributes:
    encoder: the encoder, which can be exported or used again without the layer.
    losses: what its last use added, beta times the mean KL; one for each use in a model.

  Raises:
    UserError: if beta or scale is out of its range.

  ```python
  inputs = keras.Input((32, 32, 3))
  features = urkle_tf.UrkleRegularizer(backbone, attack, beta=0.1)(inputs)
  model = keras.Model(inputs, keras.layers.Dense(10)(features))  # compile and fit as usual
  ```
  """

  def __init__(self, encoder, attack, beta=0.1, scale=_SCALE, seed=None, metric="kl", **kwargs):
    # Not the policy's dtype: low precision does not resolve an attack's steps.
    super().__init__(**{"dtype": "float32", **kwargs})
    _check(attack)
    errors.at_least(0, "UrkleRegularizer", beta=beta)
    errors.above(0, "UrkleRegularizer", scale=scale)
    self.encoder, self.attack, self.beta, self.scale = encoder, attack, float(beta), float(scale)
    self.seed = seed
    self._added: dict[int, list] = {}
    self._seeds = keras.random.SeedGenerator(seed)
    self._kl = _Measured(name=metric)
    self.built = True

  def call(self, images, training=None):
    """Encodes images.

    Args:
      images: float32 [n, h, w, c] in [0, 1].
      training: whether the KL is measured and added to `losses`.  `fit` stops at pixels beyond the
        attack's bounds; compiled with XLA, it shows a KL of NaN instead.
    """
    representations.checked(images)
    if not training:
      return _point(_network(self.encoder)(images, training=False))
    seed = tf.cast(self._seeds.next(), tf.int32)
    outputs, robustness = _measure(
      self.encoder, images, self.attack, distribution.fold(seed, 0), True, self.scale
    )
    # In the dtype of Keras's own losses, which fit adds it to.
    added = tf.cast(self.beta * tf.reduce_mean(robustness), keras.config.floatx())
    self._added.setdefault(_replica(), []).append(added)
    self._kl.update_state(robustness)
    return _sample(outputs, distribution.fold(seed, 1))

  # `add_loss` keeps only one list.  The replicas of a process share a layer, and take turns
  # wherever they wait for each other, so one replica would find the losses of others.

  def own_losses(self):
    return list(self._added.get(_replica(), []))

  def forget_losses(self):
    self._added.pop(_replica(), None)

  def get_config(self):
    config = {name: getattr(self, name) for name in ("beta", "scale", "seed")}
    config["metric"] = self._kl.name
    if type(self.attack) is not attacks.PGD:
      raise errors.UserError(f"cannot save {self.attack!r}: use PGD, the only attack that can be")
    return {
      **super().get_config(),
      **config,
      "encoder": keras.saving.serialize_keras_object(self.encoder),
      "attack": {**self.attack.describe(), "threat": self.attack.threat.options()},
    }

  @classmethod
  def from_config(cls, config):
    attack = {name: value for name, value in config["attack"].items() if name != "name"}
    options = {"epsilon": attack.pop("epsilon"), **attack.pop("threat", {})}
    threat = attacks.from_norm(attack.pop("norm"), **options)
    encoder = keras.saving.deserialize_keras_object(config["encoder"])
    return cls(**{**config, "encoder": encoder, "attack": attacks.PGD(threat, **attack)})


def _replica():
  """This replica's number as an int; 0 if it is unknown, or there is only one."""
  context = tf.distribute.get_replica_context()
  found = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
  return 0 if found is None else int(found)


class _Measured(keras.metrics.Mean):
  """A mean that is NaN if nothing was measured, since 0 would look like a robust encoder."""

  def result(self):
    return tf.where(self.count > 0, super().result(), float("nan"))


def _point(outputs):
  outputs = _checked(outputs)
  if isinstance(outputs, tfp.distributions.Distribution):
    return outputs.loc
  return outputs["loc"] if isinstance(outputs, dict) else outputs


def _sample(outputs, seed):
  if not isinstance(outputs, dict | tfp.distributions.Distribution):
    return outputs
  normal = _normal(outputs, None)
  return normal.loc + normal.scale * distribution.normal(seed, tf.shape(normal.loc))
