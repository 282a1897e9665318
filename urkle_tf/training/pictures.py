"""Pictures of a training: views, adversaries, reconstructions, the map of z."""

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import distribution
from urkle_tf.output import figures
from urkle_tf.training import latent_map

_LEAST, _GAP = 96, 4  # pixels: of a picture's side, and between pictures


def _sheet(columns):
  """Arranges images in a picture, with a column for each entry and a row for each image.

  Args:
    columns: arrays float32 [n, h, w, c] in [0, 1]; images of fewer than 96 pixels are magnified by
      a whole factor.

  Returns:
    float32 [height, width, c] in [0, 1].
  """
  factor = max(1, -(-_LEAST // columns[0].shape[1]))
  pad = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
  large = [np.pad(c.repeat(factor, 1).repeat(factor, 2), pad, constant_values=1) for c in columns]
  return np.concatenate(list(np.concatenate(large, axis=2)))


class Pictures(keras.callbacks.Callback):
  """Shows what training sees, in TensorBoard and as PNG files.

  It draws after epochs 1, 2, 4, 8 and so on, and at the end, because a training changes most at
  first and drawing takes a second.

  "views" shows views, their adversaries and the perturbations.  "reconstructions", if the pretext
  makes images, shows views and adversaries next to the images decoded from their loc.
  "latent_map", if z is random, shows samples of z of views and of their unsupervised adversaries.

  Args:
    batch: a batch of the pipeline; its first ten images are shown.
    recorder: the `Recorder` of the run, whose clock stops during drawing.
    folder: where the PNG files go, a `pathlib.Path`; new files replace the old ones.
    attack: finds the adversaries of the latent map, also in cells without adversaries.
    title: the title of the latent map, which names the training.
  """

  def __init__(self, batch, recorder, folder, attack, title=""):
    super().__init__()
    self._batch = {name: values[:10] for name, values in batch.items()}
    self._recorder = recorder
    self._folder, self._attack, self._title = folder, attack, title
    self._drawn = True

  def on_epoch_end(self, epoch, logs=None):
    """Draws if the number of epochs is a power of two."""
    done = epoch + 1
    self._drawn = done & epoch == 0
    if self._drawn:
      self.draw()

  def on_train_end(self, logs=None):
    """Draws at the end."""
    if not self._drawn:
      self.draw()

  def draw(self):
    """Attacks the fixed batch and writes the pictures."""
    step = int(distribution.plain(self.model.optimizer.iterations))
    writer = self._recorder.writer
    with self._recorder.paused(), writer.as_default(step):
      views, batch = self.model.views(self._batch, 0)
      adversaries = None
      if self.model.attack is not None:
        aux = self.model.pretext.prepare(views, batch)
        seed = distribution.fold([self.model.seed, 1], 0)
        adversaries, _ = self.model.adversaries(views, aux, seed)
      self._views(views, adversaries)
      if self.model.pretext.pictures:
        self._reconstructions(views, adversaries)
      if self.model.pretext.stochastic or self.model.robustness.stochastic:
        self._latent_map(views[:, 0], step)
      writer.flush()

  def _views(self, views, adversaries):
    if adversaries is None:
      columns = {f"view {i + 1}": views[:, i] for i in range(views.shape[1])}
    else:
      clean, adversary = self.model.robustness.targets(views)[:, 0], adversaries[:, 0]
      magnified = 0.5 + (adversary - clean) / (
        2 * max(float(self.model.attack.threat.epsilon), 1e-6)
      )
      columns = {"view": clean, "adversary": adversary, "perturbation": magnified}
    self._write_columns("views", columns)

  def _reconstructions(self, views, adversaries):
    columns = {}
    for name, images in (("view", views), ("adversary", adversaries)):
      if images is not None:
        loc = self.model.encoder.network(images[:, 0], training=False)["loc"]
        columns[name] = images[:, 0]
        columns[f"{name}, decoded"] = self.model.pretext.predict(loc, training=False)
    self._write_columns("reconstructions", columns)

  def _latent_map(self, images, step):
    found = latent_map.sampled(self.model.encoder, images, self._attack, seed=self.model.seed)
    samples = {name: values.numpy() for name, values in found.items()}
    # If the weights are not finite, `Metrics` ends the training with a message.
    if all(np.isfinite(values).all() for values in samples.values()):
      title = f"{self._title} (step {step})"
      figure = latent_map.figure({title: samples}, images.numpy(), self._attack)
      self._write("latent_map", figures.pixels(figure))

  def _write_columns(self, name, columns):
    arrays = [np.clip(np.nan_to_num(values[:8]), 0, 1) for values in columns.values()]
    picture = np.rint(255 * _sheet(arrays)).astype(np.uint8)
    self._write(name, figures.headed(picture, list(columns)))

  def _write(self, name, picture):
    tf.summary.image(name, picture[None])
    figures.save(picture, self._folder / f"{name}.png")
