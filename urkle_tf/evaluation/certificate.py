"""Proposition 1 with a KL that no perturbation in the ball exceeds (Urkle paper, eq. 4)."""

import math

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, errors, networks
from urkle_tf.evaluation import bound, scoring
from urkle_tf.networks import policies
from urkle_tf.networks.bounds import kl as bounding
from urkle_tf.networks.kl import worst

_STREAM = 9  # of a seed, besides those of `scoring` and `bound`
_SAMPLES = 200
_SMALLEST = 1e-7  # epsilon that is tried
_HALVINGS = 12  # of the interval that holds the largest epsilon, in logarithms


def measure(context, options):
  """The report's part "certificate".

      E[max -log E_z p~(y|z')] <= E[E_z -log p~(y|z)] + M / sqrt(2) sqrt(E[max KL])

  over the measured images.  The KL is an upper bound by `networks.bounds.kl`.  The clean loss lies
  in [0, M], so Hoeffding's inequality bounds its mean over z.

  Args:
    context: a `Context` of a classifier or encoder of this package, which computes in float32 here.
    options: a `measurements.certificate.Certificate`.

  Returns:
    {"rows": [{"epsilon", "kl" (certified), "found" (PGD)} and with M of a classifier "value",
    "vacuous"], "examples", "steps", "bounds"}, and with M "M", "clean_loss", "alpha" and
    "largest_epsilon", up to the evaluation's, at which the bound is below M (0 if there is none);
    means over images, in nats.

  Raises:
    UserError: if the network contains a layer without a rule for bounds, or a bound is not finite.
  """
  encoder = networks.ExportedEncoder(context.network)
  total = min(options.examples, context.source.size)
  size = min(context.batch_size, total)
  batches = [batch[1:] for batch in scoring.stream(context.source, size, total)]
  with policies.computing_in("float32", encoder.network):
    return _measured(context, options, encoder, batches, size)


def _measured(context, options, encoder, batches, size):
  """See `measure`; `batches` are (images, labels) of `size` images each, the last of fewer."""
  total = sum(len(images) for images, _ in batches)
  bounds = tf.function(
    lambda images, epsilon: bounding.kl_bound(encoder, images, epsilon, options.bounds),
    autograph=False,
  )

  def certified(epsilon):
    radius = tf.constant(epsilon, tf.float32)
    parts = [bounds(scoring.pad(x, size), radius).numpy()[: len(x)] for x, _ in batches]
    return np.concatenate(parts).astype(np.float64)

  rows = []
  for epsilon in options.epsilons or [context.epsilon / 10**power for power in range(4)]:
    row = {"epsilon": epsilon, "kl": float(certified(epsilon).mean())}
    if not math.isfinite(row["kl"]):  # which JSON does not hold
      raise errors.UserError(
        f"certificate: at epsilon {epsilon:g} the bound of the KL is not finite, because it "
        "grows with each layer: give smaller epsilons, or leave the certificate out"
      )
    attack = attacks.PGD(attacks.Linf(epsilon), options.steps, keep="best")
    found = [
      worst(encoder, images, attack, distribution.fold([context.seed, 0], _STREAM, number)).kl
      for number, (images, _) in enumerate(batches)
    ]
    rows.append({**row, "found": float(np.concatenate(found).mean())})
  part = {"rows": rows, "examples": total, "steps": options.steps, "bounds": options.bounds}
  if options.loss_cap is None or context.kind != "classifier":
    return part
  loss, most = _clean_loss(context, options, batches, size, total), options.loss_cap
  value = lambda kl: loss + most * math.sqrt(kl / 2)  # noqa: E731
  for row in rows:
    row |= {"value": value(row["kl"]), "vacuous": value(row["kl"]) >= most}
  below = lambda epsilon: value(float(certified(epsilon).mean())) < most  # noqa: E731
  whole = {"M": most, "clean_loss": loss, "alpha": options.alpha}
  return part | whole | {"largest_epsilon": _largest(below, context.epsilon)}


def _largest(below, most):
  """The largest epsilon up to `most` at which the bound is below M; 0 if there is none."""
  if below(most):
    return most
  if not below(_SMALLEST):
    return 0.0
  low, high = math.log(_SMALLEST), math.log(most)
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    low, high = (middle, high) if below(math.exp(middle)) else (low, middle)
  return math.exp(low)


def _clean_loss(context, options, batches, size, total):
  """An upper bound, with confidence 1 - alpha, of the mean over z of the mean clean loss."""
  losses = []
  for number, (images, labels) in enumerate(batches):
    seed = distribution.fold([context.seed, 1], _STREAM, number)
    padded, truth = scoring.pad(images, size), scoring.pad(labels, size)
    found, _ = bound.sampled_losses(
      context.model, padded, truth, options.loss_cap, seed, samples=_SAMPLES
    )
    losses.append(found.numpy()[: len(images)])
  slack = options.loss_cap * math.sqrt(math.log(1 / options.alpha) / (2 * total * _SAMPLES))
  return float(np.concatenate(losses).astype(np.float64).mean()) + slack
