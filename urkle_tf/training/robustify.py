"""`robustify`: from any trained Keras model of images to a robust Gaussian encoder, unlabelled."""

import pathlib

import keras
import numpy as np

from urkle_tf import errors, export
from urkle_tf.networks.saved import foreign_models
from urkle_tf.pretexts import distil
from urkle_tf.training import pretraining

_TEACHER = "teacher.keras"


def robustify(
  model,
  output_dir,
  dataset="digits",
  preprocess=None,
  encoder=None,
  k=None,
  beta=None,
  latent_dim=None,
  augment="crop(padding=4)",
  **settings,
):
  """Makes a robust Gaussian encoder of a trained model, without labels.

  The cell is `distil` under `urkle`: the encoder's z stays close to what the model makes of the
  clean image, while the KL between the Gaussians of an image and of its worst neighbour is made
  small.  The encoder starts as a copy of the model.  The same as a command, once the model is a
  file that takes images in [0, 1]:

      python -m urkle_tf.train --pretext="distil(teacher=FILE)" --encoder=FILE
        --robustness=urkle --augment="crop(padding=4)" ...

  Args:
    model: a Keras model from one batch of images to an embedding [n, d] or feature maps, such as
      `keras.applications.MobileNetV2(include_top=False)`; or a `.keras` file, the folder of a
      SavedModel, or of an encoder of this package.
    output_dir: the run's folder, as in `pretrain`; a model is saved there as teacher.keras.
    dataset: the images: a TFDS name, `"digits"` or `"folder:PATH"`; labels are not read.
    preprocess: what the model expects of images in [0, 1]: a Keras layer, or a function of Keras
      tensors, such as `lambda images: 255 * images`; None if it takes them as they are.
    encoder: spec of the encoder's architecture, `"resnet18(width=32)"`; None for a copy of the
      model, with its weights, and for `"resnet18"` where the model is a folder.
    k: the strength of the KL (`robustness.Urkle`).
    beta: its weight in nats, in place of k; with neither `distil`'s own k is taken.
    latent_dim: d_z; None for the width of the model's embedding, on a sphere for a copy.
    augment: spec of the recipe that makes the views.
    **settings: of `pretrain`: image_size, epsilon, attack_steps, epochs, learning_rate, ...

  Returns:
    The encoder, as `load_encoder` loads it from `output_dir/encoder`.

  Raises:
    UserError: for settings, data or models that do not fit.
  """
  for name in ("pretext", "robustness"):
    if name in settings:
      raise errors.UserError(f"robustify chooses {name}: use pretrain, or the command train")
  path = _save(model, preprocess, output_dir) if isinstance(model, keras.Model) else str(model)
  if preprocess is not None and path == str(model):
    raise errors.UserError("preprocess goes with a Keras model, not with a file or a folder")
  if encoder is None:
    encoder = path if path.endswith(".keras") else "resnet18"
  if latent_dim is None and encoder != path:
    latent_dim = _width(path, settings.get("image_size") or 32)
  if latent_dim is not None:
    settings.setdefault("loc", "dense")
  strength = {"k": k, "beta": beta}
  quote = "'" if '"' in path else '"'
  result = pretraining.pretrain(
    output_dir,
    pretext=f"distil(teacher={quote}{path}{quote})",
    robustness=f"urkle({', '.join(f'{n}={v}' for n, v in strength.items() if v is not None)})",
    dataset=dataset,
    encoder=encoder,
    latent_dim=latent_dim,
    augment=augment,
    **settings,
  )
  return export.load_encoder(result["encoder"])


def _save(model, preprocess, output_dir):
  """Saves a model of images in [0, 1] into the run's folder, once; returns the file's path."""
  file = pathlib.Path(output_dir) / _TEACHER
  shape = model.input_shape[1:] if isinstance(model.input_shape, tuple) else ()
  if len(shape) != 3:
    raise errors.UserError(
      f"{model.name!r} must take one batch of images [n, h, w, c], but takes {model.input_shape}"
    )
  if preprocess is not None:
    images = keras.Input(shape, name="images")
    model = keras.Model(images, model(preprocess(images)), name="teacher")
  if file.exists():
    _check_same(model, file)
    return str(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  try:
    model.save(file)
    foreign_models.load(file, foreign_models.EMBEDDING)
  except Exception as error:  # zip, HDF5 and Keras raise many kinds
    file.unlink(missing_ok=True)
    raise errors.UserError(
      f"{model.name!r} cannot be saved and read back ({foreign_models.reason(error)}); give the "
      "folder of model.export(FOLDER), and encoder="
    ) from error
  return str(file)


def _check_same(model, file):
  """Raises `UserError` if a file holds other weights than a model."""
  earlier = [np.asarray(value) for value in keras.saving.load_model(file, compile=False).weights]
  now = [np.asarray(value) for value in model.weights]
  same = len(earlier) == len(now) and all(map(np.array_equal, earlier, now))
  if not same:
    raise errors.UserError(f"{str(file)!r} is another model: give another output_dir")


def _width(path, size):
  """The width of a teacher's embedding."""
  teacher = distil.read_teacher(path)
  return distil.output_shape(teacher, teacher.size_for((size, size, 3)))[-1]
