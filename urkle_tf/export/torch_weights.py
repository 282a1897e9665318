"""Loads weights of PyTorch ResNets, as arrays, into our ResNets, without PyTorch."""

import re

import keras
import numpy as np

from urkle_tf import errors
from urkle_tf.networks import keras_private

_NORM = {
  "weight": "gamma",
  "bias": "beta",
  "running_mean": "moving_mean",
  "running_var": "moving_variance",
}
_SHORTCUTS = ("downsample", "shortcut")
_TRUNK = re.compile(r"(conv|bn|layer)\d+\.")  # the names of a ResNet's layers, except its head
_STEM = "stem_conv"  # a layer of every ResNet of this package
_SHOWN = 4  # texts that a message lists


def import_torch_state(arrays, model, norm=None, prefix=None):
  """Fills a ResNet with the weights of a PyTorch checkpoint.

  Names may be those of torchvision, of the usual CIFAR variant (`shortcut.0`), or of ACL and
  DynACL, whose normalisations are lists (`bn1.bn_list.0`, `downsample.bn.bn_list.1`); with any
  prefix, such as `module.` or `encoder.`.  Nothing is assigned unless everything fits.

  Args:
    arrays: {name: array}, a state_dict as NumPy arrays: a dict, or what `numpy.load` opened.
    model: a backbone from `urkle_tf.networks.resnet18` or `resnet50`, or an encoder or another
      model over one.  An encoder with two streams is filled one stream at a time.
    norm: the normalisation to take if there are several: the last part of its name, such as 1 for
      `bn_list.1`.
    prefix: the prefix of the names, such as `"encoder_q."`, if the checkpoint holds several
      networks.

  Returns:
    A list of the names in the checkpoint that were left out: heads, other normalisations, counters.

  Raises:
    UserError: if the model has no such backbone, or two streams, an array is missing, has another
      shape or is not finite, the checkpoint's network has more layers, or `norm` or `prefix` must
      be given.

  ```python
  backbone = urkle_tf.networks.resnet18((32, 32, 3), stem="small")
  with np.load("resnet18.npz") as arrays:  # a state_dict, saved by np.savez
    left_out = urkle_tf.import_torch_state(arrays, backbone)  # such as ["fc.weight", "fc.bias"]
  encoder = urkle_tf.GaussianEncoder(backbone)
  ```
  """
  if len(getattr(model, "streams", ())) > 1:
    raise errors.UserError(
      "this encoder has batch norms for two streams: import into encoder.network, and again into "
      'encoder.streams["clean"]'
    )
  backbone = _backbone(getattr(model, "network", model))
  names = set(arrays)
  prefix = prefix_of("ResNet", names, "layer1.0.conv1.weight", prefix)
  wanted, known = _wanted(backbone, names, prefix, norm)

  def further(name):
    inside = name.startswith(prefix) and _TRUNK.match(name[len(prefix) :])
    return inside and not name.startswith(tuple(known))

  places = [place(name, variable) for name, variable in wanted.items()]
  return fill(backbone, arrays, places, further, _hint(backbone, arrays, prefix))


def place(name, variable):
  """(the name, the shape in PyTorch, a function of the array to [(variable, value)])."""
  shape = tuple(variable.shape)
  if len(shape) < 4:
    return name, shape, lambda value: [(variable, value)]
  shape = tuple(shape[axis] for axis in (3, 2, 0, 1))  # [out, in, h, w], not [h, w, in, out]
  return name, shape, lambda value: [(variable, value.transpose(2, 3, 1, 0))]


def fill(model, arrays, places, further, hint=""):
  """Assigns the arrays of a checkpoint to variables, once all of them fit.

  Args:
    model: whose they are.
    arrays: {name: array}.
    places: triples as `place` returns them.
    further: whether the array of a name without a place would be a part of the network.
    hint: the end of the message.

  Returns:
    The names of the arrays without a place, a list.

  Raises:
    UserError: if they do not fit.
  """
  left = sorted(set(arrays) - {name for name, _, _ in places})
  missing, wrong, broken, values = [], [], [], []
  for name, shape, targets in places:
    if name not in arrays:
      missing.append(name)
    elif (found := np.shape(arrays[name])) != shape:
      wrong.append(f"{name} is {_shape(found)}, not {_shape(shape)}")
    elif not np.isfinite(arrays[name]).all():
      broken.append(name)
    else:
      values += targets(np.asarray(arrays[name], np.float32))
  faults = {"missing": missing, "further": [*filter(further, left)], "other shapes": wrong}
  faults["NaN or infinite"] = broken
  if problems := [f"{what}: {_some(names)}" for what, names in faults.items() if names]:
    raise errors.UserError(f"the checkpoint does not fit {model.name}: {'; '.join(problems)}{hint}")
  for variable, value in values:
    variable.assign(value)
  return left


def _backbone(model):
  """The ResNet within a model."""
  found = [model, *keras_private.layers(model, itself=False)]
  for part in found:
    if isinstance(part, keras.Model) and _STEM in {layer.name for layer in part.layers}:
      return part
  raise errors.UserError(
    f"{model.name!r} holds no ResNet of this package: give "
    'urkle_tf.networks.resnet18(image_shape, stem="small"), or an encoder over one'
  )


def prefix_of(kind, names, end, given=None):
  """The prefix of the names of one network in a checkpoint.

  Args:
    kind: the kind of the network, for messages.
    names: all names in the checkpoint.
    end: the name of an array that every such network has, without the prefix.
    given: the prefix that the user gave, or None.

  Raises:
    UserError: if there is no such network, or several and no prefix is given.
  """
  found = sorted(name[: -len(end)] for name in names if name.endswith(end))
  if given is not None:
    errors.one_of("prefix", given, found)
    return given
  if len(found) == 1:
    return found[0]
  if found:
    listing = ", ".join(map(repr, found))
    raise errors.UserError(f"the checkpoint holds several networks: give prefix=, one of {listing}")
  raise errors.UserError(
    f"the checkpoint holds no {kind}, because no name ends with {end} (it has "
    f"{_some(sorted(names))}): give the state_dict itself, with PyTorch's names"
  )


def _wanted(backbone, names, prefix, norm):
  """{name in the checkpoint: variable}, and the beginnings of all names that belong to them."""
  wanted, known = {}, []
  for layer in backbone.layers:
    if isinstance(layer, keras.layers.Conv2D):
      candidates = [f"{prefix}{name}.weight" for name in _torch_names(layer.name)]
      name = next((name for name in candidates if name in names), candidates[0])
      wanted[name] = layer.kernel
      known.append(name)
    elif isinstance(layer, keras.layers.BatchNormalization):
      candidates = [f"{prefix}{name}." for name in _torch_names(layer.name)]
      starting = [c for c in candidates if any(name.startswith(c) for name in names)]
      start = (starting or candidates)[0]
      chosen = _normalisation(names, start, norm)
      wanted |= {chosen + theirs: getattr(layer, ours) for theirs, ours in _NORM.items()}
      known.append(start)
  return wanted, known


def _torch_names(name):
  """The names that PyTorch projects give a layer of ours, the usual name first."""
  if name.startswith("stem"):
    return ["conv1" if name.endswith("conv") else "bn1"]
  stage, block, rest = name.split("_", 2)  # stage1_block2_conv1
  stem = f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}."
  if rest.startswith("shortcut"):
    parts = ("0", "conv") if rest.endswith("conv") else ("1", "bn")
    return [f"{stem}{shortcut}.{part}" for part in parts for shortcut in _SHORTCUTS]
  return [stem + rest.replace("norm", "bn")]


def _normalisation(names, start, norm):
  """The beginning of a normalisation's names: `start`, or more if it is one of several."""
  end = "running_mean"
  found = {
    name.removesuffix(end).split(".")[-2]: name.removesuffix(end)
    for name in sorted(names)
    if name.startswith(start) and name.endswith(f".{end}")
  }
  if len(found) < 2:
    return next(iter(found.values()), start)
  if norm is None:
    raise errors.UserError(
      f"the checkpoint has several normalisations, such as {' and '.join(found.values())}: give "
      f"norm=, one of {', '.join(found)} (in ACL and DynACL 0 saw clean images, 1 adversarial ones)"
    )
  errors.one_of("normalisation", str(norm), found)
  return found[str(norm)]


def _hint(backbone, arrays, prefix):
  """How to build the backbone, if the first convolution shows it."""
  shape = np.shape(arrays.get(f"{prefix}conv1.weight", ()))
  if len(shape) != 4:
    return ""
  width, channels, size, _ = shape
  ours = backbone.get_layer(_STEM).kernel.shape
  if (size, size, channels, width) == tuple(ours):
    return ""
  stem = {3: "small", 7: "large"}.get(size, f"of {size}x{size}")
  return f'; it needs a network of {channels} channels, width={width}, stem="{stem}"'


def _shape(shape):
  return "x".join(map(str, shape))


def _some(texts):
  """The first four texts, and the number of the others."""
  more = len(texts) - _SHOWN
  return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
