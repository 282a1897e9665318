"""The one training step: adversary, tape, terms, gradients and metrics of every cell."""

import contextlib
import functools
import sys
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import distribution, errors
from urkle_tf.data import pipeline
from urkle_tf.networks import batch_norm, onednn
from urkle_tf.networks.gaussian import kl_mean_part
from urkle_tf.networks.low_precision import low_precision
from urkle_tf.networks.representations import Representations
from urkle_tf.robustness.base import Robustness, flat
from urkle_tf.robustness.none import Plain
from urkle_tf.training import attack_schedules, optimizers
from urkle_tf.training.means import Means

_ZERO = tf.UnconnectedGradients.ZERO  # a scale that no term uses

# Health of a run, beside the loss terms: what each means is in docs/monitoring.md.
DIAGNOSTICS = (
  "gradient_norm",
  "sigma_min",
  "sigma_mean",
  "sigma_max",
  "snr",
  "sigma_over_spread",
  "loc_std",
  "effective_rank",
)
ATTACK_DIAGNOSTICS = ("attack_objective", "attack_distance", "zero_gradients")
PAIR_DIAGNOSTICS = ("kl_mean_part", "kl_scale_part")  # of an image and its adversary


def effective_rank(loc):
  """How many dimensions a batch of representations spans: tr(C)^2 / tr(C^2).

  C is the covariance of loc over the batch; 1 for a line, d_z for an isotropic cloud.

  Args:
    loc: float32 [n, d_z].

  Returns:
    float32 scalar.
  """
  centred = loc - tf.reduce_mean(loc, 0)
  gram = tf.matmul(centred, centred, transpose_b=True)  # [n, n]: the non-zero spectrum of C
  return tf.square(tf.linalg.trace(gram)) / (tf.reduce_sum(tf.square(gram)) + 1e-12)


class Trainer(keras.Model):
  """Trains a `GaussianEncoder` on one cell of the grid, pretext x robustness.

  A step whose loss or gradient is not finite is skipped: it moves the count of steps, and nothing
  else; `skips` counts such steps.

  `fit` takes batches of views: a tuple (v1, v2, ...) of float32 [n, h, w, c] in [0, 1], or a
  dict with "views" [n, v, h, w, c], and "label" [n] where the pretext needs labels, or "image"
  uint8 [n, h, w, c] where `augment` makes the views inside the step.

  Args:
    encoder: a `GaussianEncoder`.
    pretext: a `Pretext`.
    robustness: a `Robustness`; by default none.
    attack: the inner maximiser; needed where the robustness scheme is adversarial.
    augment: an on-device augmentation recipe, or None if batches hold views.
    seed: all randomness of step k is a function of (seed, k, global example).
    epsilon_warmup: steps over which the attack's epsilon rises linearly to its value; by the
      clock a share of the training, in [0, 1].
    beta_warmup: the same for the weights of the added terms.
    clip_norm: largest global norm of the whole batch's gradient; None for no clipping.
    steps: of the whole training, for what changes over it; None keeps that as it is at the start.
    by_clock: what changes over the training follows `clock`, a variable in [0, 1] that whoever
      measures the time sets before each execution, and not the number of steps.
    schedule: of the attack's steps (`attack_schedules`); None for a constant number.
    attack_precision: the Keras dtype policy of the attack's passes through the backbone,
      "mixed_bfloat16"; None for that of the encoder.
    ema: decay a step of the moving average of weights and batch statistics, of the encoder and of
      the head that is exported, at least 0 and below 1; None for the scheme's own, if it has one.

  Raises:
    UserError: if the cell makes no sense, the attack or `steps` is missing, or `ema` is out of
      its range.
  """

  def __init__(
    self,
    encoder,
    pretext,
    robustness=None,
    attack=None,
    augment=None,
    seed=0,
    epsilon_warmup=0,
    beta_warmup=0,
    clip_norm=None,
    steps=None,
    schedule=None,
    attack_precision=None,
    ema=None,
    by_clock=False,
  ):
    super().__init__(name="trainer")
    self.encoder, self.pretext = encoder, pretext
    self.robustness: Robustness = Plain() if robustness is None else robustness
    self.robustness.check(pretext)
    if self.robustness.adversarial and attack is None:
      raise errors.UserError(
        "this robustness scheme needs an attack: Trainer(..., attack=PGD(...))"
      )
    if steps is None and not by_clock and self.robustness.strength(0.0) is not None:
      raise errors.UserError(
        "this robustness scheme weakens the augmentation over the training: Trainer(..., steps=), "
        "and pipeline.views(..., strength=trainer.strength)"
      )
    self.attack: Any = attack if self.robustness.adversarial else None
    self.schedule: Any = schedule or attack_schedules.Constant()
    if self.attack is not None:
      self.schedule.check(self.attack, self.robustness)
    self._schedule_state = list(self.schedule.variables)
    self.attack_precision = attack_precision
    self.augment, self.seed = augment, seed
    self.epsilon_warmup, self.beta_warmup = epsilon_warmup, beta_warmup
    self.clip_norm, self.steps = clip_norm, steps
    self.ema = self.robustness.ema if ema is None else ema
    if self.ema is not None and not 0 <= self.ema < 1:
      raise errors.UserError(f"ema must be at least 0 and below 1, got {self.ema}")
    self.clock: Any = None
    if by_clock:
      self.clock = keras.Variable(
        0.0, dtype="float32", trainable=False, aggregation="only_first_replica"
      )
    # Every variable exists before the first step: replicas and checkpoints need that.
    if self.robustness.dual:
      encoder.add_stream()
    pretext.attach(encoder)
    pretext.built = True
    self.robustness.attach(encoder, pretext)
    batch_norm.quicken(self)
    self._averages = [
      keras.Variable(weight.numpy(), dtype=weight.dtype, trainable=False)
      for weight in self._averaged_weights()
    ]
    # The mean perturbation of the step before.
    self._carried = None
    if getattr(self.attack, "carry", False):
      self._carried = keras.Variable(
        tf.zeros(encoder.image_shape), trainable=False, aggregation="only_first_replica"
      )
    # Steps skipped: in all, in a row now, in the longest row, and the last step of that row.
    # Floats, which lie with the rest on an accelerator.
    self.skips = keras.Variable(
      [0.0, 0.0, 0.0, -1.0], dtype="float32", trainable=False, aggregation="only_first_replica"
    )
    # Where each adversary of the pass has its view there, seen through the same network.
    self._pairs = self.robustness.clean is None and not self.robustness.dual
    names = ["loss", *pretext.terms, *self.robustness.terms, *DIAGNOSTICS]
    if self.robustness.adversarial:
      names += ATTACK_DIAGNOSTICS + (PAIR_DIAGNOSTICS if self._pairs else ())
      if type(self.schedule) is not attack_schedules.Constant:
        names.append("attack_steps")
    if "kl" in self.robustness.terms:
      names.append("effective_k")
    self.means = Means(names)
    self.built = True

  @property
  def metrics(self):
    """The means of what is reported, reset whenever a row of metrics is written."""
    return [self.means]

  def compile(self, optimizer="sgd", jit_compile="auto", **kwargs):
    """As `keras.Model.compile`, without a loss: the cell has its own.

    Args:
      optimizer: a Keras optimizer.
      jit_compile: "auto" compiles with XLA on TPUs and on one GPU only; on CPUs XLA makes the
        attack's loop several times slower.
      **kwargs: for example `steps_per_execution`.

    Raises:
      UserError: if the encoder holds a convolution whose gradient crashes on this machine.
    """
    if jit_compile == "auto":
      scope = self.distribute_strategy
      # XLA cannot compile the exchange between GPUs; TPUs run nothing but compiled steps.
      jit_compile = isinstance(scope, tf.distribute.TPUStrategy) or bool(
        tf.config.list_physical_devices("GPU") and scope.num_replicas_in_sync == 1
      )
    if not jit_compile:
      onednn.check(self)
    super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
    self.optimizer.build(self.trainable_variables)
    optimizers.take_whole_gradients(self.optimizer)

  def fit_from(self, views, done, steps, steps_per_epoch, callbacks):
    """Fits from a step on, the rest of its epoch first.

    Args:
      views: a function of a step to the batches from there on.
      done: how many steps were taken before.
      steps: of the whole training; None until a callback ends it.
      steps_per_epoch: likewise of an epoch.
      callbacks: of `fit`, with `monitoring.Metrics` as the last.
    """
    fit = functools.partial(self.fit, callbacks=callbacks, verbose=0, shuffle=False)
    data, epoch = views(done), done // steps_per_epoch
    if partial := done % steps_per_epoch:  # finish the epoch that was interrupted
      fit(data, steps_per_epoch=steps_per_epoch - partial, initial_epoch=epoch, epochs=epoch + 1)
      epoch += 1
      data = views(epoch * steps_per_epoch)
    epochs = sys.maxsize if steps is None else steps // steps_per_epoch
    if epoch < epochs and not (partial and self.stop_training):
      fit(data, steps_per_epoch=steps_per_epoch, initial_epoch=epoch, epochs=epochs)

  def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Nothing is left to build; Keras would read a batch, which fails on several workers."""

  def call(self, images, training=None):
    """The encoder's network: images -> {"loc", "scale"}."""
    return self.encoder.network(images, training=training)

  def views(self, batch, step):
    """The views of a batch in any accepted form: (float32 [n, v, h, w, c], dict)."""
    if isinstance(batch, (tuple, list)):
      batch = {"views": tf.stack(batch, axis=1)}
    if "views" in batch:
      return batch["views"], batch
    if self.augment is None:
      raise errors.UserError('batches hold no "views": give them, or Trainer(..., augment=recipe)')
    seed, strength = pipeline.augmentation_seed(self.seed, step), self.strength(step)
    views = pipeline.augment_on_device(
      self.augment, batch["image"], seed, self.pretext.views, strength
    )
    return views, batch

  def adversaries(self, views, aux, seed, step=None):
    """The worst neighbours of views, found in inference mode.

    Args:
      views: float32 [n, v, h, w, c].
      aux: what the pretext prepared for them.
      seed: int32 [2].
      step: the training step, for the warm-up of epsilon; None for the full epsilon.

    Returns:
      (adversaries float32 [n, a, h, w, c], info of the attack).
    """
    targets, options = self.robustness.targets(views), {}
    if self.epsilon_warmup and step is not None:
      options["epsilon"] = self.attack.threat.epsilon * self._ramp(step, self.epsilon_warmup)
    progress = tf.ones([]) if step is None else self.progress(step)
    steps = self.schedule.steps(progress, self.attack)
    if steps is not None:
      options["steps"] = steps
    if self._carried is not None:
      options["carried"] = tf.convert_to_tensor(self._carried.value)
    with contextlib.ExitStack() as stack:
      if self.attack_precision:
        for network in {id(n): n for n in self._networks()}.values():
          stack.enter_context(low_precision(network, self.attack_precision))
      objective = self.robustness.objective(self.encoder, self.pretext, views, aux)
      found, info = self.attack.run(objective, flat(targets), seed, **options)
    if steps is not None:
      info["steps"] = tf.cast(steps, tf.float32)
    return tf.reshape(found, tf.shape(targets)), info

  def _networks(self):
    return getattr(self.encoder, "streams", {"": self.encoder.network}).values()

  def _ramp(self, step, warmup):
    """Rises linearly from 1 / warmup to 1, and stays there; by the clock from 0."""
    if self.clock is not None:
      return tf.minimum(1.0, self.progress(step) / warmup) if warmup else tf.ones([])
    return tf.minimum(1.0, tf.cast(step + 1, tf.float32) / max(warmup, 1))

  def progress(self, step):
    """How much of the training lies behind step number `step`: float32 scalar in [0, 1]."""
    if self.clock is not None:
      return tf.convert_to_tensor(self.clock.value)
    return tf.minimum(1.0, tf.cast(step, tf.float32) / self.steps) if self.steps else tf.zeros([])

  def strength(self, step):
    """A factor on the augmentation's strength at step number `step`, or None; for pipelines."""
    return self.robustness.strength(self.progress(step))

  def _averaged_weights(self):
    """Those of what is exported; none without `ema`."""
    head = self.pretext.head
    return self.encoder.weights + (head.weights if head else []) if self.ema is not None else []

  @contextlib.contextmanager
  def averaged(self):
    """Within it the weights of encoder and exported head are their moving averages, with `ema`.

    What is to be exported is the encoder within:

        with trainer.averaged():
          urkle_tf.export_encoder(encoder, folder)
    """
    weights = self._averaged_weights()
    kept = [distribution.plain(weight) for weight in weights]

    def assign(values):
      with self.distribute_strategy.scope():
        for weight, value in zip(weights, values, strict=True):
          weight.assign(value)

    assign([distribution.plain(average) for average in self._averages])
    try:
      yield self.encoder
    finally:
      assign(kept)

  def _move_averages(self, step):
    """Moves each weight's and batch statistic's average: m average + (1 - m) weight.

    m = ema, but at most k / (k + 1) in step k = 0, 1, ...: the plain mean, as long as that is
    shorter than the moving one.  Else the initialisation would linger in short trainings.
    """
    if not self._averages:
      return
    passed = tf.cast(step, tf.float32)
    kept = tf.minimum(self.ema, passed / (passed + 1.0))
    for average, weight in zip(self._averages, self._averaged_weights(), strict=True):
      average.assign(kept * average + (1.0 - kept) * weight)

  def _encode(self, images, streams):
    """The training pass, one forward a stream: members [n, t, ...] -> Normal of [n * t, d_z]."""

    def encode(rows, stream):
      # Encoders of one stream need not know of it.
      options = {"stream": stream} if self.robustness.dual else {}
      normal = self.encoder(rows, training=True, **options)
      return normal.loc, normal.scale

    return tfp.distributions.Normal(*batch_norm.by_stream(encode, images, streams))

  def train_step(self, data):
    """One step, and the means of what it reports; with several workers that of the loss alone."""
    values = self.step(data)
    self.means.update_state(values, _finite(values["loss"], values["gradient_norm"]))
    results = self.means.result()
    if distribution.several_workers(self.distribute_strategy):
      # Keras averages what workers return over its first axis (issue 20585 of Keras), each by
      # itself, though all of them return the same.
      results = {"loss": results["loss"][None]}
    return results

  def step(self, data):
    """One step: find adversaries, one training pass over all images, terms, update.

    Args:
      data: a batch, this replica's rows.

    Returns:
      {name: float32 scalar}: what is reported, means over the replicas.
    """
    step = tf.cast(self.optimizer.iterations, tf.int32)
    before = self._values(self._moved_by_passes())
    progress = self.progress(step)
    seed = distribution.fold([self.seed, 0], step)
    views, batch = self.views(data, step)
    aux = self.pretext.prepare(views, batch)
    images, values = views[:, : self.robustness.clean], {}
    count = images.shape[1]
    if self.robustness.adversarial:
      adversaries, info = self.adversaries(views, aux, distribution.fold(seed, 1), step)
      images = tf.concat([images, adversaries], axis=1) if count else adversaries
      self._carry(adversaries - self.robustness.targets(views))
      values["attack_objective"] = tf.reduce_mean(info["objective"])
      values["zero_gradients"] = info["zero_gradients"]
      moved = self.attack.threat.distance(flat(adversaries), flat(self.robustness.targets(views)))
      values["attack_distance"] = tf.reduce_mean(moved) / max(self.attack.threat.epsilon, 1e-12)
      if "steps" in info:
        values["attack_steps"] = info["steps"]
    members = images.shape[1]
    streams = self.robustness.streams(count, members - count)

    with tf.GradientTape() as tape:
      normal = self._encode(images, streams)
      noise = None
      if self.pretext.stochastic or self.robustness.stochastic:
        noise = distribution.normal(distribution.fold(seed, 2), _shape(normal.loc))
      all_of_them = Representations.of(normal, members, noise, streams)
      terms: dict[str, tf.Tensor] = {}
      for weight, chosen in self.robustness.tuples(count, members - count):
        weight = weight(progress) if callable(weight) else weight
        for name, value in self.pretext.loss(all_of_them.take(chosen), aux).items():
          terms[name] = terms.get(name, 0.0) + weight * tf.reduce_mean(value)
      loss = tf.add_n([self.pretext.weight(name) * term for name, term in terms.items()])
      added = self.robustness.losses(self.pretext, all_of_them, count, aux)
      for name, (weight, value) in added.items():
        terms[name] = tf.reduce_mean(value)
        loss += weight * self._ramp(step, self.beta_warmup) * terms[name]
      if self.robustness.adversarial:
        targets, threat = flat(self.robustness.targets(views)), self.attack.threat
        extra = self.robustness.penalties(self.encoder, targets, threat, distribution.fold(seed, 3))
        for name, (weight, value) in extra.items():
          terms[name] = tf.reduce_mean(value)
          loss += weight * terms[name]
      # Replicas' gradients are summed, so each computes its share of the global mean.
      share = self.optimizer.scale_loss(loss / distribution.replicas())
    variables = self.trainable_variables
    # .value: TensorFlow cannot make the zeros for a Keras variable.
    values_of = [variable.value for variable in variables]
    gradients = tape.gradient(share, values_of, unconnected_gradients=_ZERO)
    values |= terms | {"loss": loss} | _health(all_of_them.normal, count if self._pairs else 0)
    if "effective_k" in self.means.names:
      values["effective_k"] = self.robustness.weight * _signal(all_of_them.normal)
    gradients, values = _of_all_replicas(gradients, values)
    norm = tf.linalg.global_norm(gradients)
    if self.clip_norm:
      gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, norm)
    self._update(gradients, variables, _finite(values["loss"], norm), before, step)
    return values | {"gradient_norm": norm}

  def _carry(self, perturbations):
    """Keeps what perturbations [n, a, h, w, c] have in common, over all replicas."""
    if self._carried is None:
      return
    common, context = tf.reduce_mean(perturbations, [0, 1]), tf.distribute.get_replica_context()
    if distribution.replicas() > 1:
      common = context.all_reduce(tf.distribute.ReduceOp.MEAN, common)
    self._carried.assign(common)

  def _moved_by_passes(self):
    """What the step moves before its gradient is known: batch statistics."""
    kept = (id(self.skips), id(self.clock))
    return [variable for variable in self.non_trainable_weights if id(variable) not in kept]

  @staticmethod
  def _values(variables):
    return [tf.convert_to_tensor(variable.value) for variable in variables]

  def _update(self, gradients, variables, finite, before, step):
    """Takes the step; or takes back what it moved so far, where it is not finite.

    Args:
      gradients: of the whole batch.
      variables: that they belong to.
      finite: whether loss and gradient are, a bool scalar; the same on all replicas.
      before: the values of `_moved_by_passes` at the start of the step.
      step: its number.
    """
    moved, strategy = self._moved_by_passes(), tf.distribute.has_strategy()
    skipped = 1.0 - tf.cast(finite, tf.float32)
    total, row, longest, last = tf.unstack(tf.convert_to_tensor(self.skips.value))
    row = skipped * (row + 1.0)
    last = tf.where(row > longest, tf.cast(step, tf.float32), last)
    self.skips.assign(tf.stack([total + skipped, row, tf.maximum(longest, row), last]))

    def take():
      self.optimizer.apply(gradients, variables)
      self.pretext.after_step(self.encoder, self.progress(step))
      self._move_averages(step)
      return tf.constant(True)

    def take_back():
      for variable, value in zip(moved, before, strict=True):
        variable.assign(value)
      self.optimizer.iterations.assign_add(1)
      return tf.constant(False)

    if not strategy:
      tf.cond(finite, take, take_back)
      return
    # A strategy's variables cannot be moved in a branch: all are moved, and then put back.
    iterations = self.optimizer.iterations
    slots = [variable for variable in self.optimizer.variables if variable is not iterations]
    moved, before = [*moved, *variables, *slots], before + self._values([*variables, *slots])
    take()

    def put_back(strategy, finite, before):
      for variable, value in zip(moved, before, strict=True):
        strategy.extended.update(
          variable.value,
          lambda part, finite, value: part.assign(tf.where(finite, part, value)),
          args=(finite, value),
          group=False,
        )

    tf.distribute.get_replica_context().merge_call(put_back, args=(finite, before))


def _of_all_replicas(gradients, values):
  """The sum of the replicas' gradients, and the means of their values, in one exchange.

  Args:
    gradients: a list of tensors.
    values: {name: float32 scalar}.
  """
  replicas = distribution.replicas()
  if replicas == 1:
    return gradients, values
  *gradients, row = tf.distribute.get_replica_context().all_reduce(
    tf.distribute.ReduceOp.SUM, [*gradients, tf.stack(list(values.values()))]
  )
  return gradients, dict(zip(values, tf.unstack(row / replicas), strict=True))


def _finite(loss, norm):
  return tf.logical_and(tf.math.is_finite(loss), tf.math.is_finite(norm))


def _shape(tensor):
  return tensor.shape if tensor.shape.is_fully_defined() else tf.shape(tensor)


def _spread(loc):
  """The root of the mean variance of a batch's dimensions: [n, d_z] -> scalar."""
  return tf.sqrt(tf.reduce_mean(tf.math.reduce_variance(loc, 0)) + 1e-12)


def _signal(normal):
  """|loc|^2 / sigma^2, means over a pass [n, t, d_z]: beta times it is the weight of 1 - cos."""
  squares = tf.reduce_mean(tf.reduce_sum(tf.square(normal.loc), -1))
  return squares / tf.reduce_mean(tf.square(normal.scale))


def _health(normal, views):
  """The diagnostics of a pass of [n, members, d_z].

  The first `views` members are views, and the others the adversaries of the first of them; 0 if
  it is otherwise.
  """
  loc, scale = normal.loc, normal.scale
  first = loc[:, 0]
  values = {
    "sigma_min": tf.reduce_min(scale),
    "sigma_mean": tf.reduce_mean(scale),
    "sigma_max": tf.reduce_max(scale),
    "snr": tf.reduce_mean(tf.abs(loc) / scale),
    "sigma_over_spread": tf.reduce_mean(scale) / _spread(first),
    "loc_std": tf.reduce_mean(tf.math.reduce_std(first, 0)),
    "effective_rank": effective_rank(first),
  }
  adversaries = loc.shape[1] - views
  if views and adversaries:
    part = lambda low, high: type(normal)(loc[:, low:high], scale[:, low:high])  # noqa: E731
    clean, adversary = part(0, adversaries), part(views, views + adversaries)
    mean_part = kl_mean_part(clean, adversary)
    whole = tf.reduce_sum(clean.kl_divergence(adversary), -1)
    values["kl_mean_part"] = tf.reduce_mean(mean_part)
    values["kl_scale_part"] = tf.reduce_mean(whole - mean_part)
  return values
