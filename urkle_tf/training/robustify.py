"""`robustify`: makes any trained Keras model of images robust, without labels."""

import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors, export, spec
from urkle_tf.networks import foreign, keras_private
from urkle_tf.networks.saved import embedders, foreign_models
from urkle_tf.training import pretraining, runs

_TEACHER, _DROP_IN = "teacher.keras", "model.keras"
_SIGMA = 0.25  # of a drop-in, in units of the original's spread
_FREE_SIDE = 128  # pixels of trial images for a model of any size
_NEAR = 0.02  # outputs of one model on two machines, also in bfloat16
_GENTLE = 1e-4  # of AdamW for a copy: the steps that random weights need destroy a trained model


def robustify(
  model,
  output_dir,
  preprocess=None,
  pool=None,
  output=None,
  drop_in=False,
  k=None,
  beta=None,
  rho=None,
  rho_of="spread",
  **settings,
):
  """Makes a trained model of images robust, without labels.

  With `drop_in` the result is the same Keras model with other weights, so what you built on top of
  it (a head, a text tower, an index) still works.  The cell is `keep` under
  `urkle(anchor=original)`.  It pulls the embedding of a worst neighbour to the original's embedding
  of the clean image (FARE).  The embeddings of clean images move by at most rho (`pretexts.Keep`).

  Without `drop_in`, the result is a Gaussian encoder with its own heads.  The cell is `distil`
  under `urkle`: the encoder's z stays close to the model's embedding of the clean image, and the KL
  between the Gaussians of an image and of its worst neighbour becomes small.

  Both start as a copy of the model, and its batch norms keep their statistics unless
  `batch_statistics=True`.  A copy is trained by AdamW with a learning rate of 1e-4, unless you give
  others.  The command `train` does the same with these pretexts and that optimizer.

  Args:
    model: a Keras model, functional, sequential or subclassed, from one batch of images to
      features [n, d], feature maps [n, h, w, d] or tokens [n, t, d], or to several named outputs;
      or a `.keras` file; without `drop_in` also the folder of a SavedModel, or of an encoder of
      this package.
    output_dir: the run's folder, as in `pretrain`.  It also gets the original model as
      teacher.keras, unless `model` is a path and used as it is, and a drop-in as model.keras.
    preprocess: what the model expects of images in [0, 1]: "unit" (as they are), "255", "tf",
      "torch" or "caffe" (the conventions of `keras.applications`), an `ImageConverter` of KerasHub,
      a Keras layer, or a function of Keras tensors, such as `lambda images: 255 * images`.  None
      detects it from the model's first layer or its name in `keras.applications`, and leaves images
      in [0, 1] otherwise.
    pool: for a token sequence, "token" (the first) or "mean"; None for the first, if the model
      holds a class token.
    output: the name or number, if the model has several outputs; None for embedding, features,
      pooled_output or sequence_output, or the only one of fitting rank.
    drop_in: whether to return the same model with other weights.
    k: the strength of the KL (`robustness.Urkle`).
    beta: its weight in nats, instead of k; with neither, the pretext's default k applies.
    rho: how far a drop-in's embeddings may move, as a share of their spread; 0.1 by default.  Give
      k or beta instead to weigh the KL against the drift.
    rho_of: "spread", or "length" if rho is a share of their mean squared length.
    **settings: settings of `pretrain`: dataset ("digits", "folder:PATH" or a TFDS name; labels are
      not read), image_size, epsilon, attack_steps, epochs, ...; encoder names another architecture
      instead of a copy, and latent_dim is the d_z of a Gaussian encoder.

  Returns:
    The encoder in `output_dir/encoder`, as `load_encoder` loads it; with `drop_in`, a Keras model.

  Raises:
    UserError: for settings, data or models that are wrong.

  ```python
  data = {"dataset": "folder:photos", "image_size": 32}
  robust = urkle_tf.robustify(model, "runs/robust", drop_in=True, epochs=20, **data)
  embeddings = robust(images)  # of the same shape as before, and near those of `model`
  ```
  """
  output_dir, strength = os.path.expanduser(output_dir), _text(k=k, beta=beta)
  _check(settings, drop_in, strength, rho, rho_of)
  taking = {"preprocess": preprocess, "pool": pool, "output": output}
  model, path = _read(model, taking, drop_in, output_dir, settings)
  settings = {"augment": "crop(padding=4)", **settings}
  if not drop_in:
    result = _pretrain(output_dir, f"distil(teacher={_quoted(path)})", strength, path, settings)
    return export.load_encoder(result["encoder"])
  rho = None if strength else 0.1 if rho is None else rho
  pretext = f"keep(original={_quoted(path)}, rho={rho}, rho_of={rho_of})"
  settings = {"min_scale": _SIGMA, "max_scale": _SIGMA, **settings}
  _pretrain(output_dir, pretext, f"anchor=original, {strength}".rstrip(", "), path, settings)
  return _drop_in(model, pathlib.Path(output_dir))


def _check(settings, drop_in, strength, rho, rho_of):
  """Raises `UserError` for arguments of `robustify` that do not go together."""
  for name in ("pretext", "robustness"):
    if name in settings:
      raise errors.UserError(f"robustify chooses {name}: use pretrain, or the command train")
  if drop_in and any(settings.get(name) is not None for name in ("encoder", "latent_dim", "loc")):
    raise errors.UserError("a drop-in is the model itself: leave encoder, latent_dim and loc out")
  if drop_in and rho is not None and strength:
    raise errors.UserError("give rho, or a weight (k or beta), not both")
  if not drop_in and rho is not None:
    raise errors.UserError("rho goes with drop_in=True: give k or beta instead")
  if not drop_in and rho_of != "spread":
    raise errors.UserError("rho_of goes with drop_in=True: leave it out")


def _read(model, taking, drop_in, output_dir, settings):
  """(the model, the path of its version for images in [0, 1])."""
  asked = drop_in or any(value is not None for value in taking.values())
  if asked and str(model).endswith(".keras"):
    model = foreign_models.read_keras(os.path.expanduser(model))
  if isinstance(model, keras.Model):
    return model, _save(model, taking, output_dir, settings.get("image_size"))
  if asked:
    raise errors.UserError(
      f"{', '.join(taking)} and drop_in go with a Keras model or a .keras file, not with a folder"
    )
  if not isinstance(model, str | os.PathLike):
    raise errors.UserError(
      f"robustify takes a keras.Model, a .keras file or a folder, got {type(model).__name__}: of "
      "an encoder of urkle_tf, give the folder"
    )
  return model, os.path.expanduser(str(model))


def _text(**options):
  return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)


def _quoted(path):
  quote = "'" if '"' in path else '"'
  return f"{quote}{path}{quote}"


def _pretrain(output_dir, pretext, options, path, settings):
  """Runs the cell; the encoder is a copy of the model unless settings name another."""
  copy = path.endswith(".keras") and settings.get("encoder") is None
  if copy:
    settings |= {"encoder": path, "optimizer": settings.get("optimizer") or "adamw"}
    adamw = spec.parse(settings["optimizer"])[0] == "adamw"
    if adamw and settings.get("learning_rate") is None:
      settings["learning_rate"] = _GENTLE
  if settings.get("latent_dim") is None and not copy:
    settings["latent_dim"] = _width(path, settings.get("image_size") or 32)
  if settings.get("latent_dim") is not None:
    settings.setdefault("loc", "dense")
  return pretraining.pretrain(
    output_dir, pretext=pretext, robustness=f"urkle({options})", **settings
  )


def _save(model, taking, output_dir, size):
  """Saves a model of images in [0, 1] to the run's folder; returns the file's path.

  Once the run has results, the file stays as it is.
  """
  file = pathlib.Path(output_dir) / _TEACHER
  shape = foreign.image_shape(model)
  taken = foreign.take(model, (size, size, 3) if shape is None and size else shape, **taking)
  if file.exists() and runs.started(file.parent):
    _check_same(taken, file)
    return str(file)
  runs.make(file.parent)
  try:
    _write(taken, file, lambda side: foreign_models.load(side, foreign_models.EMBEDDING))
  except Exception as error:  # zip, HDF5 and Keras raise many kinds
    raise errors.UserError(
      f"{model.name!r} cannot be saved and read back ({errors.reason(error)}); register "
      "its classes with keras.saving.register_keras_serializable and give them get_config; or "
      "give the folder of model.export(FOLDER), and encoder="
    ) from error
  return str(file)


def _write(model, file, check=lambda side: None):
  """Saves a model; the file gets its name only when it is complete and has passed a check."""
  side = file.with_name(f"side-{file.name}")
  try:
    model.save(side)
    check(side)
    side.replace(file)
  finally:
    side.unlink(missing_ok=True)


def _check_same(model, file):
  """Raises `UserError` if a file holds other weights than a model, or takes other pixels."""
  earlier = foreign_models.read_keras(file)
  before, now = ([np.asarray(value) for value in one.weights] for one in (earlier, model))
  if len(before) != len(now) or not all(map(np.array_equal, before, now)):
    raise errors.UserError(f"{str(file)!r} holds another model: give another output_dir")
  size = [side or _FREE_SIDE for side in model.input_shape[1:]]
  images = np.random.default_rng(0).uniform(size=(2, *size)).astype(np.float32)
  try:
    then, here = (np.asarray(one(images, training=False), np.float32) for one in (earlier, model))
    same = then.shape == here.shape and np.allclose(then, here, _NEAR, _NEAR * np.abs(here).max())
  except (ValueError, tf.errors.OpError):  # of another image size
    same = False
  if not same:
    raise errors.UserError(
      f"{str(file)!r} holds this model with another preprocess, pool, output or image_size: give "
      "those of its run to resume it, or another output_dir"
    )


def _drop_in(model, folder):
  """The model with the weights of the run's encoder; also writes it."""
  find = lambda network: _find(network, model.name, len(model.weights))  # noqa: E731
  result = find(foreign_models.read_keras(folder / _TEACHER))
  result.set_weights(find(export.load_encoder(folder / "encoder").network).get_weights())
  _write(result, folder / _DROP_IN)
  return result


def _find(network, name, weights):
  """The model within a network that has this name and number of weights."""
  models = (x for x in keras_private.layers(network, itself=False) if isinstance(x, keras.Model))
  return next(model for model in models if (model.name, len(model.weights)) == (name, weights))


def _width(path, size):
  """The width of a teacher's embedding."""
  teacher = embedders.read(path)
  return embedders.output_shape(teacher, teacher.size_for((size, size, 3)))[-1]
