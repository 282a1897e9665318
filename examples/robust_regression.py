"""Makes a Keras regression model robust with one line of Urkle.

  python examples/robust_regression.py

The script trains the model to predict the number that each of scikit-learn's digits shows, with and
without that line, and attacks both.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from sklearn import datasets

import urkle_tf

EPSILON = 0.1


def regressor(robust=True):
  """A compiled model that predicts one number. Its Gaussian encoder learns sigma."""
  backbone = keras.Sequential(
    [
      keras.Input((8, 8, 1)),
      keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
      keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
      keras.layers.Flatten(),
      keras.layers.Dense(64),
    ]
  )
  encoder = urkle_tf.GaussianEncoder(backbone, latent_dim=32, loc="dense")
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(EPSILON), steps=4)
  z = urkle_tf.UrkleRegularizer(encoder, attack, beta=0.3 if robust else 0.0)  # <- here

  images = keras.Input((8, 8, 1))
  hidden = keras.layers.Dense(64, activation="relu")(z(images))
  model = keras.Model(images, keras.layers.Dense(1)(hidden))
  model.compile(keras.optimizers.Adam(3e-3), "mse", metrics=["mae"])
  return model


def attacked_error(model, images, numbers):
  """The mean absolute error under PGD, which maximises it."""
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(EPSILON), steps=20)
  error = lambda x: tf.abs(model(x)[:, 0] - numbers)  # noqa: E731
  return float(tf.reduce_mean(error(attack(error, images))))


def main(epochs=10):
  """Trains both. Returns {robust: (clean, attacked error)}, measured on the last 300 digits."""
  data = datasets.load_digits()
  images, numbers = (data.images[..., None] / 16).astype("float32"), data.target.astype("float32")
  found = {}
  for robust in (False, True):
    keras.utils.set_random_seed(0)
    model = regressor(robust)
    model.fit(images[:-300], numbers[:-300], batch_size=64, epochs=epochs, verbose=0)
    clean = model.evaluate(images[-300:], numbers[-300:], verbose=0, return_dict=True)["mae"]
    found[robust] = clean, attacked_error(model, images[-300:], numbers[-300:])
    name = "with Urkle" if robust else "without"
    print(f"{name}: mean absolute error {clean:.2f} clean, {found[robust][1]:.2f} attacked")
  return found


if __name__ == "__main__":
  main()
