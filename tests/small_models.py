"""Small models, runs and data that several tests share."""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn import datasets, linear_model, neighbors

import urkle_tf
from urkle_tf import attacks, networks, pretexts, robustness
from urkle_tf.data import augment, pipeline, sources
from urkle_tf.networks.classifier import Classifier
from urkle_tf.output import files

# Settings of `pretrain` for six steps on digits.
RUN = {"encoder": "convnet(width=4, layers=2)", "latent_dim": 6, "loc": "dense"}
RUN |= {"split": "train[:48]", "batch_size": 16, "epochs": 2, "attack_steps": 2, "epsilon": 0.1}
# Each pretext, small; those of a teacher's folder and of an original's file are filled in.
PRETEXTS = {
  "simclr": "simclr(projector=16, projection=4)",
  "byol": "byol(projector=8, projection=4, predictor=8)",
  "simsiam": "simsiam(projector=8, projection=8, predictor=4)",
  "barlow_twins": "barlow_twins(projector=8, projection=4)",
  "vicreg": "vicreg(projector=8, projection=4)",
  "distil": "distil(teacher=...)",
  "clusters": "clusters(teacher=...)",
  "keep": "keep(original=...)",
  "vae": "vae(beta=0.1, width=4, layers=2)",
  "ae": "ae(width=4, layers=2)",
  "supervised": "supervised(width=8, layers=2)",
}


def rows_of(run):
  """The rows of metrics in a run's folder."""
  return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_rows(run, rows):
  """Writes the rows of metrics of a run into its folder."""
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  files.write(run / "metrics.jsonl", lines)


def board_of(run):
  """{tag: [number, text or (width, height, picture)]} of what TensorBoard shows of a run."""
  found = {}
  for file in (run / "tensorboard").glob("events.*"):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        found.setdefault(value.tag, []).append(tf.make_ndarray(value.tensor).tolist())
  return found


def untimed(row):
  """A row, or a result, without what differs between two runs that are the same."""
  changing = ("seconds", "images_per_second", "encoder", "classifier")
  return {name: value for name, value in row.items() if name not in changing}


def digits():
  """Real digits: (float32 [1797, 8, 8, 1] in [0, 1], int [1797])."""
  data = datasets.load_digits()
  return (data.images[..., None] / 16).astype(np.float32), data.target


def small_encoder():
  """An untrained encoder whose batch norms have seen digits, so that loc has unit spread."""
  keras.utils.set_random_seed(3)
  backbone = networks.backbone("convnet(width=8, layers=3)", (8, 8, 1))
  encoder = networks.GaussianEncoder(backbone, latent_dim=6, loc="dense")
  kernel = encoder.network.get_layer("raw_scale").kernel
  kernel.assign(keras.random.normal(kernel.shape, seed=1))  # scales that differ between images
  images, _ = digits()
  for _ in range(30):
    encoder(images[:200], training=True)
  return encoder


def tiny_encoder(latent_dim=6, **options):
  """An untrained encoder of images [8, 8, 1], the same at each call."""
  keras.utils.set_random_seed(0)
  backbone = networks.convnet((8, 8, 1), width=4, layers=2)
  return networks.GaussianEncoder(backbone, latent_dim, **{"loc": "dense", **options})


def tiny_trainer(scheme=None, attack=None, pretext=None, optimizer="sgd", encoder=None, **options):
  """A compiled trainer; what is None is `tiny_encoder`, SimCLR, Urkle and PGD of two steps."""
  trainer = urkle_tf.Trainer(
    encoder or tiny_encoder(),
    pretext or pretexts.SimCLR(projector=8, projection=4),
    scheme or robustness.Urkle(beta=0.1),
    attack or attacks.PGD(attacks.Linf(0.1), steps=2),
    **options,
  )
  trainer.compile(optimizer)
  return trainer


def settled(trainer):
  """The trainer, with moving averages near those of images; each stream has seen others."""
  images = np.random.default_rng(1).uniform(size=(64, 8, 8, 1)).astype("float32")
  for stream, network in trainer.encoder.streams.items():
    seen = images**2 if stream == "clean" else images
    for _ in range(10):
      trainer.pretext._projectors[stream](network(seen, training=True)["loc"], training=True)
  return trainer


def worst_of_corners(objective, images, epsilon, count=20):
  """The largest value [n] of an objective at random corners of the ball around each image."""
  signs = np.sign(np.random.default_rng(0).normal(size=(count, *images.shape)))
  corners = [tf.clip_by_value(images + epsilon * s, 0, 1) for s in signs]
  return np.max([objective(corner) for corner in corners], axis=0)


def representations(loc, scale=1.0, z=None):
  """`Representations` of tuples [n, members, d]: Normal(loc, scale), at z or at loc."""
  loc = tf.convert_to_tensor(loc, tf.float32)
  normal = tfp.distributions.Normal(loc, scale * tf.ones_like(loc))
  return networks.Representations(normal, loc if z is None else tf.cast(z, tf.float32))


def noise_views(n=8, steps=3, views=2):
  """Batches of n tuples of views of noise [8, 8, 1], with labels of three classes."""
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(n * steps, views, 8, 8, 1)).astype("float32")
  rows = {"views": images, "label": rng.integers(0, 3, n * steps)}
  return tf.data.Dataset.from_tensor_slices(rows).batch(n, drop_remainder=True)


class FakeRecorder:
  """As much of a `Recorder` as callbacks need that add to its rows."""

  def __init__(self):
    self.extra = {}

  def paused(self):
    return contextlib.nullcontext()


@contextlib.contextmanager
def precision(policy):
  """Within its block networks are built in another precision."""
  keras.mixed_precision.set_global_policy(policy)
  try:
    yield
  finally:
    keras.mixed_precision.set_global_policy("float32")


def small_classifier(encoder, seed=0):
  """An untrained linear head on an encoder of six dimensions; z is sampled."""
  keras.utils.set_random_seed(seed)
  return Classifier(encoder.network, networks.mlp(6, [10], "head"), True, samples=5)


def fitted_classifier(encoder, samples=5):
  """A linear head on an encoder of digits, by the nearest mean: right on most, robust on some."""
  images, labels = digits()
  loc = encoder.network.predict(images, verbose=0)["loc"]
  means = np.stack([loc[labels == label].mean(0) for label in range(10)])
  head = linear_head(means.T, -0.5 * np.sum(means**2, 1))
  return Classifier(encoder.network, head, True, samples)


def sequential(shape, *layers):
  """A Keras model of layers in a row, for inputs [n, *shape]."""
  return keras.Sequential([keras.Input(shape), *layers])


def linear_digits():
  """(A Keras model of scores of digits: logistic regression, images that it was not fitted to)."""
  images, labels = digits()
  fitted = linear_model.LogisticRegression(C=0.05, max_iter=500)
  fitted.fit(images[:1200].reshape(1200, -1), labels[:1200])
  model = sequential((8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(10))
  model.set_weights([fitted.coef_.T, fitted.intercept_])
  return model, images[1200:]


def linear_network(shape, scale, matrix=None, norm=True):
  """A network of loc = A x, or of the pixels x themselves, and a constant scale.

  In inference mode: its batch norm, if there is one, has seen nothing; in training it standardises.
  """
  images = keras.Input(shape, name="images")
  loc = keras.layers.Flatten()(images)
  if norm:
    loc = keras.layers.BatchNormalization(epsilon=0.0)(loc)
  if matrix is not None:
    dense = keras.layers.Dense(matrix.shape[1], use_bias=False)
    loc = dense(loc)
    dense.set_weights([matrix])
  return keras.Model(images, {"loc": loc, "scale": keras.layers.Rescaling(0.0, scale)(loc)})


def linear_file(file, matrix, bias=None):
  """Writes a `.keras` file of x -> A x + b, of images [8, 8, 1] in [0, 1]; returns it as text."""
  dense = keras.layers.Dense(matrix.shape[1], use_bias=bias is not None)
  model = sequential((8, 8, 1), keras.layers.Flatten(), dense)
  model.set_weights([matrix] if bias is None else [matrix, bias])
  model.save(file)
  return str(file)


def linear_classifier(weights, bias, scale, stochastic=True, samples=5):
  """A linear head on the pixels of images [4, 4, 1] as z, with noise of a constant scale."""
  network = linear_network((4, 4, 1), scale)
  return Classifier(network, linear_head(weights, bias), stochastic, samples)


def linear_head(weights, bias):
  """The head z -> z W + b."""
  head = networks.mlp(weights.shape[0], [weights.shape[1]], "head")
  head.get_layer("dense1").set_weights([np.float32(weights), np.float32(bias)])
  return head


def neighbours_score(embeddings):
  """The accuracy of five nearest neighbours among embeddings [1797, d] of the digits."""
  z, (_, labels) = np.asarray(embeddings), digits()
  model = neighbors.KNeighborsClassifier(5, metric="cosine").fit(z[:1400], labels[:1400])
  return model.score(z[1400:], labels[1400:])


def learn_digits(pretext, steps=50):
  """Trains an encoder of 16 dimensions on a pretext, without labels and without an attack.

  Returns:
    (accuracy of five nearest neighbours before, after, effective rank at the end).
  """
  keras.utils.set_random_seed(0)
  images, _ = digits()
  backbone = networks.convnet((8, 8, 1), width=8, layers=2)
  encoder = networks.GaussianEncoder(backbone, 16, loc="dense")
  for _ in range(20):
    encoder(images[:200], training=True)

  accuracy = lambda: neighbours_score(encoder(images, training=False).loc)  # noqa: E731
  before = accuracy()
  trainer = urkle_tf.Trainer(encoder, pretext)
  trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
  recipe = augment.SimCLR(strength=0.5, flip=False)
  views = pipeline.views(sources.load("digits", "train"), recipe, 128, 0, views=pretext.views)
  history = trainer.fit(views, steps_per_epoch=steps, verbose=0).history
  return before, accuracy(), history["effective_rank"][-1]


def array_source(images, labels, classes=2):
  """A labelled test split named "grey", of images uint8 [n, h, w, c]; its classes are a, b, ..."""
  names = list("abcdefghij"[:classes])
  return sources.ArraySource(images, name="grey", split="test", class_names=names, labels=labels)


def saved_model(function, folder, shape=(8, 8, 1)):
  """Writes a function of images [n, *shape] as a SavedModel; returns the folder as text."""
  module = tf.Module()
  spec = tf.TensorSpec([None, *shape], tf.float32, name="images")
  module.serve = tf.function(function, input_signature=[spec])
  tf.saved_model.save(module, str(folder), signatures=module.serve)
  return str(folder)


def photographs(folder, count=16, size=32, channels=3):
  """A folder of PNG images [size, size, channels] of noise."""
  folder.mkdir(parents=True, exist_ok=True)
  images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels))
  for number, image in enumerate(images):
    keras.utils.save_img(folder / f"{number}.png", image, scale=False)
  return folder
