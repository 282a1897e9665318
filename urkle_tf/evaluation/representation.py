"""Measures an encoder under its worst perturbation, without labels."""

import numpy as np
import tensorflow as tf
from scipy.spatial import distance

from urkle_tf import attacks, distribution, networks
from urkle_tf.evaluation import bound, scoring
from urkle_tf.networks.kl import kl_mean_part, worst
from urkle_tf.training import latent_map

_RANK_EXAMPLES = 10_000  # images for the effective rank


def unit(rows):
  """Rows [n, d] scaled to length 1; rows of zeros stay."""
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(queries, keys, count=1, itself=True):
  """The positions of each query's nearest keys by cosine, nearest first.

  Args:
    queries: float [n, d].
    keys: float [m, d].
    count: how many.
    itself: whether query i belongs to key i, which is then left out.

  Returns:
    int64 [n, count].
  """
  queries, keys = unit(queries), unit(keys)
  found = []
  for start in range(0, len(queries), 1000):
    similarity = queries[start : start + 1000] @ keys.T
    if itself:
      rows = np.arange(len(similarity))
      similarity[rows, start + rows] = -np.inf
    found.append(np.argsort(-similarity, 1, kind="stable")[:, :count])
  return np.concatenate(found)


def effective_rank(rows):
  """The number of dimensions that representations span: tr(C)^2 / tr(C^2), C their covariance.

  Args:
    rows: float [n, d].

  Returns:
    A float: 1 for points on a line, d for an isotropic cloud, 0 for one point.
  """
  covariance = np.atleast_2d(np.cov(np.asarray(rows, np.float64).T, bias=True))
  return float(np.trace(covariance) ** 2 / max(np.sum(covariance**2), 1e-30))


def _rank(encoder, source, batch_size):
  """The effective rank of loc over the first 10,000 images, and the number of these images."""
  total = min(_RANK_EXAMPLES, source.size)
  embed = lambda images: encoder(images, training=False).loc  # noqa: E731
  rows, _ = scoring.embeddings(embed, source, batch_size, total)
  return {"effective_rank": effective_rank(rows), "rank_examples": total}


def measure(context, options):
  """The report's part "representation".

  The perturbation maximises KL[p(z|x) || p(z|x')], by PGD with more steps and restarts than
  training uses: a weak inner maximum looks like a good KL.  With `context.save_images`, each
  image's own figures and adversary go into `context.arrays`.

  Args:
    context: a `Context` with a `network`; labels are not read.
    options: a `measurements.representation.Representation`.

  Returns:
    A dict: "kl_mean" and "kl_max" in nats, of the worst perturbation of each image;
    "kl_mean_part", the part of the mean that comes from loc alone; "sigma" (mean; "sigma_min",
    "sigma_max"); "snr", the mean of |loc| / sigma; "loc_std", the spread of loc over the images,
    the natural unit of sigma; "effective_rank", tr(C)^2 / tr(C^2), C the covariance of loc over the
    first 10,000 images ("rank_examples"); "drift", the mean distance that loc moves, over the mean
    distance between different images (1 is as far as another image; 0 if there is only one image);
    "neighbour_flips", the share of images whose nearest other image (cosine of loc) changes;
    "regulariser_per_nat", sqrt(mean KL / 2), and "regulariser_tight_per_nat", the mean of
    sqrt(KL / 2).  Times M, these are what Proposition 1 adds to the clean loss of any classifier of
    z whose loss is at most M (eq. 4 and eq. 31).  With `loss_cap`, an encoder alone also has "M",
    "regulariser" and "regulariser_tight", these products.
  """
  encoder = networks.ExportedEncoder(context.network)
  total = min(options.examples, context.source.size)
  title = f"worst KL({options.steps}x{options.restarts})"
  compute = _worst(context, options, encoder, min(context.batch_size, total))
  values = context.over_first(total, "representation", title, compute)
  loc, scale = values["loc"].astype(np.float64), values["scale"].astype(np.float64)
  moved = np.linalg.norm(values["moved"] - loc, axis=1)
  distances = distance.pdist(loc[:1000])
  spread = max(distances.mean(), 1e-12) if len(distances) else np.inf
  flips = (nearest(values["moved"], loc) != nearest(loc, loc))[:, 0]
  snr = np.abs(loc) / scale
  if context.save_images:
    each = {"kl": values["kl"], "sigma": scale.mean(1), "snr": snr.mean(1)}
    each |= {"neighbour_flips": flips, "drift": moved / spread}
    each["adversaries"] = values["adversaries"]
    context.arrays |= {f"representation_{name}": array for name, array in each.items()}
  loss_cap = options.loss_cap if context.kind == "encoder" else None
  return {
    "kl_mean": float(values["kl"].mean(dtype=np.float64)),
    "kl_max": float(values["kl"].max()),
    "kl_mean_part": float(values["mean_part"].mean(dtype=np.float64)),
    "sigma": float(scale.mean()),
    "sigma_min": float(scale.min()),
    "sigma_max": float(scale.max()),
    "snr": float(np.mean(snr)),
    "loc_std": float(loc.std(0).mean()),
    **_rank(encoder, context.source, min(context.batch_size, total)),
    "drift": float(moved.mean() / spread),
    "neighbour_flips": float(flips.mean()),
    **_regularisers(values["kl"], loss_cap),
    "norm": context.norm,
    "epsilon": float(context.epsilon),
    "steps": options.steps,
    "restarts": options.restarts,
    "examples": total,
  }


def _regularisers(divergence, loss_cap):
  """What Proposition 1 adds to the clean loss: per nat of M, and for M if it is given."""
  plain, tight = bound.roots(divergence)
  found = {"regulariser_per_nat": plain, "regulariser_tight_per_nat": tight}
  if loss_cap is not None:
    found |= {"M": float(loss_cap)}
    found |= {"regulariser": loss_cap * plain, "regulariser_tight": loss_cap * tight}
  return found


def _worst(context, options, encoder, batch_size):
  """A function from a batch to the images' worst KL and representations, for `over_first`."""
  attack = attacks.PGD(context.threat, options.steps, restarts=options.restarts, keep="best")
  seed = distribution.fold([context.seed, 0], scoring.REPRESENTATION_STREAM)

  @tf.function(autograph=False)
  def attacked(images, seed):
    pair = worst(encoder, images, attack, seed)
    return {
      "kl": pair.kl,
      "mean_part": kl_mean_part(pair.clean, pair.attacked),
      "loc": pair.clean.loc,
      "scale": pair.clean.scale,
      "moved": pair.attacked.loc,
    } | ({"adversaries": pair.neighbours} if context.save_images else {})

  return scoring.by_batch(attacked, batch_size, seed)


def draw_map(context):
  """Draws samples of z of the first ten images, and of their unsupervised adversaries."""
  _, images, _ = next(scoring.stream(context.source, min(10, context.source.size)))
  attack = attacks.PGD(context.threat, steps=50, keep="best")
  settings = context.metadata.get("settings", {})
  title = ", ".join(settings[name] for name in ("pretext", "robustness") if name in settings)
  file = context.folder / "figures" / "latent_map.png"
  latent_map.draw({title: context.network}, images, attack, file, seed=context.seed)
