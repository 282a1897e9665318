"""Distillation: keep what a frozen teacher makes of the clean image."""

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors, export, foreign_models
from urkle_tf.data import compatibility
from urkle_tf.networks import heads
from urkle_tf.pretexts._checks import whole
from urkle_tf.pretexts._pairs import cosine_to_own_view, through
from urkle_tf.pretexts.base import Pretext

OWN = "urkle_tf"  # the format of teachers that this package exported


class Distil(Pretext):
  """Pulls z towards the teacher's embedding of the clean view (after Zhang et al., 2022, DeACL).

      mean over members m of  1 - cos(f(z_m), teacher(x_{m % v}))

  Under `urkle` z is sampled and the KL between image and adversary stands beside it: a trained
  encoder's representation, made robust, at a fraction of a pre-training's length.  Where
  adversaries join the tuple, they are pulled to the teacher's embedding of their clean view;
  the teacher never sees an adversary.  DeACL gives the teacher weak augmentation at most, and
  the student the same view: so does `--augment=crop`.

  f is the identity where the teacher is an encoder of this package with the student's d_z:
  both have a loc of zero mean and unit spread over the data.  Else it is a linear map with a
  bias, since a teacher's embeddings need not be centred, or an MLP.

  The teacher sees the views as they are, float32 in [0, 1] and of the run's size: nothing is
  resized, and what else it expects of images must be inside of it, as in every export of this
  package.  It runs in inference mode.  Its weights are constants of the step, in no checkpoint
  and no export: the path tells which it was, and it must still lie there, unchanged, when a
  run is resumed.

  Args:
    teacher: the folder of an encoder that this package exported (or of a classifier or a
      regressor, whose encoder is meant then), or `preset:NAME`; or a `.keras` file or a
      SavedModel's folder of a model from images to an embedding [n, d] or feature maps
      [n, h, w, d], which are averaged over space.
    projector: hidden width of f as an MLP, Dense - batch norm - ReLU - Dense; 0 for none.
    views: how many views of an image; each is pulled to the teacher's embedding of itself.

  Raises:
    UserError: if there is no such teacher, its output is no embedding, its images are of
      another size, or an option is out of its range.
  """

  positives = True
  terms = ("distillation",)

  def __init__(self, teacher, projector=0, views=1):
    super().__init__(name="distil")
    whole(0, "distil", projector=projector)
    whole(1, "distil", views=views)
    self.views, self._hidden, self._path = views, projector, str(teacher)
    self._teacher = foreign_models.outside_strategies(read_teacher, self._path)

  def adopt(self, source):
    """Checks that the data's images are the teacher's."""
    size = self._teacher.size_for(source.image_shape)
    compatibility.check_images(size, source, "the teacher")

  def attach(self, encoder):
    """Looks at the teacher, and makes f."""
    size, given = self._teacher.size_for(encoder.image_shape), tuple(encoder.image_shape)
    if size != given:
      raise errors.UserError(
        f"the teacher {self._path!r} takes images of {'x'.join(map(str, size))}, but the encoder "
        f"takes {'x'.join(map(str, given))}: give both the same"
      )
    self._teacher = foreign_models.freeze(self._teacher, given)
    self._output = output_shape(self._teacher, given)
    width = self._output[-1]
    self.projector = None
    if self._hidden or self._teacher.format != OWN or width != encoder.latent_dim:
      widths = [self._hidden, width] if self._hidden else [width]
      self.projector = heads.mlp(encoder.latent_dim, widths, "projector")

  def prepare(self, views, batch):
    """The teacher's embeddings of the clean views, float32 [n, v, d]."""
    del batch
    found = self._teacher.function(tf.reshape(views, [-1, *views.shape[2:]]))
    found = tf.ensure_shape(tf.cast(found, tf.float32), [None, *self._output])
    if len(self._output) == 3:
      found = tf.reduce_mean(found, [1, 2])
    return tf.stop_gradient(tf.reshape(found, [-1, views.shape[1], self._output[-1]]))

  def loss(self, representations, aux, training=True):
    """{"distillation": [n]}, in [0, 2]."""
    students = representations.z
    if self.projector is not None:
      students = through(self.projector, students, training)
    return {"distillation": 1 - cosine_to_own_view(students, aux)}


def read_teacher(path):
  """Reads a teacher; see `Distil`.

  Returns:
    A `foreign_models.Loaded`, of format `OWN` where this package exported it; nothing in it is
    tracked by the layer that holds it.

  Raises:
    UserError: if there is no such model.
  """
  if foreign_models.is_foreign(path):
    return foreign_models.load(path, foreign_models.EMBEDDING)
  encoder = export.load_encoder(path)
  loc = keras.Model(encoder.network.input, encoder.network.output["loc"])
  function = lambda images: loc(images, training=False)  # noqa: E731
  return foreign_models.Loaded(
    function, encoder.image_shape, OWN, encoder.metadata["fingerprint"], path
  )


def output_shape(teacher, image_shape):
  """The shape of what a teacher makes of one image, found out by giving it some.

  Args:
    teacher: a `foreign_models.Loaded`.
    image_shape: (height, width, channels).

  Returns:
    (d,), or (height, width, d) of feature maps.

  Raises:
    UserError: if that is no embedding.
  """
  images = np.random.default_rng(0).uniform(size=(4, *image_shape)).astype(np.float32)
  found = foreign_models.call(teacher.function, images, teacher.path)
  shape, said = found.shape[1:], None
  if not np.all(np.isfinite(found)):
    raise errors.UserError(f"the teacher {teacher.path!r} returns NaN or infinite values")
  if found.ndim not in (2, 4) or shape[-1] < 2:
    said = f"{'x'.join(map(str, shape)) or 'a single number'} for an image"
  elif found.ndim == 2 and found.min() >= 0 and np.allclose(found.sum(1), 1, atol=1e-3):
    said = "probabilities"
  if said:
    raise errors.UserError(
      f"the teacher {teacher.path!r} gives {said}, which is no embedding [n, d]: give the model "
      "without its last layers, keras.Model(model.input, model.layers[-2].output)"
    )
  return shape
