"""The pixels that a model expects: folded in front of it, detected, and checked."""

import re
from typing import Any

import keras
import numpy as np

from urkle_tf import errors
from urkle_tf.networks import keras_private

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]
_BGR = (103.939, 116.779, 123.68)

# The conventions of `keras.applications`, by the names of `imagenet_utils.preprocess_input`, for
# pixels in [0, 1]; "unit" keeps them unchanged, "255" multiplies them.
CONVENTIONS = {
  "unit": lambda images: images,
  "255": lambda images: _rescaling(255.0)(images),
  "tf": lambda images: _rescaling(2.0, -1.0)(images),
  "torch": lambda images: _rescaling(
    [1 / deviation for deviation in _DEVIATION],
    [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
  )(images),
  "caffe": lambda images: _rescaling(255.0, [-mean for mean in _BGR])(
    keras.ops.flip(images, axis=-1)  # red, green, blue -> blue, green, red
  ),
}
# The families of `keras.applications` that need `preprocess_input`, by their models' names.
_FAMILIES = {
  r"resnet(50|101|152)|vgg(16|19)": "caffe",
  r"densenet(121|169|201)": "torch",
  r"resnet(50|101|152)v2|mobilenet(v2)?_[\d.]+_\d+|inception_(v3|resnet_v2)|xception|NASNet": "tf",
}
# Layers that leave the scale of pixels as it is, so what comes after them may declare it.
_SAME_SCALE = tuple(
  getattr(keras.layers, name)
  for name in (
    *("Identity", "Resizing", "CenterCrop", "ZeroPadding2D", "RandomCrop", "RandomFlip"),
    *("RandomRotation", "RandomTranslation", "RandomZoom", "RandomContrast", "RandomBrightness"),
  )
)
_WRONG, _BETTER, _FAR = 1.0, 5.0, 100.0  # see `check`


def _rescaling(scale, offset=0.0):
  return keras.layers.Rescaling(scale, offset, dtype="float32")


def folding(preprocess):
  """A function of Keras tensors that turns images in [0, 1] into what a model expects.

  Args:
    preprocess: a name among `CONVENTIONS`, a Keras layer, a function of Keras tensors, or an
      `ImageConverter` of KerasHub, whose scale and offset are used (they are for pixels in
      [0, 255]), but not its image size.

  Raises:
    UserError: for anything else, and for the `preprocess_input` of a model of `keras.applications`.
      What it returns raises one if `preprocess` fails on images.
  """
  if isinstance(preprocess, str):
    errors.one_of("preprocess", preprocess, CONVENTIONS)
    return CONVENTIONS[preprocess]
  if any(kind.__name__ == "ImageConverter" for kind in type(preprocess).__mro__):
    scale = 1.0 if preprocess.scale is None else preprocess.scale
    offset = 0.0 if preprocess.offset is None else preprocess.offset
    return _rescaling((255.0 * np.asarray(scale, "float64")).tolist(), np.asarray(offset).tolist())
  if not callable(preprocess):
    raise errors.UserError(
      f"preprocess must be one of {', '.join(CONVENTIONS)}, a Keras layer, or a function of Keras "
      f"tensors, got {type(preprocess).__name__}"
    )
  if str(getattr(preprocess, "__module__", "")).startswith("keras.src.applications."):
    raise errors.UserError(
      "the preprocess_input of keras.applications takes pixels up to 255: leave preprocess out, or "
      "give lambda images: preprocess_input(255 * images)"
    )

  def fold(images):
    try:
      found = preprocess(images)
      if len(found.shape) != 4:
        raise ValueError(f"it returns {list(found.shape)}")
    except Exception as error:  # layers and operations raise many kinds
      raise errors.UserError(
        f"preprocess fails on images of {'x'.join(map(str, images.shape[1:]))}: give a Keras "
        f"layer, or a function of keras.ops ({errors.reason(error)})"
      ) from error
    return found

  return fold


def expected(model):
  """The convention that a model declares, or None if it declares none.

  A model declares it by a first layer `Rescaling` or `Normalization` (after layers that resize,
  crop, pad or augment, if there are some), or by the name of a model in `keras.applications` that
  needs `preprocess_input`.

  Returns:
    (a name among `CONVENTIONS`, what declares it), or (None, None).
  """
  first = _first(model)
  if isinstance(first, keras.layers.Rescaling):
    scale = float(np.max(np.abs(first.scale)))
    if scale <= 1 / 64 or scale >= 0.5:  # anything else is unknown
      return "255" if scale <= 1 / 64 else "unit", f"its first layer {first.name}"
  if isinstance(first, keras.layers.Normalization) and first.mean is not None:
    top = float(np.max(np.abs(first.mean)))
    return "255" if top > 2 else "unit", f"its first layer {first.name}"
  for names, convention in _FAMILIES.items():
    if re.fullmatch(names, model.name):
      return convention, f"its name {model.name}, one of keras.applications"
  return None, None


def _first(model):
  """The first operation on the input of a functional or sequential model that may change its scale.

  None for other models.
  """
  operations = (one for one in _operations(model) if not isinstance(one, _SAME_SCALE))
  return next(operations, None)


def _operations(model):
  """The operations of a model and of those nested in it, in order; other models stay whole."""
  sequential = isinstance(model, keras.Sequential)
  for one in model.layers if sequential else getattr(model, "operations", []):
    inner = list(_operations(one)) if isinstance(one, keras.Model) else []
    if not isinstance(one, keras.layers.InputLayer):
      yield from inner or [one]


def chosen(model, preprocess, shape):
  """The folding for a model: the given one, or the one that the model declares.

  Args:
    model: a Keras model of images.
    preprocess: as in `folding`; None for what the model declares, or [0, 1] if it declares nothing.
    shape: (height, width, channels) of the images.

  Returns:
    (a function of Keras tensors, what declares it).  The second is None if `preprocess` was given,
    or the model declares nothing.

  Raises:
    UserError: if the model's first layer shows that the given scale is wrong.
  """
  convention, said = expected(model)
  if preprocess is None:
    return CONVENTIONS[convention or "unit"], said if convention != "unit" else None
  fold = folding(preprocess)
  if convention in ("255", "unit"):
    shape = [side or 1 for side in shape]
    ends = keras.ops.stack([keras.ops.zeros(shape), keras.ops.ones(shape)])
    top = float(keras.ops.max(keras.ops.abs(fold(ends))))
    if (top > 8) != (convention == "255"):
      raise errors.UserError(
        f"{model.name!r} expects pixels up to {255 if convention == '255' else 1}, by {said}, but "
        f"preprocess scales them up to {top:g}: leave preprocess out"
      )
  return fold, None


def check(model, images, name):
  """Checks the scale of pixels against the first trained batch norm, if there is one.

  Its statistics (M, V) per channel are those of the images that it was trained on; these images
  give (m, v).  Their distance is that of two Gaussians, averaged over channels,

      KL = 1/2 (v / V + (m - M)^2 / V - 1 - log(v / V))

  Other kinds of images are at some distance too.  So a scale counts as wrong only if the distance
  is above 1 nat, and either one of `CONVENTIONS` in front of the model reduces it to a fifth, or
  the variances are off by a factor of 100 (the median over channels).

  Args:
    model: a Keras model of images in [0, 1].
    images: some images, float32 [n, h, w, c].
    name: the model's name in messages.

  Raises:
    UserError: if the scale is wrong.
  """
  norm = _FirstNorm(model)
  if norm.layer is None:
    return
  found, ratio = norm.distance(images)
  if not found > _WRONG:
    return
  names = [key for key in CONVENTIONS if images.shape[-1] == 3 or key in ("255", "tf")]
  others = {key: norm.distance(CONVENTIONS[key](images))[0] for key in names if key != "unit"}
  best = min(others, key=others.__getitem__)
  better = others[best] * _BETTER < found
  if better or not 1 / _FAR < ratio < _FAR:
    fitting = f"preprocess={best!r}, which fits, or another " if better else ""
    raise errors.UserError(
      f"the pixels have the wrong scale: batch norm {norm.layer.name!r} of {name!r} was trained on "
      f"values of {1 / ratio:.3g} times the variance. Give robustify {fitting}preprocess= that "
      "turns images in [0, 1] into what the model expects"
    )


class _FirstNorm:
  """The first batch norm of a model whose statistics differ from their initial values."""

  def __init__(self, model):
    self.model = model
    norms = [
      layer
      for layer in keras_private.layers(model)
      if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
    self.layer: Any = next(filter(_trained, norms), None)

  def distance(self, images):
    """(the distance in nats, the median ratio of variances); see `check`."""
    seen = []
    layer, call = self.layer, self.layer.call

    def record(inputs, *args, **kwargs):
      seen.append(np.asarray(keras.ops.convert_to_numpy(inputs), "float64"))
      return call(inputs, *args, **kwargs)

    layer.call = record
    try:
      self.model(keras.ops.convert_to_tensor(images), training=False)
    finally:
      layer.call = call
    if not seen:  # the model does not use it
      return 0.0, 1.0
    values = np.moveaxis(seen[0], layer.axis, -1).reshape(-1, layer.moving_mean.shape[0])
    mean, variance = (np.asarray(x, "float64") for x in (layer.moving_mean, layer.moving_variance))
    variance = variance + layer.epsilon
    ratio = (values.var(0) + layer.epsilon) / variance
    shift = np.square(values.mean(0) - mean) / variance
    distance = np.mean(0.5 * (ratio + shift - 1.0 - np.log(ratio)))
    return float(distance), float(np.median(ratio))


def _trained(norm):
  return np.any(np.asarray(norm.moving_mean) != 0) or np.any(np.asarray(norm.moving_variance) != 1)
