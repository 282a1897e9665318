"""The bound on the adversarial loss by the KL (Urkle paper, Proposition 1)."""

import math
import numbers

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors, loops, networks
from urkle_tf.evaluation import adversaries, scoring
from urkle_tf.networks.kl import kl, kl_objective

_STREAM = 4  # of a seed, besides those of `scoring`
_CHUNK = 25  # samples of z that are in memory at once


def check_cap(loss_cap, classes):
  """Raises `UserError` if M = `loss_cap` does not cap the loss for this number of classes.

  The floor exp(-M) of each probability leaves room for a distribution only if C exp(-M) < 1.
  """
  least = math.log(classes)
  known = isinstance(loss_cap, numbers.Real) and not isinstance(loss_cap, bool)
  if not known or not least < loss_cap < math.inf:
    raise errors.UserError(
      f"--loss_cap must be a number above ln({classes}) = {least:.4f} for {classes} classes, "
      f"got {loss_cap}"
    )


def check(loss_cap, metadata):
  """Raises `UserError` if the bound with M = `loss_cap` does not exist for an export.

  An encoder alone has only the regulariser, for any M above 0.

  Args:
    loss_cap: M in nats.
    metadata: of the export.
  """
  if not metadata["stochastic"]:
    raise errors.UserError(
      f"--loss_cap: Proposition 1 is about sampled z, but this {metadata['kind']} is "
      "deterministic: leave out --loss_cap"
    )
  if metadata["kind"] == "classifier":
    check_cap(loss_cap, metadata["classes"])
  else:
    errors.within("(0, inf)", None, loss_cap=loss_cap)


def capped(log_probabilities, loss_cap):
  """Mixes a floor into probabilities, so that no loss exceeds M = `loss_cap`.

      p~(y) = (1 - C exp(-M)) p(y) + exp(-M), hence 0 <= -log p~(y) <= M

  (Urkle paper, footnote 1).  The predicted class does not change.  Since p~ is affine in p, capping
  a mean of probabilities equals the mean of the capped ones.

  Args:
    log_probabilities: float32 [..., C]; -inf for p(y) = 0 is allowed.
    loss_cap: M in nats, above ln C.

  Returns:
    float32 [..., C], log p~.

  Raises:
    UserError: if M is not above ln C.
  """
  log_probabilities = tf.convert_to_tensor(log_probabilities, tf.float32)
  classes = log_probabilities.shape[-1]
  check_cap(loss_cap, classes)
  # expm1: 1 - C exp(-M) keeps its digits, and stays above 0, for M close to ln C.
  weight = math.log(-math.expm1(math.log(classes) - loss_cap))
  floor = tf.fill(tf.shape(log_probabilities), tf.constant(-loss_cap, tf.float32))
  return tf.reduce_logsumexp(tf.stack([weight + log_probabilities, floor]), 0)


def roots(divergence):
  """The factors of M: (sqrt(mean of KL / 2), mean of sqrt(KL / 2)), eq. 4 and eq. 31.

  Args:
    divergence: float [n], the worst KL of each image in nats.
  """
  halves = np.asarray(divergence, np.float64) / 2
  return float(np.sqrt(halves.mean())), float(np.sqrt(halves).mean())


def sampled_losses(classifier, images, labels, loss_cap, seed, samples=200):
  """The two losses of the proposition, over samples of z ~ p(z|x), each softmax capped.

  Args:
    classifier: a stochastic `Classifier`.
    images: float32 [n, h, w, c] in [0, 1].
    labels: int [n].
    loss_cap: M in nats.
    seed: int32 [2]; with the same seed the i-th image has the same noise in every call.
    samples: samples of z, at least.

  Returns:
    (mean over z of -log p~(y|z), -log of the mean over z of p~(y|z)), both float32 [n]: the
    losses of eq. 2 and of eq. 3.
  """
  loc, scale = classifier.represent(images)
  chunks = -(-samples // _CHUNK)
  each = -(-samples // chunks)

  def more(chunk, sums):
    total, mean = sums
    noise = tf.random.stateless_normal(
      [tf.shape(loc)[0], each, classifier.latent_dim], distribution.fold(seed, chunk)
    )
    values = capped(classifier.each_from_noise(loc, scale, noise), loss_cap)  # [n, each, C]
    values = tf.gather(values, labels, axis=-1, batch_dims=1)  # [n, each]
    new = tf.stack([mean, tf.reduce_logsumexp(values, 1)])
    return total - tf.reduce_sum(values, 1), tf.reduce_logsumexp(new, 0)

  nothing = tf.zeros_like(loc[:, 0])
  total, mean = loops.repeat(chunks, more, (nothing, nothing - float("inf")))
  count = float(chunks * each)
  return total / count, math.log(count) - mean


def measure(context, options):
  """The report's part "bound" (Urkle paper, eq. 4), for the sampled classifier.

      E[max -log E_z p~(y|z')] <= E[E_z -log p~(y|z)] + M / sqrt(2) sqrt(E[max KL])

  Two attacks search for the maxima, one of the KL and one of the loss.  Each image counts with the
  largest KL and the largest loss among both results and the image itself.  So the inequality holds
  for the images that were found, up to the sampling of z.  Since no attack finds every maximum, the
  true right side may be larger.

  Args:
    context: a `Context` of a stochastic `Classifier`.
    options: a `measurements.bound.Bound`.

  Returns:
    A dict, losses and KL in nats: "M"; "clean_loss" (eq. 2); "regulariser" M / sqrt(2) times
    the root of the mean KL (eq. 4), and "regulariser_tight" with the mean of the roots
    (eq. 31); "value" and "value_tight", clean loss + regulariser; "measured_adversarial_loss"
    (eq. 3); "vacuous" and "vacuous_tight", whether a value is at least M, which no loss
    exceeds anyway; "kl_mean"; "cap_share" C exp(-M), the share of the uniform distribution in
    p~; and the settings of the measurement.

  Raises:
    UserError: if M is too small, the classifier is deterministic, or returns NaN or infinity.
  """
  model, loss_cap = context.model, options.loss_cap
  check(loss_cap, {"kind": "classifier", "stochastic": model.stochastic, "classes": model.classes})
  samples = options.samples or max(context.samples, 200)
  total = min(options.examples, context.source.size)
  compute = _judge(context, options, samples, min(context.batch_size, total))
  found = context.over_first(total, "bound", "bound", compute)
  values = {name: array.astype(float) for name, array in found.items()}
  clean_loss, divergence = float(values["clean"].mean()), values["kl"]
  found = {"M": float(loss_cap), "clean_loss": clean_loss}
  for root, ending in zip(roots(divergence), ("", "_tight"), strict=True):
    value = clean_loss + loss_cap * root
    found |= {f"regulariser{ending}": loss_cap * root, f"value{ending}": value}
    found[f"vacuous{ending}"] = value >= loss_cap
  return found | {
    "measured_adversarial_loss": float(values["adversarial"].mean()),
    "kl_mean": float(divergence.mean()),
    "cap_share": model.classes * math.exp(-loss_cap),
    "norm": context.norm,
    "epsilon": float(context.epsilon),
    **{name: getattr(options, name) for name in ("steps", "restarts", "loss_steps", "eot")},
    "samples": samples,
    "examples": total,
  }


def _judge(context, options, samples, batch_size):
  """A function from a batch to the losses and the KL of its images, for `Context.over_first`."""
  encoder = networks.ExportedEncoder(context.model.network)
  by_kl = attacks.PGD(context.threat, options.steps, restarts=options.restarts, keep="best")
  # The loss is attacked without the cap: p~ grows with p, so both have the same maxima.  The last
  # iterate is kept, not the best: under fresh noise, the best often only had lucky draws.
  plan = attacks.Plan(attacks.PGD(context.threat, options.loss_steps))
  by_loss = adversaries.adversary(context.model, plan, "sampled", options.eot)
  radius_and_step = plan.radius_and_step(context.epsilon)
  seed = distribution.fold([context.seed, 0], _STREAM)

  @tf.function(autograph=False)
  def worst_kl(images, seed):
    return by_kl(kl_objective(encoder, images), images, seed)

  @tf.function(autograph=False)
  def judge(images, candidates, labels, seed):
    before, after = encoder(images, training=False), encoder(candidates, training=False)
    losses = sampled_losses(context.model, candidates, labels, options.loss_cap, seed, samples)
    return {"kl": kl(before, after), "mean": losses[0], "of_mean": losses[1]}

  def compute(number, images, truth):
    size = len(images)
    images = tf.constant(scoring.pad(images, batch_size))
    labels = tf.constant(scoring.pad(truth, batch_size))
    kl_seed, loss_seed, score_seed = (distribution.fold(seed, number, i) for i in range(3))
    found = by_loss(images, labels, loss_seed, *radius_and_step)[0][0]
    candidates = (images, worst_kl(images, kl_seed), found)
    judged = [judge(images, candidate, labels, score_seed) for candidate in candidates]
    return {
      "clean": judged[0]["mean"].numpy()[:size],
      "kl": np.max([values["kl"] for values in judged], 0)[:size],
      "adversarial": np.max([values["of_mean"] for values in judged], 0)[:size],
    }

  return compute
