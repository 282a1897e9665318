"""Distillation: keep a frozen teacher's embedding of the clean image."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors
from urkle_tf.data import compatibility
from urkle_tf.networks import heads
from urkle_tf.networks.policies import low_precision
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.pretexts._pairs import distance_to_own_view, through
from urkle_tf.pretexts.base import Pretext

_TARGETS = ("loc", "pooled")


class Distil(Pretext):
  """Pulls z towards the teacher's embedding of the clean view (after Zhang et al., 2022, DeACL).

      mean over members m of  w_m (1 - cos(f(z_m), teacher(x_{m % v})))

  w_m is `clean` for a view and `adversarial` for an adversary.

  Under `urkle`, z is sampled, and the KL between image and adversary is added.  This makes a
  trained encoder's representation robust in a fraction of the time of pre-training.  If adversaries
  join the tuple, they are pulled to the teacher's embedding of their clean view; the teacher never
  sees an adversary.  Under `none` and `urkle(positives=false)` there are only views, and
  `adversarial` has no effect.

  In DeACL, teacher and student see the same view, with weak augmentation at most, as with
  `--augment=crop`.  Its student starts from the teacher, as with `start`.

  The teacher's embedding is its loc, or with `targets=pooled` the output of its backbone, averaged
  over space.  For a model that this package did not make, it is the model's output.

  f is the identity if z and the embedding have the same width and are of the same kind:

      centred    loc after a batch norm (dense, centred_sphere): of zero mean over the data
      features   the direction of the pooled features: loc on a sphere or pooled, all targets of
                 `targets=pooled`, and outputs of models made elsewhere
      mapped     loc after a linear map alone (dense_sphere)

  Otherwise it is a linear map with a bias, since the kinds differ in their means, or an MLP.  So a
  student on a sphere needs no map to the pooled features of a teacher of its width, and may start
  from that teacher.

  The teacher sees the views unchanged, float32 in [0, 1] and of the run's size.  Nothing is
  resized, and any other preprocessing must be part of the teacher, as in every export of this
  package.  It runs in inference mode, with its backbone in the precision of the training; a
  SavedModel's graph keeps its own precision.  Its weights are constants of the step, and are not in
  checkpoints or exports.  To resume a run, the teacher must still be at its path, unchanged.

  Args:
    teacher: the folder of an encoder that this package exported (or of a classifier or a
      regressor, whose encoder is used), or `preset:NAME`; or a `.keras` file or a SavedModel's
      folder of a model from images to an embedding [n, d] or feature maps [n, h, w, d], which are
      averaged over space.
    projector: hidden width of f as an MLP, Dense - batch norm - ReLU - Dense; 0 for the
      identity or a linear map, as above.
    views: how many views of an image; each is pulled to the teacher's embedding of itself.
    start: whether the student's encoder starts from the teacher's weights
      (`GaussianEncoder.start_from`).
    clean: the weight of views; at least 0.
    adversarial: the weight of adversaries; at least 0.
    targets: "loc" or "pooled".

  Raises:
    UserError: if the teacher does not exist, its output is not an embedding, its images have
      another size, an option is out of its range, or the student cannot start from it.

  ```python
  backbone.save("teacher.keras")  # any Keras model from images to an embedding
  pretext = urkle_tf.pretexts.Distil(teacher="teacher.keras")
  encoder = urkle_tf.GaussianEncoder(backbone)
  trainer = urkle_tf.Trainer(encoder, pretext, urkle_tf.robustness.Urkle(k=2), attack)
  ```
  """

  positives = True
  terms: tuple[str, ...] = ("distillation",)

  def __init__(
    self, teacher, projector=0, views=1, start=False, clean=1.0, adversarial=1.0, targets="loc"
  ):
    super().__init__(name=type(self).__name__.lower())
    errors.one_of("targets of distil", targets, _TARGETS)
    errors.whole(0, "distil", projector=projector)
    errors.whole(1, "distil", views=views)
    errors.at_least(0, "distil", clean=clean, adversarial=adversarial)
    self._weights = clean, adversarial
    self.views, self._hidden, self._path = views, projector, str(teacher)
    self._pooled = targets == "pooled"
    self._teacher = foreign_models.outside_strategies(embedders.read, self._path, self._pooled)
    self.start = start
    if start and self._teacher.format != embedders.OWN:
      raise errors.UserError(
        "distil: start=true needs a teacher that this package exported. Start from a .keras file "
        "with --encoder=FILE.keras instead"
      )

  def adopt(self, source):
    """Checks that the data's images are the teacher's."""
    size = self._teacher.size_for(source.image_shape)
    compatibility.check_images(size, source, "the teacher")

  def attach(self, encoder):
    """Checks the teacher, makes f, and starts the encoder from the teacher if `start` is set."""
    size, given = self._teacher.size_for(encoder.image_shape), tuple(encoder.image_shape)
    if size != given:
      raise errors.UserError(
        f"the teacher {self._path!r} takes images of {'x'.join(map(str, size))}, but the encoder "
        f"takes {'x'.join(map(str, given))}: give both the same size"
      )
    if self.start:
      encoder.start_from(self._teacher.network, f"the teacher {self._path!r}")
    own_loc = self._teacher.format == embedders.OWN and not self._pooled
    kind = _kind(self._teacher.network) if own_loc else "features"
    with _precision(self._teacher.network):
      self._teacher = foreign_models.freeze(self._teacher, given)
    self._output = output_shape(self._teacher, given)
    width = self._output[-1]
    self.projector = None
    if self._hidden or kind != _kind(encoder.network) or width != encoder.latent_dim:
      widths = [self._hidden, width] if self._hidden else [width]
      self.projector = heads.mlp(encoder.latent_dim, widths, "projector")

  def thaw(self):
    """Turns the teacher's weights from constants of the step into variables.

    For programs whose teacher is trained after they are compiled (tools/accelerator).  Call it
    after the trainer has been made.

    Returns:
      The Keras variables of the teacher's network, in order; they are not in checkpoints either.

    Raises:
      UserError: if this package did not export the teacher.
    """
    if self._teacher.format != embedders.OWN:
      raise errors.UserError(
        f"thaw needs a teacher that this package exported, and {self._path!r} is not one: give the "
        "folder of an encoder"
      )
    teacher = foreign_models.outside_strategies(embedders.read, self._path, self._pooled)

    def function(images):
      with _precision(teacher.network):
        return teacher.function(images)

    self._teacher = dataclasses.replace(teacher, function=function)
    return teacher.network.weights

  def prepare(self, views, batch):
    """The teacher's embeddings of the clean views, float32 [n, v, d]."""
    found = self._teacher.function(tf.reshape(views, [-1, *views.shape[2:]]))
    found = tf.ensure_shape(tf.cast(found, tf.float32), [None, *self._output])
    if len(self._output) == 3:
      found = tf.reduce_mean(found, [1, 2])
    return tf.stop_gradient(tf.reshape(found, [-1, views.shape[1], self._output[-1]]))

  def loss(self, representations, aux, training=True):
    """{"distillation": [n]}, in [0, 2] if the weights are 1."""
    students = representations.z
    if self.projector is not None:
      students = through(self.projector, students, training)
    return {"distillation": distance_to_own_view(students, aux, *self._weights)}


def _precision(network):
  """A context in which a teacher's backbone computes in the precision of the training."""
  policy = keras.config.dtype_policy()
  if network is None or policy.compute_dtype == "float32":
    return contextlib.nullcontext()
  return low_precision(network, policy)


def _kind(network):
  """The kind of loc of an encoder's network; see `Distil`."""
  layers = {layer.name: layer for layer in network.layers}
  if "centred" in layers or isinstance(layers["loc"], keras.layers.BatchNormalization):
    return "centred"
  return "mapped" if "raw_loc" in layers else "features"


def output_shape(teacher, image_shape):
  """The shape of a teacher's output for one image, found by calling it.

  Args:
    teacher: a `foreign_models.Loaded`.
    image_shape: (height, width, channels).

  Returns:
    (d,), or (height, width, d) of feature maps.

  Raises:
    UserError: if that is not an embedding.
  """
  images = np.random.default_rng(0).uniform(size=(4, *image_shape)).astype(np.float32)
  found = foreign_models.call(teacher.function, images, teacher.path)
  shape, said = found.shape[1:], None
  if not np.all(np.isfinite(found)):
    raise errors.UserError(f"the teacher {teacher.path!r} returns NaN or infinite values")
  if found.ndim not in (2, 4) or shape[-1] < 2:
    said = f"{'x'.join(map(str, shape)) or 'a single number'} per image"
  elif found.ndim == 2 and found.min() >= 0 and np.allclose(found.sum(1), 1, atol=1e-3):
    said = "probabilities"
  if said:
    raise errors.UserError(
      f"the teacher {teacher.path!r} returns {said}, not an embedding [n, d]: leave out its last "
      "layers, keras.Model(model.input, model.layers[-2].output)"
    )
  return shape
