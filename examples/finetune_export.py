"""Fine-tunes an exported encoder in an ordinary Keras program, with TensorFlow and Keras only.

  python examples/finetune_export.py runs/digits/encoder images.npz

images.npz holds "images", float32 [n, h, w, c] in [0, 1], and "labels", int [n].
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf


def _compiled(model, learning_rate):
  optimizer = keras.optimizers.Adam(learning_rate)
  # In the first step of fit, TensorFlow would refuse the names that a TFSMLayer gives its weights
  # ("kernel:0" becomes "kernel:0_momentum"). So the optimizer is built here.
  optimizer.build(model.trainable_variables)
  model.compile(
    optimizer=optimizer,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def on_saved_model(folder, image_shape, classes, trainable=True):
  """A classifier on the SavedModel, which is one layer of a functional model.

  The encoder's weights can be trained. Its batch norms stay in inference mode.

  Args:
    folder: the folder of the exported encoder.
    image_shape: (height, width, channels).
    classes: the number of classes.
    trainable: whether the encoder is trained too.
  """
  encoder = keras.layers.TFSMLayer(folder, call_endpoint="embed", trainable=trainable)
  images = keras.Input(image_shape)
  logits = keras.layers.Dense(classes)(encoder(images)["embedding"])
  return _compiled(keras.Model(images, logits), 1e-2)


def on_network(folder, classes):
  """A classifier on network.keras. The whole network is trained, including batch norms."""
  network = keras.saving.load_model(f"{folder}/network.keras")
  logits = keras.layers.Dense(classes)(network.output["loc"])
  return _compiled(keras.Model(network.input, logits), 1e-3)


def saliency(model, images, labels):
  """The gradient of each image's loss with respect to its pixels, [n, h, w, c]."""
  images = tf.convert_to_tensor(images)
  with tf.GradientTape() as tape:
    tape.watch(images)
    losses = keras.losses.sparse_categorical_crossentropy(
      labels, model(images, training=False), from_logits=True
    )
  return tape.gradient(losses, images).numpy()


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
  return images.astype(np.float32), labels


def main(folder, file, epochs):
  """Fine-tunes in both ways, and prints loss and accuracy of each on the same images."""
  images, labels = read(file)
  classes = int(labels.max()) + 1
  models = {
    "SavedModel": on_saved_model(folder, images.shape[1:], classes),
    "network.keras": on_network(folder, classes),
  }
  for name, model in models.items():
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    steepest = np.abs(saliency(model, images[:100], labels[:100])).max()
    print(f"{name}: loss {loss:.3f}, accuracy {accuracy:.3f}, steepest pixel {steepest:.3g}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Fine-tunes an exported encoder.")
  parser.add_argument("folder", help="the folder of the exported encoder")
  parser.add_argument("file", help="an .npz file of images and labels")
  parser.add_argument("epochs", type=int, nargs="?", default=5)
  main(**vars(parser.parse_args()))
