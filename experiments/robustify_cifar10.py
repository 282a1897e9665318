#!/usr/bin/env python3
"""Trained networks made robust without labels, under their old heads: docs/results/robustify.md.

  python experiments/robustify_cifar10.py --data_dir=DATA_DIR --work=runs/robustify_cifar10

A ViT and a ConvNeXt-like network are trained on train[:45000] of CIFAR-10 with labels, in plain
Keras.  They represent weights that others have trained.  A second ViT is trained contrastively,
against a vector for each class, as CLIP's image tower is against embeddings of names.  `robustify`
then sees the same images without labels.  Heads and class vectors do not change.  Choices are made
on train[45000:45500], and the table is about 2,000 test images.  Finished parts are not run again.
"""

import itertools
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import quiet  # noqa: F401

# isort: split

import keras
import numpy as np
import tensorflow as tf

import urkle_tf
from experiments import effect, jobs, pages
from urkle_tf import attacks, errors
from urkle_tf.data import pipeline, sources
from urkle_tf.output import files, tables

layers = keras.layers
EPSILON = 4 / 255
LEARN, CHECK, TEST = "train[:45000]", "train[45000:45500]", "test[:2000]"
ROBUSTIFY = {
  "drop_in": True,
  "dataset": "cifar10",
  "split": LEARN,
  "augment": "crop(padding=4)",
  "epsilon": EPSILON,
  "attack": "n_fgsm",
  "batch_size": 128,
  "epochs": 1,
  "optimizer": "adamw",
  "learning_rate": 1e-3,
  "warmup_epochs": 0.05,
  "log_every": 50,
}
# At a larger radius than that of the test, the budget rho is reached.  k=2 is FARE's objective with
# a weight: drift + k |f(x') - f0(x)|^2 / (2 spread).
FURTHER = {"epsilon": 8 / 255, "learning_rate": 2e-3, "epochs": 4}
SETTINGS = {
  "4/255, rho=0.2": {"rho": 0.2},
  "8/255, rho=0.05, 4 epochs": {"rho": 0.05, **FURTHER},
  "8/255, rho=0.1, 4 epochs": {"rho": 0.1, **FURTHER},
  "8/255, rho=0.2, 4 epochs": {"rho": 0.2, **FURTHER},
  "8/255, k=2, 4 epochs": {"k": 2, **FURTHER},
}


def vit(width=96, depth=3, heads=4, patch=8):
  """Pixels in [0, 255] -> [n, width]: a ViT whose tokens are averaged."""
  count = (32 // patch) ** 2
  pixels = keras.Input((32, 32, 3))
  x = layers.Rescaling(1 / 127.5, -1.0)(pixels)
  x = layers.Reshape((count, width))(layers.Conv2D(width, patch, strides=patch)(x))
  x = Positions()(x)
  for _ in range(depth):
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
    y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
    x = x + layers.Dense(width)(y)
  x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
  return keras.Model(pixels, x, name="vit")


@keras.saving.register_keras_serializable("robustify_cifar10")
class Positions(layers.Layer):
  """Adds a learned vector to each token."""

  def build(self, shape):
    self.table = self.add_weight(shape=shape[1:], initializer="normal", name="table")

  def call(self, tokens):
    return tokens + self.table


def convnet(widths=(64, 128), depths=(1, 2)):
  """Pixels in [0, 255] -> [n, widths[-1]]: blocks of ConvNeXt, with batch norms."""
  pixels = keras.Input((32, 32, 3))
  x = layers.Rescaling(1 / 127.5, -1.0)(pixels)
  for width, depth, stride in zip(widths, depths, (4, 2), strict=True):
    x = layers.Conv2D(width, stride, strides=stride, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    for _ in range(depth):
      y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
      y = layers.Conv2D(4 * width, 1, activation="gelu")(layers.BatchNormalization(momentum=0.9)(y))
      x = x + layers.Conv2D(width, 1)(y)
  return keras.Model(pixels, layers.GlobalAveragePooling2D()(x), name="convnet")


class ClassVectors(layers.Layer):
  """Embeddings [n, d] -> s times their cosines with a vector for each class, [n, classes].

  s is learned, starts at 1 / 0.07, and is at most 100, as in CLIP (Radford et al., 2021).
  """

  def build(self, shape):
    self.table = self.add_weight(shape=(10, shape[-1]), initializer="normal", name="table")
    start = keras.initializers.Constant(np.log(1 / 0.07))
    self.scale = self.add_weight(shape=(), initializer=start, name="scale")

  def call(self, embeddings):
    unit = lambda rows: keras.ops.normalize(rows, axis=-1)  # noqa: E731
    cosines = keras.ops.matmul(unit(embeddings), keras.ops.transpose(unit(self.table)))
    return keras.ops.exp(keras.ops.minimum(self.scale, float(np.log(100)))) * cosines


TEXT = "ViT-text"  # with class vectors, in ViT-text-prototypes.npy
NETWORKS = {"ViT": vit, "ConvNeXt-like": convnet, TEXT: vit}


def arrays(split, data):
  """(float32 images [n, 32, 32, 3] in [0, 1], int64 labels [n])."""
  source = sources.load("cifar10", split, **data)
  return pipeline.first(source, source.size)


def trained(name, work, data, epochs):
  """(the encoder, the file of its head or class vectors), trained with labels in the first call."""
  file, head = work / f"{name}.keras", work / f"{name}-head.keras"
  if name == TEXT:
    head = work / f"{name}-prototypes.npy"
  if not head.exists():
    keras.utils.set_random_seed(0)
    encoder = NETWORKS[name]()
    last = ClassVectors() if name == TEXT else layers.Dense(10)
    top = keras.Sequential([keras.Input(encoder.output.shape[1:]), last], name="head")
    images, labels = arrays(LEARN, data)
    model = keras.Sequential([encoder, top])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = epochs * len(images) // 128
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=2e-3, warmup_steps=100)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.05), loss, metrics=["accuracy"])
    model.fit(_batches(images, labels), epochs=epochs, verbose=2)
    encoder.save(file)
    if name == TEXT:
      np.save(head, np.asarray(last.table))
    else:
      top.save(head)
  return keras.saving.load_model(file, compile=False), head


def _batches(images, labels):
  """Batches of 128 for `fit`: pixels in [0, 255], shifted by up to 4 and mirrored."""

  def moved(batch, wanted):
    seed = tf.random.uniform([2], maxval=2**30, dtype=tf.int32)
    padded = tf.pad(batch, [[0, 0], [4, 4], [4, 4], [0, 0]])  # one shift per batch, for speed
    shifted = tf.image.stateless_random_crop(padded, [tf.shape(batch)[0], 32, 32, 3], seed)
    return 255.0 * tf.image.random_flip_left_right(shifted), wanted

  dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0)
  return dataset.batch(128, drop_remainder=True).map(moved).prefetch(2)


def measured(encoder, head, images, labels):
  """{"clean", "pgd"}: the accuracy of the old head on an encoder."""
  logits = lambda x: head(encoder(255.0 * x, training=False), training=False)  # noqa: E731
  predict, find = effect.attacker(logits, attacks.PGD(attacks.Linf(EPSILON), steps=20))
  right = {"clean": [], "pgd": []}
  for i in range(0, len(images), 250):
    x, y = images[i : i + 250], labels[i : i + 250]
    for key, points in (("clean", x), ("pgd", find(x, y, tf.constant([0, i])))):
      right[key].append(predict(points).numpy() == y)
  return {key: float(np.mean(np.concatenate(value))) for key, value in right.items()}


def zero_shot(file, prototypes, split, data):
  """{"clean", "pgd"}: the accuracy of an encoder's cosines with class vectors."""
  asked = {"attacks": "pgd(steps=20)", "epsilon": EPSILON, "checks": False}
  data = {"dataset": "cifar10", "split": split, **data}
  report = urkle_tf.assess(encoder=str(file), prototypes=str(prototypes), **asked, **data)
  return {"clean": report["clean"]["accuracy"], "pgd": report["attacks"][0]["accuracy"]}


def drift(encoder, original, images):
  """Mean |f - f0|^2 / mean |f0 - mean f0|^2."""
  f, f0 = (model.predict(255.0 * images, verbose=0) for model in (encoder, original))
  return float(np.mean(np.sum((f - f0) ** 2, 1)) / np.mean(np.sum((f0 - f0.mean(0)) ** 2, 1)))


def run_of(name, setting):
  """The name of a row's files."""
  return f"{name}-{setting}".translate({32: None, 44: "_", 47: "-"})


def figures(run, name, options, work, data, epochs):
  """The figures of a row: {"minutes", split: {"clean", "pgd", "drift", "examples"}}.

  The minutes are None if the run was resumed: nobody knows what its first part took.
  """
  file, model = work / f"{run}.json", work / f"{name}.keras"
  if found := pages.kept(file):
    return found
  original, head = trained(name, work, data, epochs)
  encoder, minutes = original, 0.0
  if options is not None:
    resumed, start = (work / run).exists(), time.process_time()
    encoder = urkle_tf.robustify(original, work / run, **{**ROBUSTIFY, **options, **data})
    minutes = None if resumed else (time.process_time() - start) / 60
    model = work / run / "model.keras"
  found = {"minutes": minutes}
  for key, split in (("validation", CHECK), ("test", TEST)):
    images, labels = arrays(split, data)
    if name == TEXT:
      found[key] = zero_shot(model, head, split, data)
    else:
      found[key] = measured(encoder, keras.saving.load_model(head, compile=False), images, labels)
    found[key] |= {"drift": drift(encoder, original, images), "examples": len(images)}
  files.write(file, json.dumps(found))
  return found


def blocks(rows):
  """The blocks of the page: {name: Markdown}.

  Args:
    rows: {(network, setting or "as it was"): the result of `figures`}.
  """
  columns = ["network", "setting", "clean", "PGD-20 at 4/255", "change of clean"]
  columns += ["change under PGD-20", "drift", "CPU minutes"]
  table, goal = [], []
  for (name, setting), found in sorted(rows.items(), key=lambda row: row[0][0]):
    part, before = found["test"], rows[name, "as it was"]["test"]
    loss, gain = (100 * (part[key] - before[key]) for key in ("clean", "pgd"))
    cells = [name, setting, f"{100 * part['clean']:.1f}", f"{100 * part['pgd']:.1f}"]
    if setting == "as it was":
      cells += [""] * 4
    else:
      minutes = [] if found["minutes"] is None else [found["minutes"]]
      cells += [f"{loss:+z.1f}", f"{gain:+z.1f}", f"{part['drift']:.2f}"]
      cells += [pages.mean(minutes, ".1f")]
      said = "met" if loss >= -5 and gain >= 20 else "missed"
      goal.append(f"- {name}, {setting}: {said} ({loss:+z.1f} and {gain:+z.1f}).")
    table.append(cells)
  return {"table": tables.markdown(columns, table), "goal": "\n".join(goal)}


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("--data_dir")
  parser.add_argument("--work", default="runs/robustify_cifar10")
  parser.add_argument("--epochs", type=int, default=4, help="epochs of the training with labels")
  parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
  parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
  parser.add_argument("--page", help="file of the page of all finished rows")
  given = parser.parse_args()
  work, data = pathlib.Path(given.work), {"data_dir": given.data_dir}
  errors.flags_at_least(1, vars(given), "epochs")
  kept = work / "epochs.json"
  if (epochs := pages.kept(kept).get("epochs", given.epochs)) != given.epochs:
    raise errors.UserError(
      f"{work} has networks of --epochs={epochs}: give that, or another --work"
    )
  pages.write(kept, {"epochs": given.epochs})
  for setting in ["as it was", *given.settings]:
    for name in given.networks:
      options = SETTINGS.get(setting)
      found = figures(run_of(name, setting), name, options, work, data, given.epochs)
      print(name, setting, found, flush=True)
  if given.page:
    pairs = itertools.product(NETWORKS, ["as it was", *SETTINGS])
    rows = {pair: found for pair in pairs if (found := pages.kept(work / f"{run_of(*pair)}.json"))}
    pages.update(pathlib.Path(given.page), blocks(rows))


if __name__ == "__main__":
  jobs.main(main)
