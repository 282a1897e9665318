"""Distillation: keep a frozen teacher's embedding of the clean image."""

import dataclasses

import numpy as np

from urkle_tf import errors
from urkle_tf.data import pipeline
from urkle_tf.networks import heads
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.pretexts._pairs import distance_to_own_view, through
from urkle_tf.pretexts._taught import Taught, loc_kind, precision


class Distil(Taught):
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

  terms: tuple[str, ...] = ("distillation",)
  measured = 128  # images, the data's first ones

  def __init__(
    self, teacher, projector=0, views=1, start=False, clean=1.0, adversarial=1.0, targets="loc"
  ):
    super().__init__(teacher, start, targets)
    errors.whole(0, "distil", projector=projector)
    errors.whole(1, "distil", views=views)
    errors.at_least(0, "distil", clean=clean, adversarial=adversarial)
    self._weights = clean, adversarial
    self.views, self._hidden = views, projector

  def adopt(self, source):
    """Checks that the data's images are the teacher's, and measures it on the first of them."""
    super().adopt(source)
    batches = pipeline.batches(source, 128).take(self.measured // 128)
    self.measure(np.concatenate([batch["image"] for batch in batches]))

  def measure(self, images):
    """Checks that the teacher tells images apart.

    Args:
      images: float32 [n, h, w, c] in [0, 1].

    Raises:
      UserError: if it returns no embedding, or the same one for all of several images.
    """
    self.embed([images])

  def attach(self, encoder):
    """Checks the teacher, starts the encoder from it if `start` is set, and makes f."""
    super().attach(encoder)
    width = self._output[-1]
    self.projector = None
    if self._hidden or self._kind != loc_kind(encoder.network) or width != encoder.latent_dim:
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
      with precision(teacher.network):
        return teacher.function(images)

    self._teacher = dataclasses.replace(teacher, function=function)
    return teacher.network.weights

  def loss(self, representations, aux, training=True):
    """{"distillation": [n]}, in [0, 2] if the weights are 1."""
    students = representations.z
    if self.projector is not None:
      students = through(self.projector, students, training)
    return {"distillation": distance_to_own_view(students, aux, *self._weights)}
