"""What an encoder does under its worst perturbation, without a label."""

import functools

import numpy as np
import tensorflow as tf

from urkle_tf import attacks, distribution, networks
from urkle_tf.evaluation import bound, scoring
from urkle_tf.evaluation.store import Store
from urkle_tf.networks.kl import kl_mean_part, worst
from urkle_tf.output import progress, tables


def nearest(queries, keys):
  """The position of each query's nearest key by cosine, its own position left out.

  Args:
    queries: float [n, d]; query i belongs to key i.
    keys: float [n, d].

  Returns:
    int64 [n].
  """
  unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # noqa: E731
  queries, keys = unit(queries), unit(keys)
  found = []
  for start in range(0, len(queries), 1000):
    similarity = queries[start : start + 1000] @ keys.T
    rows = np.arange(len(similarity))
    similarity[rows, start + rows] = -np.inf
    found.append(np.argmax(similarity, 1))
  return np.concatenate(found)


_RANK_EXAMPLES = 10_000  # images that the effective rank is of


def effective_rank(rows):
  """How many dimensions representations span: tr(C)^2 / tr(C^2), C their covariance.

  Args:
    rows: float [n, d], n at least 2.

  Returns:
    A float: 1 for points on a line, d for an isotropic cloud.
  """
  covariance = np.atleast_2d(np.cov(np.asarray(rows, np.float64).T))
  return float(np.trace(covariance) ** 2 / max(np.sum(covariance**2), 1e-30))


def _rank(encoder, source, batch_size):
  """(effective rank of loc, of how many images): the first 10,000, in inference mode."""
  loc = tf.function(lambda images: encoder(images, training=False).loc)
  total = min(_RANK_EXAMPLES, source.size)
  mask = np.arange(source.size) < total
  rows, found = [], 0
  for _, images, _ in scoring.stream(source, batch_size, mask):
    rows.append(loc(scoring.pad(images, batch_size)).numpy()[: len(images)])
    found += len(images)
    if found >= total:
      break
  return effective_rank(np.concatenate(rows)), total


def measure(
  network,
  source,
  norm,
  epsilon,
  steps=50,
  restarts=2,
  examples=1000,
  batch_size=250,
  seed=0,
  loss_cap=None,
  arrays=None,
  store=None,
):
  """The report's part "representation".

  The perturbation maximises KL[p(z|x) || p(z|x')], by PGD with more steps and restarts than
  training uses: a weak inner maximum looks like a good KL.

  Args:
    network: Keras model, images -> {"loc", "scale"}.
    source: a `Source`; labels are not read.
    norm: of the threat model.
    epsilon: its radius in pixel units.
    steps: of PGD.
    restarts: of PGD.
    examples: the first so many images are measured.
    batch_size: images that are attacked together.
    seed: of the starts.
    loss_cap: M of Proposition 1 in nats, of a loss to come; None if there is none.
    arrays: a dict that the images' own figures and adversaries are put into; None for none.
    store: a `Store` that remembers batches; None for none.

  Returns:
    A dict: "kl_mean" and "kl_max" in nats, of the worst perturbation of each image;
    "kl_mean_part" what of the mean comes from loc alone; "sigma" (mean; "sigma_min",
    "sigma_max"); "snr" the mean of |loc| / sigma; "loc_std" the spread of loc over the images,
    in whose units sigma means something; "effective_rank" tr(C)^2 / tr(C^2), C the covariance of
    loc over the first 10,000 images ("rank_examples"); "drift" the mean distance that loc moves
    over the mean distance between different images (0 stays, 1 is as far as another image);
    "neighbour_flips" the share of images whose nearest other image (cosine of loc) becomes another
    one; "regulariser_per_nat" sqrt(mean KL / 2) and "regulariser_tight_per_nat" the mean of
    sqrt(KL / 2): times M, what Proposition 1 adds to the clean loss of any classifier of z whose
    loss is at most M (eq. 4 and eq. 31); and with `loss_cap` "M", "regulariser" and
    "regulariser_tight", these products.
  """
  encoder = networks.ExportedEncoder(network)
  attack = attacks.PGD(
    attacks.from_norm(norm, epsilon), steps=steps, restarts=restarts, keep="best"
  )
  total = min(examples, source.size)
  batch_size = min(batch_size, total)
  seed = distribution.fold([seed, 0], scoring.REPRESENTATION_STREAM)

  @tf.function
  def attacked(images, seed):
    pair = worst(encoder, images, attack, seed)
    return {
      "kl": pair.kl,
      "mean_part": kl_mean_part(pair.clean, pair.attacked),
      "loc": pair.clean.loc,
      "scale": pair.clean.scale,
      "moved": pair.attacked.loc,
    } | ({} if arrays is None else {"adversaries": pair.neighbours})

  def measure_batch(number, images):
    values = attacked(scoring.pad(images, batch_size), distribution.fold(seed, number))
    return {name: value.numpy()[: len(images)] for name, value in values.items()}

  mask = np.arange(source.size) < total
  bar = progress.Progress(
    f"worst KL({steps}x{restarts}) {norm} {tables.radius(epsilon, norm)}", total
  )
  store, parts = store or Store(), []
  for number, (_, images, _) in enumerate(scoring.stream(source, batch_size, mask)):
    compute = functools.partial(measure_batch, number, images)
    parts.append(store.arrays(f"representation-{number}", compute))
    bar.add(len(images), f"{np.mean(parts[-1]['kl']):.3g} nats")
    if bar.done >= total:
      break
  values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  loc, scale = values["loc"].astype(np.float64), values["scale"].astype(np.float64)
  moved = np.linalg.norm(values["moved"] - loc, axis=1).mean()
  spread = max(_mean_distance(loc), 1e-12)
  flips = nearest(values["moved"], loc) != nearest(loc, loc)
  if arrays is not None:
    snr = np.mean(np.abs(loc) / scale, 1)
    found = {"kl": values["kl"], "sigma": scale.mean(1), "snr": snr, "neighbour_flips": flips}
    found |= {"drift": np.linalg.norm(values["moved"] - loc, axis=1) / spread}
    found |= {"adversaries": values["adversaries"]}
    arrays |= {f"representation_{name}": array for name, array in found.items()}
  plain, tight = bound.roots(values["kl"])
  rank, rank_examples = _rank(encoder, source, batch_size)
  capped = {}
  if loss_cap is not None:
    capped = {"M": float(loss_cap)}
    capped |= {"regulariser": loss_cap * plain, "regulariser_tight": loss_cap * tight}
  return {
    "kl_mean": float(values["kl"].mean(dtype=np.float64)),
    "kl_max": float(values["kl"].max()),
    "kl_mean_part": float(values["mean_part"].mean(dtype=np.float64)),
    "sigma": float(scale.mean()),
    "sigma_min": float(scale.min()),
    "sigma_max": float(scale.max()),
    "snr": float(np.mean(np.abs(loc) / scale)),
    "loc_std": float(loc.std(0).mean()),
    "effective_rank": rank,
    "rank_examples": rank_examples,
    "drift": float(moved / spread),
    "neighbour_flips": float(flips.mean()),
    "regulariser_per_nat": plain,
    "regulariser_tight_per_nat": tight,
    **capped,
    "norm": norm,
    "epsilon": float(epsilon),
    "steps": steps,
    "restarts": restarts,
    "examples": total,
  }


def _mean_distance(rows):
  """The mean Euclidean distance between different rows (of the first 1,000)."""
  rows = rows[:1000]
  squares = np.sum(rows**2, 1)
  distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0))
  np.fill_diagonal(distances, 0.0)
  return distances.sum() / max(len(rows) * (len(rows) - 1), 1)
