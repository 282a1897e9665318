"""Strided 1x1 convolutions: ours avoid the gradient that crashes, and others' are refused."""

import functools
import sys

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses

import urkle_tf
from urkle_tf import networks
from urkle_tf.networks import onednn, resnet

# One training step of each encoder: in another process, since it is the process that would die.
STEPS = """
import sys
import numpy as np
import tensorflow as tf
import urkle_tf
from urkle_tf import networks

for case in sys.argv[1:]:
  spec, size = case.rsplit(maxsplit=1)
  shape = (int(size), int(size), 3)
  views = tf.random.stateless_uniform([2, 4, *shape], [1, 2])
  encoder = urkle_tf.GaussianEncoder(networks.backbone(spec, shape), latent_dim=4, loc="dense")
  trainer = urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR(), urkle_tf.robustness.Plain())
  trainer.compile("sgd")
  history = trainer.fit(tf.data.Dataset.from_tensors(tuple(views)), verbose=0).history
  print(np.isfinite(history["loss"]).all())
"""
WIDTHS = (4, 8, 12, 16, 32, 64)


def take_steps(cases, **environment):
  """What `STEPS` prints for [(spec, size)]."""
  words = (sys.executable, "-c", STEPS, *(f"{spec} {size}" for spec, size in cases))
  return commands.process(*words, environment=environment).stdout.split()


@pytest.fixture
def old_layout(monkeypatch):
  """Within it ResNets are built as they were: with a stride in the convolution of a shortcut."""
  conv = resnet._conv

  def strided(x, filters, size, strides, name):
    if size > 1:
      return conv(x, filters, size, strides, name)
    return keras.layers.Conv2D(filters, 1, strides, padding="same", use_bias=False, name=name)(x)

  monkeypatch.setattr(resnet, "_conv", strided)


@pytest.fixture
def cpu(monkeypatch, tmp_path):
  """A function of a CPU's features, of what it runs from there on."""
  monkeypatch.setattr(onednn, "_CPU", tmp_path / "cpuinfo")
  monkeypatch.setattr(onednn._pywrap_util_port, "IsMklEnabled", lambda: True)

  def pretend(features):
    (tmp_path / "cpuinfo").write_text(f"model name : any\nflags\t\t: fpu {features} xsave\n")
    onednn._least_channels.cache_clear()

  pretend("avx2 avx512f")
  yield pretend
  onednn._least_channels.cache_clear()


def randomised(network, rng):
  """The network, every one of its variables drawn at random; variances are positive."""
  network.set_weights([rng.uniform(0.1, 0.5, value.shape) for value in network.get_weights()])
  return network


def value_and_gradients(network, images):
  """The outputs, and the gradients of the sum of their squares in the images and the weights."""
  images = tf.constant(images)
  with tf.GradientTape() as tape:
    tape.watch(images)
    outputs = network(images, training=True)
    total = tf.reduce_sum(tf.square(outputs))
  return [outputs, *tape.gradient(total, [images, *network.trainable_variables])]


@pytest.mark.parametrize("height, width", [(8, 8), (9, 9), (7, 10), (1, 2)])
def test_a_shortcut_is_the_strided_convolution(rng, height, width):
  x = keras.Input((height, width, 3))
  network = keras.Model(x, resnet._conv(x, 5, 1, 2, "shortcut"))
  images = rng.normal(size=(4, height, width, 3)).astype("float32")
  (kernel,) = network.get_weights()
  seen = images[:, ::2, ::2]
  expected = np.einsum("nhwc,cd->nhwd", seen, kernel[0, 0])
  in_images = np.zeros_like(images)
  in_images[:, ::2, ::2] = np.einsum("nhwd,cd->nhwc", 2 * expected, kernel[0, 0])
  in_kernel = np.einsum("nhwc,nhwd->cd", seen, 2 * expected)[None, None]
  found = value_and_gradients(network, images)
  same(found, (expected, in_images, in_kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("build", [networks.resnet18, networks.resnet50])
def test_networks_and_files_of_the_old_layout(rng, tmp_path, request, build):
  shape = (18, 33, 3)
  new = build(shape, width=16)  # where the old layout's gradient is right
  request.getfixturevalue("old_layout")
  old = randomised(build(shape, width=16), rng)
  strided = [conv.name for conv in old.layers if getattr(conv, "strides", 0) == (2, 2)]
  assert sum(name.endswith("shortcut_conv") for name in strided) == 3
  described = lambda network: [(v.path, v.shape) for v in network.variables]  # noqa: E731
  assert described(new) == described(old)

  new.set_weights(old.get_weights())
  images = rng.uniform(size=(2, *shape)).astype("float32")
  pairs = zip(value_and_gradients(new, images), value_and_gradients(old, images), strict=True)
  for one, other in pairs:
    scale = np.abs(other).max()
    np.testing.assert_allclose(one / scale, other / scale, atol=1e-4)

  old.save(tmp_path / "network.keras")
  old.save_weights(tmp_path / "network.weights.h5")
  loaded = keras.saving.load_model(tmp_path / "network.keras")
  new = build(shape, width=16)
  new.load_weights(tmp_path / "network.weights.h5")
  for network in (loaded, new):
    np.testing.assert_allclose(network(images), old(images), rtol=1e-5)


@pytest.mark.parametrize("spec", sorted(networks.BACKBONES))
@pytest.mark.usefixtures("cpu")
def test_networks_of_ours_have_no_such_convolution(spec, monkeypatch):
  network = networks.backbone(f"{spec}(width=4)", (32, 32, 3))
  monkeypatch.setattr(onednn, "_least_channels", functools.cache(lambda: 10**6))
  onednn.check(network)


def trainer_of(channels, size=1, **options):
  """A trainer, not compiled, of a convolution of stride 2 over this many channels."""
  images = keras.Input((64, 64, channels))
  maps = keras.layers.Conv2D(16, size, strides=2, name="shortcut", **options)(images)
  encoder = urkle_tf.GaussianEncoder(keras.Model(images, maps), latent_dim=4, loc="dense")
  return urkle_tf.Trainer(encoder, urkle_tf.pretexts.SimCLR())


@pytest.mark.parametrize("features, least", [("avx2 avx512f", 16), ("avx2", 8)])
def test_training_is_refused_before_it_starts(cpu, features, least):
  cpu(features)
  for channels in (1, 3, least - 1):
    words = f"'shortcut', a strided 1x1 convolution over {channels} channels"
    refuses(f"{words} & TF_ENABLE_ONEDNN_OPTS=0", trainer_of(channels).compile, "sgd")


def test_what_works_is_not_refused(cpu, monkeypatch):
  trainer_of(3).compile("sgd", jit_compile=True)
  trainer_of(16).compile("sgd")
  trainer_of(3, size=3).compile("sgd")
  trainer_of(3, trainable=False).compile("sgd")
  trainer_of(8, groups=2).compile("sgd")
  cpu("avx2")
  trainer_of(8).compile("sgd")
  cpu("sse4_2")
  trainer_of(3).compile("sgd")
  cpu("avx2 avx512f")
  monkeypatch.setattr(onednn._pywrap_util_port, "IsMklEnabled", lambda: False)
  trainer_of(3).compile("sgd")


@pytest.mark.usefixtures("cpu")
def test_a_refused_run_writes_nothing(old_layout, tmp_path):
  networks.resnet18((8, 8, 1), width=8).save(tmp_path / "theirs.keras")
  theirs = str(tmp_path / "theirs.keras")
  options = {"encoder": theirs, "examples": 64, "batch_size": 32}
  words = "'stage2_block1_shortcut_conv', a strided 1x1"
  refuses(words, urkle_tf.pretrain, tmp_path / "run", **options)
  assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("spec", ["resnet18", "resnet50"])
def test_a_step_at_every_width(spec, size):
  cases = [(f"{spec}(width={width})", size) for width in WIDTHS]
  assert take_steps(cases) == ["True"] * len(WIDTHS)


@pytest.mark.full
@pytest.mark.usefixtures("old_layout")
def test_theirs_trains_by_the_advice(tmp_path):
  networks.resnet18((64, 64, 3), width=8).save(tmp_path / "theirs.keras")
  cases = [(str(tmp_path / "theirs.keras"), 64)]
  assert take_steps(cases, TF_ENABLE_ONEDNN_OPTS="0") == ["True"]
