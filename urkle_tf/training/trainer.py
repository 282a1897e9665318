"""The one training step: adversary, tape, terms, gradients and metrics of every cell."""

import contextlib
import copy
import functools
import sys
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import distribution, errors
from urkle_tf.attacks.base import assert_pixels
from urkle_tf.attacks.threat.base import shape_of
from urkle_tf.data import pipeline
from urkle_tf.networks import batch_norm, keras_private, onednn
from urkle_tf.networks.policies import low_precision
from urkle_tf.networks.representations import Representations, checked
from urkle_tf.networks.tuples import flat
from urkle_tf.robustness.base import Robustness
from urkle_tf.robustness.none import Plain
from urkle_tf.training import accumulation, attack_schedules, batches, checks
from urkle_tf.training.averages import Averages
from urkle_tf.training.diagnostics import Diagnostics
from urkle_tf.training.guard import Guard, finite
from urkle_tf.training.means import Means
from urkle_tf.training.progress import Progress

_ZERO = tf.UnconnectedGradients.ZERO  # a scale that no term uses
_NO_VALIDATION = (
  "a Trainer has no validation: leave out validation_data, validation_split and evaluate, and "
  "measure trainer.encoder, for example in a callback's on_epoch_end"
)


class Trainer(keras_private.Built):
  """Trains a `GaussianEncoder` on one cell of the grid, pretext x robustness.

  A step whose loss or gradient is not finite is skipped: only the count of steps advances.  `skips`
  counts such steps.

  `fit` takes batches of views: a tuple (v1, v2, ...) of float [n, h, w, c] in [0, 1], or a dict
  with "views" [n, v, h, w, c], and "label" [n] if the pretext needs labels.  With `augment`, which
  makes the views inside the step, the dict has "image", uint8 [n, h, w, c].  Arrays of all images
  are given in the same forms.  Several replicas need batches that divide evenly among them, so drop
  a smaller last batch.

  Args:
    encoder: a `GaussianEncoder`.
    pretext: a `Pretext`, which no other `Trainer` has.
    robustness: a `Robustness`; by default none.
    attack: the inner maximiser, an `attacks.Attack`; needed if the robustness scheme is
      adversarial.
    augment: an on-device augmentation recipe, or None if batches hold views.
    seed: all randomness of step k is a function of (seed, k, global example).
    epsilon_warmup: steps over which the attack's epsilon rises linearly to its value; by the
      clock a share of the training, in [0, 1].
    beta_warmup: the same for the weights of the added terms.
    clip_norm: largest global norm of the whole batch's gradient; None for no clipping.
    steps: the steps of the whole training, for values that change over it; None keeps them at
      their initial values.
    by_clock: whether values that change over the training follow `clock` instead of the number of
      steps.  `clock` is a variable in [0, 1] that the caller sets before each execution.
    schedule: a schedule of the attack's steps (`attack_schedules`); None for a constant number.
    attack_precision: the Keras dtype policy of the attack's passes through the backbone,
      "mixed_bfloat16"; None for that of the encoder.
    ema: decay per step of the moving average of weights and batch statistics that is exported, of
      the encoder and its exported head, at least 0 and below 1; None for the scheme's default, if
      any.

  Raises:
    UserError: if the cell makes no sense, the pretext has a `Trainer`, the attack or `steps` is
      missing, an argument is of the wrong type, or `clip_norm` or `ema` is out of its range.

  ```python
  encoder = urkle_tf.GaussianEncoder(backbone)
  scheme = urkle_tf.robustness.Urkle(k=8)
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), scheme, attack)
  trainer.compile(optimizer="sgd")
  views = images, images[:, :, ::-1]  # two views of each image; see `urkle_tf.data.pipeline`
  trainer.fit(tf.data.Dataset.from_tensors(views), epochs=1)
  ```
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
    robustness = Plain() if robustness is None else robustness
    schedule = schedule or attack_schedules.Constant()
    ends = steps is not None or by_clock
    checks.cell(encoder, pretext, robustness, attack, schedule, ends)
    if clip_norm is not None:
      errors.above(0, "Trainer", clip_norm=clip_norm)
    self.encoder, self.pretext = encoder, pretext
    self.robustness: Robustness = robustness
    self.attack: Any = attack if self.robustness.adversarial else None
    self.schedule: Any = schedule
    self.threat: Any = getattr(attack, "threat", None)
    self.attack_precision, self.clip_norm = attack_precision, clip_norm
    self.augment, self.seed = augment, seed
    self.epsilon_warmup, self.beta_warmup = epsilon_warmup, beta_warmup
    self.progress = Progress(steps, by_clock)
    # Every variable exists before the first step: replicas and checkpoints need that.
    if self.robustness.dual:
      encoder.add_stream()
    pretext.attach(encoder)
    pretext.built = True
    self.robustness.attach(encoder, pretext)
    self.robustness = copy.copy(self.robustness)  # another Trainer may attach the given one again
    batch_norm.quicken(self)
    ema = self.robustness.ema if ema is None else ema
    exported = (
      [] if ema is None else encoder.weights + (pretext.head.weights if pretext.head else [])
    )
    self.averages = Averages(exported, ema)
    # Keras finds the variables in these attributes, in this order, which is that of checkpoints.
    self._schedule_state = list(self.schedule.variables)
    self.clock: Any = self.progress.clock
    self._averages = self.averages.variables
    # The mean perturbation of the previous step.
    carries = getattr(self.attack, "carry", False)
    self._carried = distribution.state(tf.zeros(encoder.image_shape)) if carries else None
    self.guard = Guard(self, [self.clock])
    self.skips = self.guard.skips
    self.diagnostics = Diagnostics(self.robustness, self.schedule)
    self.means = Means(["loss", *pretext.terms, *self.robustness.terms, *self.diagnostics.names])
    self.built = True

  @property
  def metrics(self):
    """The means of the reported figures, reset whenever a row of metrics is written."""
    return [self.means]

  def compile(self, optimizer="sgd", jit_compile="auto", accumulate=1, **kwargs):
    """Like `keras.Model.compile`, without a loss: the cell has its own.

    It adds the regularizers of weights (`kernel_regularizer`), but nothing that layers add in their
    call (`activity_regularizer`, `add_loss`).

    Args:
      optimizer: a Keras optimizer.
      jit_compile: "auto" compiles with XLA only on TPUs and on one GPU; on CPUs XLA makes the
        attack's loop several times slower.
      accumulate: the number of equal parts of a replica's rows that a step takes one by one; it
        must divide the rows of every batch.
      **kwargs: for example `steps_per_execution`.

    Raises:
      UserError: if the encoder contains a convolution whose gradient crashes on this machine,
        something computes in float16, the pretext's batches cannot be taken in parts, or the
        optimizer accumulates gradients over steps or scales the loss.
    """
    accumulation.check(accumulate, self.pretext)
    checks.precision(self)
    self._accumulate = accumulate
    if jit_compile == "auto":
      scope = self.distribute_strategy
      # XLA cannot compile the exchange between GPUs; TPUs run only compiled steps.
      jit_compile = isinstance(scope, tf.distribute.TPUStrategy) or bool(
        tf.config.list_physical_devices("GPU") and scope.num_replicas_in_sync == 1
      )
    if not jit_compile:
      onednn.check(self)
    super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
    checks.optimizer(self.optimizer)
    self.optimizer.build(self.trainable_variables)
    keras_private.take_whole_gradients(self.optimizer)

  def fit(self, *args, **kwargs):
    """Like `keras.Model.fit`, without validation.

    Raises:
      UserError: for validation data; Keras would end the training after its first epoch.  Also for
        a batch that does not divide evenly among replicas or into parts, or with pixels outside
        [0, 1] or the attack's bounds (with XLA, its step is skipped instead).
    """
    if kwargs.get("validation_data") is not None or kwargs.get("validation_split"):
      raise errors.UserError(_NO_VALIDATION)
    with batches.in_one_line():
      return super().fit(*args, **kwargs)

  def test_step(self, data):
    """Raises `UserError`: a `Trainer` measures nothing but its own steps."""
    raise errors.UserError(_NO_VALIDATION)

  def fit_from(self, views, done, steps, steps_per_epoch, callbacks):
    """Fits from a step on, beginning with the rest of its epoch.

    Args:
      views: a function from a step to the batches from there on.
      done: how many steps were taken before.
      steps: of the whole training; None until a callback ends it.
      steps_per_epoch: steps per epoch.
      callbacks: callbacks of `fit`, with `metrics.Metrics` as the last.
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

  def call(self, images, training=None):
    """The encoder's network: images -> {"loc", "scale"}."""
    return self.encoder.network(images, training=training)

  def get_config(self):
    """Raises `UserError`: a `Trainer` has no config."""
    raise errors.UserError(
      "a Trainer cannot be saved as a model: save its encoder (trainer.encoder.save), or its "
      "weights (trainer.save_weights, ModelCheckpoint(..., save_weights_only=True))"
    )

  def views(self, batch, step):
    """The views of a batch in any form that `fit` takes: (float32 [n, v, h, w, c], dict)."""
    batch = batches.read(batch, self.augment is not None)
    if "views" in batch:
      views = checked(batch["views"])
      return assert_pixels(views, self.threat, views), batch  # in XLA, a step with NaN is skipped
    seed, strength = pipeline.augmentation_seed(self.seed, step), self.strength(step)
    count = self.pretext.views
    views = pipeline.augment_on_device(self.augment, batch["image"], seed, count, strength)
    return views, batch

  def adversaries(self, views, aux, seed, step=None):
    """The worst neighbours of views, found in inference mode.

    Args:
      views: float32 [n, v, h, w, c].
      aux: what the pretext prepared for them.
      seed: int32 [2].
      step: the training step, for the warm-up of epsilon; None for the full epsilon.

    Returns:
      (adversaries float32 [n, a, h, w, c], the dict that the attack returned).
    """
    targets, options = self.robustness.targets(views), {}
    if self.epsilon_warmup and step is not None:
      options["epsilon"] = self._epsilon(step)
    progress = tf.ones([]) if step is None else self.progress(step)
    steps = self.schedule.steps(progress, self.attack)
    if steps is not None:
      options["steps"] = steps
    if self._carried is not None:
      options["carried"] = tf.convert_to_tensor(self._carried.value)
    with contextlib.ExitStack() as stack:
      if self.attack_precision:
        for network in self.encoder.streams.values():
          stack.enter_context(low_precision(network, self.attack_precision))
      objective = self.robustness.objective(self.encoder, self.pretext, views, aux)
      found, info = self.attack.run(objective, flat(targets), seed, **options)
    if steps is not None:
      info["steps"] = tf.cast(steps, tf.float32)
    return tf.reshape(found, tf.shape(targets)), info

  def _epsilon(self, step):
    """The epsilon of a step, which may still rise."""
    return self.threat.epsilon * self.progress.risen(step, self.epsilon_warmup)

  def strength(self, step):
    """A factor on the augmentation's strength at step number `step`, or None; for pipelines."""
    return self.robustness.strength(self.progress(step))

  @contextlib.contextmanager
  def averaged(self):
    """A context within which encoder and exported head have their averaged weights, with `ema`.

    Export the encoder within it:

        with trainer.averaged():
          urkle_tf.export_encoder(encoder, folder)
    """
    with self.averages.in_place(self.distribute_strategy):
      yield self.encoder

  def _encode(self, images, views, seed):
    """The training pass, one forward pass per stream: images [n, t, ...], the views first -> z."""
    members, dual = images.shape[1], self.robustness.dual
    streams = self.robustness.streams(views, members - views)

    def encode(rows, stream):
      # Encoders with one stream need not have this argument.
      normal = self.encoder(rows, training=True, **({"stream": stream} if dual else {}))
      return normal.loc, normal.scale

    normal = tfp.distributions.Normal(*batch_norm.by_stream(encode, images, streams))
    noise = None
    if self.pretext.stochastic or self.robustness.stochastic:
      noise = distribution.normal(seed, shape_of(normal.loc))
    return Representations.of(normal, members, noise, streams)

  def train_step(self, data):
    """One step, and the means of what it reports; with several workers only that of the loss."""
    values = self.step(data)
    self.means.update_state(values, finite(values["loss"], values["gradient_norm"]))
    results = self.means.result()
    if distribution.several_workers(self.distribute_strategy):
      # Keras averages what the workers return over the first axis (Keras issue 20585).  All
      # workers return the same, so each figure would cost an exchange for nothing.
      results = {"loss": results["loss"][None]}
    return results

  def step(self, data):
    """One step: find adversaries, one training pass over all images, terms, update.

    Args:
      data: a batch, this replica's rows.

    Returns:
      {name: float32 scalar}: the reported figures, averaged over the replicas.
    """
    step, before = tf.cast(self.optimizer.iterations, tf.int32), self.guard.start()
    seed = distribution.fold([self.seed, 0], step)
    compute = functools.partial(self._gradients, step=step)
    views, batch = batches.even(self.views(data, step))
    batches.check_count(views.shape[1], self.pretext, self.robustness)
    gradients, shown = accumulation.of_all_replicas(
      *accumulation.mean(compute, views, batch, seed, self._accumulate)
    )
    norm = tf.linalg.global_norm(gradients)
    if self.clip_norm:
      gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, norm)
    update = functools.partial(self._update, gradients, step)
    self.guard.take(update, step, finite(shown["loss"], norm), before)
    return shown | {"gradient_norm": norm}

  def _gradients(self, views, batch, seed, step):
    """(the gradients of this replica's share of the loss, {name: reported figure})."""
    aux = self.pretext.prepare(views, batch)
    images, shown = views[:, : self.robustness.clean], {}
    count = images.shape[1]
    if self.robustness.adversarial:
      adversaries, shown = self._attacked(views, aux, seed, step)
      images = tf.concat([images, adversaries], axis=1) if count else adversaries
    with tf.GradientTape() as tape:
      passed = self._encode(images, count, distribution.fold(seed, 2))
      loss, terms = self._loss(passed, aux, count, step, self._penalties(views, seed, step))
      # Replicas' gradients are summed, so each computes its share of the global mean.
      share = loss / distribution.replicas()
    # .value: TensorFlow cannot make the zeros for a Keras variable.
    weights = [variable.value for variable in self.trainable_variables]
    gradients = tape.gradient(share, weights, unconnected_gradients=_ZERO)
    shown |= terms | {"loss": loss} | self.diagnostics.of_pass(passed.normal, count)
    return gradients, shown

  def _attacked(self, views, aux, seed, step):
    """(adversaries of a step, the reported figures of their attack)."""
    adversaries, info = self.adversaries(views, aux, distribution.fold(seed, 1), step)
    targets = self.robustness.targets(views)
    if self._carried is not None:  # what perturbations have in common, over all replicas
      common = tf.reduce_mean(adversaries - targets, [0, 1])
      self._carried.assign(distribution.mean(common))
    return adversaries, self.diagnostics.of_attack(self.attack.threat, targets, adversaries, info)

  def _loss(self, passed, aux, views, step, penalties):
    """(the loss, its terms without the weights of the added ones) of a training pass.

    Args:
      passed: its `Representations` [n, t, d_z], the views first.
      aux: what the pretext prepared.
      views: how many members are views.
      step: its number.
      penalties: further terms, as `Robustness.penalties` returns them.
    """
    # Equation 12 of the Urkle paper:
    #
    #   l_NT-Xent((z_i1, z_i2, z_i1^adv, z_i2^adv)_i=1..b)  +  beta_robust l_Urkle
    #   l_Urkle = mean over i, k of KL[p(z|x_ik) || p(z|x_ik^adv)]                     (eq. 11)
    #
    # The first term is the pretext's loss on the tuples that the scheme names.  The second is what
    # the scheme adds.  Both differ in other cells of the grid.
    progress = self.progress(step)
    terms: dict[str, tf.Tensor] = {}
    for weight, members in self.robustness.tuples(views, passed.z.shape[1] - views):
      weight = weight(progress) if callable(weight) else weight
      found = self.pretext.loss(passed.take(members), aux)
      for name, value in checks.losses(self.pretext, found).items():
        terms[name] = terms.get(name, 0.0) + weight * tf.reduce_mean(value)
    loss = tf.add_n([self.pretext.weight(name) * term for name, term in terms.items()])
    risen = self.progress.risen(step, self.beta_warmup)
    added = self.robustness.losses(self.pretext, passed, views, aux) | penalties
    for name, (beta, value) in checks.losses(self.robustness, added).items():
      terms[name] = tf.reduce_mean(value)
      loss += beta * risen * terms[name]
    for weight in self.trainable_variables:  # of layers with a kernel_regularizer, for one
      if weight.regularizer is not None:
        loss += weight.regularizer(weight)
    return loss, terms

  def _penalties(self, views, seed, step):
    """The added terms that need separate passes, {name: (weight, values)}."""
    targets, threat = flat(self.robustness.targets(views)), self.threat
    if threat is not None and self.epsilon_warmup:
      threat = threat.with_epsilon(self._epsilon(step))
    return self.robustness.penalties(self.encoder, targets, threat, distribution.fold(seed, 3))

  def _update(self, gradients, step):
    """Applies the whole batch's gradients, and moves what follows the weights."""
    self.optimizer.apply(gradients, self.trainable_variables)
    self.pretext.after_step(self.encoder, self.progress(step))
    self.averages.move(step)
