"""Proposition 1 with a KL that no perturbation of the ball exceeds (Urkle paper, eq. 4)."""

import math

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, networks
from urkle_tf.evaluation import bound, scoring
from urkle_tf.networks import intervals
from urkle_tf.networks.kl import kl_objective

_STREAM = 9  # of a seed, beside those of `scoring` and `bound`
_SAMPLES = 200
_HALVINGS = 12  # of the interval in which the largest epsilon lies, in logarithms


def measure(context, options):
  """The report's part "certificate".

      E[max -log E_z p~(y|z')] <= E[E_z -log p~(y|z)] + M / sqrt(2) sqrt(E[max KL])

  over the images that are measured.  The KL is an upper bound by `networks.intervals`; the clean
  loss lies in [0, M], so that Hoeffding's inequality bounds its mean over z.

  Args:
    context: a `Context` of one of our classifiers or encoders.
    options: a `measurements.certificate.Certificate`.

  Returns:
    {"rows": [{"epsilon", "kl" (certified), "found" (PGD)} and with M of a classifier "value",
    "vacuous"], "examples", "steps"}, and with M "M", "clean_loss", "alpha" and "largest_epsilon",
    at which the bound is below M still; means over images, in nats.

  Raises:
    UserError: if the network holds a layer through which no bound goes.
  """
  encoder = networks.ExportedEncoder(context.network or context.model.network)
  total = min(options.examples, context.source.size)
  mask = np.arange(context.source.size) < total
  size = min(context.batch_size, total)
  batches = []
  for _, images, labels in scoring.stream(context.source, size, mask):
    batches.append((images, labels))
    if sum(len(each) for each, _ in batches) >= total:
      break

  bounds = tf.function(lambda images, epsilon: intervals.kl_bound(encoder, images, epsilon))

  def certified(epsilon):
    radius = tf.constant(epsilon, tf.float32)
    parts = [bounds(scoring.pad(x, size), radius).numpy()[: len(x)] for x, _ in batches]
    return np.concatenate(parts).astype(np.float64)

  largest = context.epsilon
  rows = []
  for epsilon in options.epsilons or [largest / 10**power for power in range(4)]:
    found = [_found(encoder, images, epsilon, options.steps, context.seed) for images, _ in batches]
    row = {"epsilon": epsilon, "kl": float(certified(epsilon).mean())}
    rows.append({**row, "found": float(np.concatenate(found).mean())})
  part = {"rows": rows, "examples": total, "steps": options.steps}
  if options.loss_cap is None or context.kind != "classifier":
    return part
  loss, most = _clean_loss(context, options, batches, size, total), options.loss_cap
  value = lambda kl: loss + most * math.sqrt(kl / 2)  # noqa: E731
  for row in rows:
    row |= {"value": value(row["kl"]), "vacuous": value(row["kl"]) >= most}
  low, high = math.log(1e-7), math.log(largest)
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    below = value(float(certified(math.exp(middle)).mean())) < most
    low, high = (middle, high) if below else (low, middle)
  whole = {"M": most, "clean_loss": loss, "alpha": options.alpha}
  return part | whole | {"largest_epsilon": math.exp(low)}


def _found(encoder, images, epsilon, steps, seed):
  attack = attacks.PGD(attacks.Linf(epsilon), steps, keep="best")
  found = attack.run(kl_objective(encoder, images), images, distribution.fold([seed, 0], _STREAM))
  return found[1]["objective"].numpy()


def _clean_loss(context, options, batches, size, total):
  """An upper bound, with confidence 1 - alpha, of the mean over z of the mean clean loss."""
  losses = []
  for number, (images, labels) in enumerate(batches):
    seed = distribution.fold([context.seed, 1], _STREAM, number)
    found = bound.sampled_losses(
      *(context.model, scoring.pad(images, size), scoring.pad(labels, size)),
      *(options.loss_cap, seed, _SAMPLES),
    )
    losses.append(found[0].numpy()[: len(images)])
  slack = options.loss_cap * math.sqrt(math.log(1 / options.alpha) / (2 * total * _SAMPLES))
  return float(np.concatenate(losses).astype(np.float64).mean()) + slack
