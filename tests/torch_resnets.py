"""A plain NumPy ResNet with PyTorch's conventions, and random state_dicts for it."""

import numpy as np

# PyTorch's layers: [n, c, h, w], kernels [out, in, h, w], the same padding on all sides.


def convolve(x, kernel, stride):
  size = kernel.shape[-1]
  x = np.pad(x, ((0, 0), (0, 0), *[(size // 2, size // 2)] * 2))
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
  return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], kernel)


def normalise(x, state, name):
  mean, variance, gamma, beta = (
    state[f"{name}.{part}"][:, None, None]
    for part in ("running_mean", "running_var", "weight", "bias")
  )
  return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def max_pool(x):
  x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
  return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))


def forward(state, x, large=False):
  """A ResNet of basic or bottleneck blocks, torchvision's names, in inference mode."""
  relu = lambda x: np.maximum(x, 0)  # noqa: E731
  x = relu(normalise(convolve(x, state["conv1.weight"], 2 if large else 1), state, "bn1"))
  x = max_pool(x) if large else x
  for stage in (1, 2, 3, 4):
    block = 0
    while f"layer{stage}.{block}.conv1.weight" in state:
      name = f"layer{stage}.{block}"
      stride = 2 if stage > 1 and block == 0 else 1
      bottleneck = f"{name}.conv3.weight" in state
      y = x
      for number in (1, 2, 3) if bottleneck else (1, 2):
        at = number == (2 if bottleneck else 1)  # the convolution that strides
        y = convolve(
          relu(y) if number > 1 else y, state[f"{name}.conv{number}.weight"], stride if at else 1
        )
        y = normalise(y, state, f"{name}.bn{number}")
      if f"{name}.downsample.0.weight" in state:
        x = convolve(x, state[f"{name}.downsample.0.weight"], stride)
        x = normalise(x, state, f"{name}.downsample.1")
      x, block = relu(x + y), block + 1
  return x.mean((2, 3))


def resnet_state(rng, depths=(2, 2, 2, 2), width=4, channels=3, stem=3, bottleneck=False):
  """A random state_dict with torchvision's names."""
  state = {}

  def conv(name, inputs, outputs, size):
    scale = 2 / np.sqrt(inputs * size * size)
    state[f"{name}.weight"] = scale * rng.normal(size=(outputs, inputs, size, size))

  def norm(name, size):
    state[f"{name}.weight"] = rng.uniform(0.5, 1.5, size)
    state[f"{name}.bias"] = rng.normal(size=size)
    state[f"{name}.running_mean"] = 0.3 * rng.normal(size=size)
    state[f"{name}.running_var"] = rng.uniform(0.5, 2, size)
    state[f"{name}.num_batches_tracked"] = np.array(7)

  conv("conv1", channels, width, stem)
  norm("bn1", width)
  inputs = width
  for stage, depth in enumerate(depths):
    for block in range(depth):
      name, inner = f"layer{stage + 1}.{block}", width * 2**stage
      outputs = inner * (4 if bottleneck else 1)
      sizes = (1, 3, 1) if bottleneck else (3, 3)
      ends = [inputs, *[inner] * (len(sizes) - 1), outputs]
      for number, size in enumerate(sizes):
        conv(f"{name}.conv{number + 1}", ends[number], ends[number + 1], size)
        norm(f"{name}.bn{number + 1}", ends[number + 1])
      if block == 0 and (inputs != outputs or stage):
        conv(f"{name}.downsample.0", inputs, outputs, 1)
        norm(f"{name}.downsample.1", outputs)
      inputs = outputs
  state["fc.weight"], state["fc.bias"] = rng.normal(size=(10, inputs)), np.zeros(10)
  return {name: np.asarray(value, np.float32) for name, value in state.items()}


def is_norm(name):
  part = name.split(".")[-2]
  return "bn" in part or (part == "1" and "downsample" in name)


def listed(state, others):
  """The state of a network with two normalisations, of which `state` is the second."""
  found = {}
  for name, value in state.items():
    if not is_norm(name):
      found[name.replace("downsample.0", "downsample.conv")] = value
      continue
    stem, _, part = name.replace("downsample.1", "downsample.bn").rpartition(".")
    found[f"{stem}.bn_list.0.{part}"] = others[name]
    found[f"{stem}.bn_list.1.{part}"] = value
  return found
