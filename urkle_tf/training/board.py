"""Shows a run's settings, and embeddings under attack, in TensorBoard."""

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from urkle_tf import distribution, export
from urkle_tf.data import pipeline
from urkle_tf.networks.kl import worst
from urkle_tf.output import projector

HEALTH = "1_health"  # sorts before every other group, so that it is TensorBoard's first screen
_IMAGES = 256  # images in the Projector, each clean and attacked
_TOGETHER = 64  # images that are attacked at once

# Signs of a run that goes wrong, for the first screen and for HParams.
SIGNS = (
  *("loss", "knn_accuracy", "knn_robust_accuracy", "kl"),
  *("effective_rank", "attack_objective", "sigma_mean"),
)
# Settings by which HParams compares runs; the text of the flags holds the others.
_COMPARED = (
  *("pretext", "robustness", "augment", "encoder", "loc", "latent_dim", "norm", "epsilon"),
  *("attack_steps", "batch_size", "epochs", "minutes", "optimizer", "learning_rate"),
  *("weight_decay", "seed"),
)


def settings(writer, values):
  """Writes a run's settings as text, the flags that repeat it, and as hyper-parameters.

  Args:
    writer: a `tf.summary` writer.
    values: {flag: value}, without paths of this machine, as in an export.
  """
  shown = export.settings_without_paths(values)
  flags = [f"    --{name}={value}" for name, value in shown.items() if value is not None]
  compared = {name: shown[name] for name in _COMPARED if shown.get(name) is not None}
  with writer.as_default(0):
    tf.summary.text("flags", "\n".join(flags))
    hparams.hparams_config(
      [hparams.HParam(name) for name in compared],
      [hparams.Metric(f"{HEALTH}/{name}", display_name=name) for name in SIGNS],
    )
    hparams.hparams(compared)
  writer.flush()


def embeddings(encoder, attack, source, folder, seed=0):
  """Shows images and their adversaries in the Projector, with thumbnails.

  Adversaries maximise KL[p(z|x) || p(z|x')], so they need no label.  Labels only name the points.

  Args:
    encoder: a `GaussianEncoder` or a loaded one.
    attack: for example an `attacks.PGD`.
    source: the `Source` of images; the first ones are shown, without augmentation.
    folder: the folder of the event files, a `pathlib.Path`.
    seed: an int.
  """
  batches = list(pipeline.batches(source, _TOGETHER).take(_IMAGES // _TOGETHER))
  found = [
    _before_and_after(encoder, attack, batch["image"], distribution.fold([seed, 2], number))
    for number, batch in enumerate(batches)
  ]
  clean, attacked, pictures, attacked_pictures = map(np.concatenate, zip(*found, strict=True))
  count = len(clean)
  columns = {"state": count * ["clean"] + count * ["attacked"], "image": 2 * list(range(count))}
  if "label" in batches[0]:
    labels = np.concatenate([batch["label"] for batch in batches])
    shown = projector.named(labels, source.class_names)
    columns = {"label": 2 * shown, **columns}  # the Projector labels points by the first
  vectors = np.concatenate([clean, attacked])
  projector.write(folder, vectors, columns, np.concatenate([pictures, attacked_pictures]), "loc")


def _before_and_after(encoder, attack, images, seed):
  """(loc, attacked loc, thumbnails, attacked thumbnails) of images."""
  found = worst(encoder, images, attack, seed)
  locs = (found.clean.loc.numpy(), found.attacked.loc.numpy())
  return (*locs, *(projector.thumbnails(x, 2 * _IMAGES) for x in (images, found.neighbours)))
