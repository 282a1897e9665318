"""Adds Urkle to your own SimCLR training loop, with two lines.

  python examples/robust_simclr.py

The script trains on scikit-learn's digits without labels, with and without Urkle. It reports the KL
divergence between an image and its worst neighbour within the threat model.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from sklearn import datasets

import urkle_tf

ATTACK = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=0.1), steps=4)


def nt_xent(embeddings, temperature=0.5):
  """SimCLR's loss. The rows are all first views, then all second views."""
  unit = tf.math.l2_normalize(embeddings, -1)
  pairs = tf.shape(unit)[0] // 2
  similarity = unit @ tf.transpose(unit) / temperature - 1e9 * tf.eye(2 * pairs)
  partners = tf.roll(tf.range(2 * pairs), pairs, 0)
  return tf.reduce_mean(
    keras.losses.sparse_categorical_crossentropy(partners, similarity, from_logits=True)
  )


def train(images, beta, epochs):
  """The training loop. Returns the backbone."""
  augment = keras.Sequential(
    [keras.layers.RandomTranslation(0.15, 0.15), keras.layers.RandomContrast(0.5)]
  )
  backbone = keras.Sequential(
    [
      keras.Input((8, 8, 1)),
      keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
      keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
      keras.layers.Flatten(),
      keras.layers.Dense(64),
    ]
  )
  projector = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(32)]
  )
  encoder = urkle_tf.UrkleRegularizer(backbone, ATTACK, beta)  # <- first line
  optimizer = keras.optimizers.Adam(1e-3)
  weights = [*encoder.trainable_variables, *projector.trainable_variables]
  optimizer.build(weights)

  @tf.function
  def step(batch):
    views = tf.clip_by_value(augment(tf.concat([batch, batch], 0), training=True), 0, 1)
    with tf.GradientTape() as tape:
      loss = nt_xent(projector(encoder(views, training=True)))
      loss += sum(encoder.losses)  # <- second line
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    return loss

  batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=0)
  for epoch in range(epochs):
    losses = [step(batch) for batch in batches.batch(128, drop_remainder=True)]
    print(f"beta {beta}, epoch {epoch + 1}: loss {float(tf.reduce_mean(losses)):.3f}")
  return backbone


def main(epochs=6):
  """Trains with and without Urkle. Returns {beta: mean KL of the last 300 digits}."""
  images = (datasets.load_digits().images[..., None] / 16).astype("float32")
  found = {}
  for beta in (0.0, 0.01):
    keras.utils.set_random_seed(0)
    backbone = train(images[:-300], beta, epochs)
    worst = urkle_tf.kl_robustness(backbone, images[-300:], ATTACK)
    found[beta] = float(tf.reduce_mean(worst))
    print(f"beta {beta}: KL to the worst neighbour {found[beta]:.2f} nats")
  return found


if __name__ == "__main__":
  main()
