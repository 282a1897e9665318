"""The base of attacks that look for the nearest point beyond a decision boundary."""

import tensorflow as tf

from urkle_tf.attacks import base


class Nearest(base.Attack):
  """An attack on the sign of its objective: a point is broken where that is positive.

  `run` returns the nearest broken point if it lies within epsilon, and otherwise its projection.
  It returns the image itself if no point was found, or if the image is already broken.
  `info["distance"]`, float32 [n] in pixel units, is the distance to the point, infinite if none was
  found.  With a noisy objective, it finds a boundary only if all evaluations use the same noise.

  A subclass's attempts return "result", "distance" and "zero_gradients".
  """

  boundary = True
  fixed_noise = True

  def run(self, objective, images, seed=None, *changes, **others):
    adversaries, info = super().run(objective, images, seed, *changes, **others)
    info["objective"] = tf.stop_gradient(base.values(objective, adversaries))
    return adversaries, info

  def _nothing(self, images):
    distance = -base.lowest(images)
    return {"result": images, "distance": distance, "zero_gradients": tf.zeros([])}

  def _merit(self, state):
    return -state["distance"]
