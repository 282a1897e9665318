"""Images in, batches of views out: `sources`, `augment`, `pipeline`."""

# Each adds its recipes to `augment.RECIPES`.
from urkle_tf.data import augmix as augmix
from urkle_tf.data import keras_cv_recipes as keras_cv_recipes
