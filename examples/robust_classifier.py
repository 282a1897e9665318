"""Makes an ordinary Keras classifier robust with one line of Urkle.

  python examples/robust_classifier.py

The script trains the classifier on scikit-learn's digits, with and without that line, and attacks
both.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from sklearn import datasets

import urkle_tf

EPSILON = 0.1


def classifier(robust=True):
  """A compiled model. You can use any backbone."""
  backbone = keras.Sequential(
    [
      keras.Input((8, 8, 1)),
      keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
      keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
      keras.layers.Flatten(),
      keras.layers.Dense(64),
    ]
  )
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(EPSILON), steps=4)
  encoder = urkle_tf.UrkleRegularizer(backbone, attack, beta=0.1) if robust else backbone  # <- here

  images = keras.Input((8, 8, 1))
  model = keras.Model(images, keras.layers.Dense(10)(encoder(images)))
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
  return model


def attacked_accuracy(model, images, labels):
  """Accuracy under PGD on the cross-entropy."""
  crossentropy = keras.losses.sparse_categorical_crossentropy
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(EPSILON), steps=20)
  worst = attack(lambda x: crossentropy(labels, model(x), from_logits=True), images)
  return float(tf.reduce_mean(keras.metrics.sparse_categorical_accuracy(labels, model(worst))))


def main(epochs=10):
  """Trains both. Returns {robust: (clean, attacked accuracy)}, measured on the last 300 digits."""
  data = datasets.load_digits()
  images, labels = (data.images[..., None] / 16).astype("float32"), data.target
  found = {}
  for robust in (False, True):
    keras.utils.set_random_seed(0)
    model = classifier(robust)
    model.fit(images[:-300], labels[:-300], batch_size=64, epochs=epochs, verbose=0)
    clean = model.evaluate(images[-300:], labels[-300:], verbose=0, return_dict=True)["accuracy"]
    found[robust] = clean, attacked_accuracy(model, images[-300:], labels[-300:])
    name = "with Urkle" if robust else "without"
    print(f"{name}: {found[robust][0]:.1%} clean, {found[robust][1]:.1%} attacked")
  return found


if __name__ == "__main__":
  main()
