"""The map of sampled z, figure 2 of the Urkle paper."""

import numpy as np
import tensorflow as tf
from sklearn import decomposition

from urkle_tf import distribution
from urkle_tf.networks import representations
from urkle_tf.networks.encoders import Encoder, ExportedEncoder
from urkle_tf.networks.kl import worst
from urkle_tf.output import figures, tables

# One per image; colour-blind readers can tell them apart (Paul Tol's "muted" and a black).
COLOURS = (
  *("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee"),
  *("#882255", "#44aa99", "#222222", "#aa4499", "#999933"),
)


def sampled(encoder, images, attack, samples=20, seed=0):
  """Draws samples of z for images and for their unsupervised adversaries.

  An image and its adversary share their noise, so any difference between their samples comes from
  the distribution.

  Args:
    encoder: a `GaussianEncoder` or a loaded encoder, or a Keras model images -> {"loc", "scale"};
      it runs in inference mode.
    images: float32 [n, h, w, c] in [0, 1].
    attack: an attack such as `attacks.PGD`, which maximises KL[p(z|x) || p(z|x')] of `encoder`.
    samples: samples of z per image.
    seed: an int.

  Returns:
    A dict of float32 tensors: "clean" and "adversaries" [n, samples, d_z], and "kl" [n], that of
    the adversaries in nats.
  """
  if not isinstance(encoder, Encoder):
    encoder = ExportedEncoder(encoder)
  images = tf.cast(representations.checked(tf.convert_to_tensor(images)), tf.float32)
  found = worst(encoder, images, attack, distribution.fold([seed, 0], 0))
  dimensions = int(found.clean.loc.shape[-1])
  shape = [int(images.shape[0]), samples, dimensions]
  noise = distribution.normal(distribution.fold([seed, 0], 1), shape)
  draw = lambda normal: normal.loc[:, None] + normal.scale[:, None] * noise  # noqa: E731
  return {"clean": draw(found.clean), "adversaries": draw(found.attacked), "kl": found.kl}


def project(clean, adversaries):
  """The two directions in which clean samples vary most, for both sets of samples.

  Args:
    clean: float [n, samples, d_z].
    adversaries: the same.

  Returns:
    (clean [n, samples, 2], adversaries [n, samples, 2], shares [2] of the clean samples'
    variance that each direction holds).
  """
  size = clean.shape[-1]
  if size == 1:  # a line
    pad = lambda values: np.pad(values, ((0, 0), (0, 0), (0, 1)))  # noqa: E731
    return pad(clean - clean.mean()), pad(adversaries - clean.mean()), np.array([1.0, 0.0])
  # The randomised solver would use NumPy's global generator.
  model = decomposition.PCA(2, svd_solver="full").fit(clean.reshape(-1, size).astype(np.float64))
  clean, adversaries = (
    model.transform(values.reshape(-1, size)).reshape(*values.shape[:2], 2)
    for values in (clean, adversaries)
  )
  return clean, adversaries, model.explained_variance_ratio_


def _short(value):
  """Formats a number as 1.32, 31.3 or 3,130, and never 3.13e+03."""
  return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def figure(rows, images, attack):
  """Draws samples of z: clean images on the left, their adversaries on the right.

  Each image has its colour.  Each row of panels shows the plane of the first two principal
  components of its clean samples; both panels have the same limits.  On the right, a ring marks the
  mean of an image's clean samples, and a line leads to the mean of its adversary's samples.

  Args:
    rows: {title: the result of `sampled`, as arrays}, a row of panels for each.
    images: float32 [n, h, w, c] in [0, 1], shown above, framed in their colours.
    attack: the attack that found the adversaries.

  Returns:
    A matplotlib figure.
  """
  count = len(next(iter(rows.values()))["clean"])
  colours = [COLOURS[i % len(COLOURS)] for i in range(count)]
  canvas = figures.canvas(7.6, 1.2 + 3.9 * len(rows))
  parts = canvas.subfigures(1 + len(rows), 1, height_ratios=[1.2] + [3.9] * len(rows))
  samples = next(iter(rows.values()))["clean"].shape[1]
  threat, name = attack.threat, attack.name.upper().replace("_", "-")
  parts[0].suptitle(
    f"{samples} samples of z per image. Adversaries: {name}-{attack.steps} on the "
    f"KL, {threat.norm}, epsilon {tables.radius(float(threat.epsilon), threat.norm)}",
    fontsize=9,
  )
  for axes, image, colour in zip(parts[0].subplots(1, count, squeeze=False)[0], images, colours):
    _thumbnail(axes, image, colour)
  for part, (title, row) in zip(parts[1:], rows.items(), strict=True):
    if title:
      part.suptitle(title, fontsize=10, fontweight="bold")
    left, right = part.subplots(1, 2, sharex=True, sharey=True)
    clean, adversaries, shares = project(row["clean"], row["adversaries"])
    left.set_title("clean", fontsize=9)
    right.set_title(
      f"unsupervised adversaries: KL {_short(np.mean(row['kl']))} nats, mean", fontsize=9
    )
    for axes, points in ((left, clean), (right, adversaries)):
      for cloud, colour in zip(points, colours, strict=True):
        axes.scatter(*cloud.T, s=14, color=colour, alpha=0.75, linewidths=0)
      axes.set_xlabel(f"first component ({shares[0]:.0%} of the clean variance)", fontsize=8)
      axes.tick_params(labelsize=7)
      axes.set_aspect("equal")
      axes.grid(alpha=0.25, linewidth=0.5)
      axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(f"second component ({shares[1]:.0%})", fontsize=8)
    for before, after, colour in zip(clean.mean(1), adversaries.mean(1), colours, strict=True):
      right.plot(*np.stack([before, after], 1), color=colour, linewidth=0.9, zorder=1)
      right.plot(*before, "o", color=colour, fillstyle="none", markersize=6, zorder=1)
    points = np.concatenate([clean, adversaries]).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, 0.53 * max(np.max(high - low), 1e-6)  # a square
    left.set_xlim(middle[0] - half, middle[0] + half)
    left.set_ylim(middle[1] - half, middle[1] + half)
  return canvas


def _thumbnail(axes, image, colour):
  axes.imshow(np.clip(figures.coloured(image), 0, 1), interpolation="nearest")
  axes.set_xticks([])
  axes.set_yticks([])
  for spine in axes.spines.values():
    spine.set(color=colour, linewidth=3)


def draw(encoders, images, attack, file=None, samples=20, seed=0):
  """Figure 2 of the Urkle paper: a 2-D map of sampled z, with a row of panels for each encoder.

  Args:
    encoders: {title: encoder}, as in `sampled`: for example with and without Urkle.
    images: float [n, h, w, c] in [0, 1]; about 10.
    attack: an attack such as `attacks.PGD`.
    file: where to write a PNG, a `pathlib.Path`; None writes nothing.
    samples: samples of z per image.
    seed: the seed of the noise and of the attack's starts.

  Returns:
    The figure's pixels, uint8 [height, width, 3].

  Raises:
    UserError: for images of integers.
  """
  rows = {}
  for title, encoder in encoders.items():
    # A graph: an attack of many steps is slow without one.
    found = tf.function(
      lambda x, encoder=encoder: sampled(encoder, x, attack, samples, seed), autograph=False
    )
    rows[title] = {name: value.numpy() for name, value in found(tf.constant(images)).items()}
  picture = figures.pixels(figure(rows, images, attack), dpi=150)
  if file is not None:
    figures.save(picture, file)
  return picture
