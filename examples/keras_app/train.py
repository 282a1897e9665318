"""Builds an app on an exported encoder, with TensorFlow and Keras only.

  python examples/keras_app/train.py runs/digits/encoder labelled.npz app
  python examples/keras_app/serve.py app
  python examples/keras_app/ask.py labelled.npz

labelled.npz holds "images", float32 [n, h, w, c] in [0, 1], and "labels", int [n]. The app is a
SavedModel that maps images to {"probabilities", "uncertainty"}. It includes the encoder, so you can
serve it without any other file.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

SAMPLES = 20  # samples of the representation that a prediction averages over


class Sample(keras.layers.Layer):
  """Draws representations from the encoder's Gaussian: one in training, otherwise `SAMPLES`."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.seeds = keras.random.SeedGenerator(0)

  def call(self, loc, scale, training=None):
    """Locations and scales [n, d] -> [n, samples, d]."""
    shape = (keras.ops.shape(loc)[0], 1 if training else SAMPLES, loc.shape[-1])
    noise = keras.random.normal(shape, seed=self.seeds)
    return loc[:, None] + scale[:, None] * noise

  def compute_output_shape(self, loc_shape, scale_shape):
    """The number of samples is known only when the layer is called."""
    del scale_shape
    return (loc_shape[0], None, loc_shape[-1])


class Uncertainty(keras.layers.Layer):
  """The entropy of the mean prediction, as a share of its maximum: from 0 to 1."""

  def call(self, probabilities):
    """[n, classes] -> [n]."""
    logs = keras.ops.log(keras.ops.maximum(probabilities, 1e-12))
    return -keras.ops.sum(probabilities * logs, -1) / np.log(probabilities.shape[-1])


def build(folder, image_shape, classes):
  """Returns (model to train, model to serve): a frozen encoder and a head.

  Args:
    folder: the folder of the exported encoder.
    image_shape: (height, width, channels).
    classes: the number of classes.
  """
  encoder = keras.layers.TFSMLayer(folder, call_endpoint="serving_default", trainable=False)
  images = keras.Input(image_shape, name="images")
  found = encoder(images)
  each = keras.layers.Dense(classes, activation="softmax")(Sample()(found["loc"], found["scale"]))
  mean = keras.layers.GlobalAveragePooling1D(name="probabilities")(each)
  answer = {"probabilities": mean, "uncertainty": Uncertainty(name="uncertainty")(mean)}
  return keras.Model(images, mean), keras.Model(images, answer)


def read(file):
  """The images of a file, float32 [n, h, w, c] in [0, 1], and their labels."""
  try:
    with np.load(file, allow_pickle=False) as data:
      images, labels = data["images"], data["labels"]
  except (OSError, KeyError, TypeError, ValueError) as error:
    sys.exit(f"cannot read images and labels from {file}: {error}")
  if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
    sys.exit(
      f"{file}: images must be floats in [0, 1], got {images.dtype} up to {images.max():g}: "
      "divide them by 255"
    )
  if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
    sys.exit(f"{file}: labels must be whole numbers from 0, one for each image")
  return images.astype(np.float32), labels


def check(folder, image_shape):
  """Ends the program unless a folder holds an encoder of images of this shape."""
  try:
    with open(os.path.join(folder, "metadata.json"), encoding="utf-8") as metadata:
      wanted = tuple(json.load(metadata)["image_size"])
  except (OSError, KeyError, ValueError) as error:
    sys.exit(f"{folder} is no exported encoder: {error}")
  if image_shape != wanted:
    sys.exit(f"the encoder takes images of {wanted}, and the file holds images of {image_shape}")


def main(folder, file, app, epochs):
  """Trains the head, saves the app, and prints the accuracy on the training images."""
  images, labels = read(file)
  check(folder, images.shape[1:])
  model, served = build(folder, images.shape[1:], int(labels.max()) + 1)
  loss = "sparse_categorical_crossentropy"
  model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
  model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
  accuracy = model.evaluate(images, labels, verbose=0)[1]
  served.export(app, verbose=False)
  print(f"{app}: accuracy {accuracy:.3f}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Builds an app on an exported encoder.")
  parser.add_argument("folder", help="the folder of the exported encoder")
  parser.add_argument("file", help="an .npz file of images and labels")
  parser.add_argument("app", help="where to write the app")
  parser.add_argument("epochs", type=int, nargs="?", default=30)
  main(**vars(parser.parse_args()))
