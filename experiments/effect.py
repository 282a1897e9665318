"""Draws images, their adversaries, and the predictions of two classifiers on them.

  python experiments/effect.py PICTURE --plain=FOLDER --robust=preset:NAME --dataset=cifar10

The images are the first of the test split that both classifiers get right.  Each classifier is
attacked separately, by PGD with 50 steps.  The command also prints how many of all attacked images
each classifier gets right.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import quiet  # noqa: F401

# isort: split

import numpy as np
import tensorflow as tf

from experiments import jobs
from urkle_tf import attacks, errors, export
from urkle_tf.attacks import losses
from urkle_tf.data import compatibility, pipeline, sources
from urkle_tf.output import files, tables
from urkle_tf.output.figures import canvas

STEPS = 50  # of PGD
RIGHT, WRONG = "#00664b", "#b3261e"


def attacker(logits, attack):
  """(predict, find): compiled functions of images to classes, and of (images, labels, seed).

  Args:
    logits: a function of images.
    attack: finds the adversaries that `find` returns.
  """

  @tf.function(reduce_retracing=True)
  def predict(images):
    return tf.argmax(logits(images), 1)

  @tf.function(reduce_retracing=True)
  def find(images, labels, seed):
    return attack(lambda near: losses.cross_entropy(logits(near), labels), images, seed)

  return predict, find


def attacked(classifier, images, labels, threat):
  """Attacks the classifier at z = mu.

  Args:
    classifier: an exported `Classifier`, or a preset's.
    images: float32 [n, h, w, c] in [0, 1].
    labels: int [n].
    threat: a threat model.

  Returns:
    (predictions on the images, the adversaries, predictions on these): arrays.
  """
  attack = attacks.PGD(threat, steps=STEPS, keep="best")
  predict, find = attacker(classifier.frozen().logits, attack)
  adversaries = find(images, labels, tf.constant([0, 0]))
  return tuple(map(np.asarray, (predict(images), adversaries, predict(adversaries))))


def draw(file, images, labels, names, found, count, title):
  """Draws the images, and below them each classifier's adversaries with its predictions.

  Args:
    file: a `pathlib.Path`, the PNG.
    images: [n, h, w, c].
    labels: int [n].
    names: of the classes.
    found: {name of a classifier: the result of `attacked`}.
    count: the largest number of images to show.
    title: of the picture.

  Returns:
    {name of a classifier: (how many of the n images it gets right clean, and attacked)}.
  """
  scores = {
    n: (int(np.sum(c == labels)), int(np.sum(a == labels))) for n, (c, _, a) in found.items()
  }
  both = np.all([clean == labels for clean, _, _ in found.values()], axis=0)
  chosen = np.flatnonzero(both)[:count]
  if not chosen.size:
    raise errors.UserError(
      "there is no image that both classifiers get right: give more --examples"
    )
  rows = [("clean", images, None)]
  rows += [(name, adversaries, after) for name, (_, adversaries, after) in found.items()]
  figure = canvas(1.25 * len(chosen), 1.52 * len(rows) + 0.4)
  grid = figure.subplots(len(rows), len(chosen), squeeze=False)
  for line, (name, pixels, said) in zip(grid, rows):
    line[0].set_ylabel(name, fontsize=10)
    for axes, number in zip(line, chosen):
      axes.imshow(np.clip(pixels[number], 0, 1), cmap="gray", vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
      answer = labels[number] if said is None else said[number]
      right = answer == labels[number]
      colour = "black" if said is None else RIGHT if right else WRONG
      mark = "" if said is None else " ✓" if right else " ✗"
      axes.set_title(names[answer] + mark, fontsize=9, color=colour)
      axes.spines[:].set(color=colour, linewidth=0.8 if said is None else 2)
  figure.suptitle(title, fontsize=11)
  files.write(file, lambda stream: figure.savefig(stream, dpi=110, format="png"))
  return scores


def show(file, models, source, threat, title, examples, count=8):
  """Attacks classifiers on the first images of a source, and draws them; returns that of `draw`.

  Args:
    file: a `pathlib.Path`, the PNG.
    models: {name: classifier}.
    source: a labelled `Source`.
    threat: a threat model.
    title: of the picture.
    examples: the number of images to attack.
    count: the largest number of images to show.
  """
  batch = next(iter(pipeline.batches(source, examples)))
  images, labels = batch["image"], batch["label"].numpy()
  found = {name: attacked(model, images, labels, threat) for name, model in models.items()}
  return draw(file, images.numpy(), labels, source.class_names, found, count, title)


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("picture", type=pathlib.Path, help="the PNG to write")
  parser.add_argument("--plain", required=True, help="a classifier trained without attacks")
  parser.add_argument("--robust", required=True, help="a robust classifier, or preset:NAME")
  parser.add_argument("--dataset", default="digits", help="a TFDS name, digits or folder:PATH")
  parser.add_argument("--data_dir", help="folder of prepared TFDS data")
  parser.add_argument("--examples", type=int, default=200, help="number of test images to attack")
  parser.add_argument("--show", type=int, default=8, help="number of images to show")
  given = parser.parse_args()
  errors.flags_at_least(1, vars(given), "show")
  source = sources.load(given.dataset, "test", data_dir=given.data_dir, examples=given.examples)
  compatibility.check_labelled(source)
  plain, robust = map(export.load_classifier, (given.plain, given.robust))
  for name, model in (("--plain", plain), ("--robust", robust)):
    compatibility.check_images(model.metadata["image_size"], source, name)
    names = model.metadata.get("class_names")
    compatibility.check_classes(model.metadata["classes"], names, source)
  if "epsilon" not in robust.metadata:
    raise errors.UserError(
      f"--robust={given.robust} was trained without an attack: give a robust classifier"
    )
  threat = attacks.from_norm(robust.metadata["norm"], robust.metadata["epsilon"])
  models = {"plain": plain, "robust": robust}
  radius = tables.threat(robust.metadata)
  title = f"Each classifier on its own adversary: PGD with {STEPS} steps, {radius}"
  scores = show(given.picture, models, source, threat, title, given.examples, given.show)
  for name, (clean, left) in scores.items():
    print(f"{name}: {clean} of {source.size} right, {left} under attack")


if __name__ == "__main__":
  jobs.main(main)
