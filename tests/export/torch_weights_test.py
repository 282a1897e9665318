"""Imported ResNets compute what a plain NumPy ResNet with PyTorch's conventions does."""

import numpy as np
import pytest
from alike import same
from cases import refused, refuses
from torch_resnets import forward, is_norm, listed, resnet_state

import urkle_tf
from urkle_tf import networks
from urkle_tf.export import torch_weights


@pytest.fixture(scope="module")
def state():
  return resnet_state(np.random.default_rng(0))


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(1).uniform(size=(3, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def features(state, images):
  """The features of the state as it is; those of other weights differ."""
  found = forward(state, images.transpose(0, 3, 1, 2))
  assert np.std(found, 0).mean() > 0.05
  return found


@pytest.fixture
def backbone():
  return networks.resnet18((8, 8, 3), width=4, stem="small")


def agree(model, images, wanted):
  tolerance = {"rtol": 1e-4, "atol": 2e-5 * np.abs(wanted).max()}
  np.testing.assert_allclose(model(images, training=False), wanted, **tolerance)


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder.", "backbone."])
def test_a_checkpoint_computes_what_it_did(state, images, features, backbone, prefix):
  arrays = {prefix + name: value for name, value in state.items()}
  arrays["optimiser.step"] = np.array(3)
  left = urkle_tf.import_torch_state(arrays, backbone)
  agree(backbone, images, features)
  counters = [name for name in arrays if name.endswith("num_batches_tracked")]
  heads = [f"{prefix}fc.weight", f"{prefix}fc.bias", "optimiser.step"]
  assert left == sorted(heads + counters)


def test_names_of_cifar_networks(state, images, features, backbone):
  arrays = {name.replace("downsample", "shortcut"): value for name, value in state.items()}
  urkle_tf.import_torch_state(arrays, backbone)
  agree(backbone, images, features)


@pytest.mark.parametrize("norm", [0, 1, "1"])
def test_one_of_two_normalisations(state, images, backbone, norm):
  others = resnet_state(np.random.default_rng(2))
  arrays = listed(state, others)
  left = urkle_tf.import_torch_state(arrays, backbone, norm=norm)
  taken = state if str(norm) == "1" else {n: others[n] if is_norm(n) else state[n] for n in state}
  agree(backbone, images, forward(taken, images.transpose(0, 3, 1, 2)))
  assert "bn1.bn_list.0.weight" in left or "bn1.bn_list.1.weight" in left
  refuses("give norm=, one of 0, 1 (in ACL and", urkle_tf.import_torch_state, arrays, backbone)
  refuses("unknown normalisation '2'", urkle_tf.import_torch_state, arrays, backbone, norm=2)


def test_a_list_of_one_needs_no_choice(state, images, features, backbone):
  arrays = {
    ".".join([*name.split(".")[:-1], "bn_list", name.split(".")[-1]]) if is_norm(name) else name: v
    for name, v in state.items()
  }
  urkle_tf.import_torch_state(arrays, backbone)
  agree(backbone, images, features)


def test_an_encoder_over_the_backbone(state, images, features, backbone, tmp_path):
  mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
  options = {"preprocess": lambda x: (x - mean) / std, "loc": "dense"}
  encoder = urkle_tf.GaussianEncoder(backbone, latent_dim=5, **options)
  np.savez(tmp_path / "state.npz", **state)
  with np.load(tmp_path / "state.npz") as arrays:
    urkle_tf.import_torch_state(arrays, encoder)
  agree(backbone, images, features)
  head = encoder.network.get_layer("raw_loc").kernel.numpy()
  whole = forward(state, ((images - mean) / std).transpose(0, 3, 1, 2)) @ head
  loc = encoder.network(images, training=False)["loc"]  # its batch norm has seen nothing yet
  np.testing.assert_allclose(loc, whole / np.sqrt(1 + 1e-5), rtol=1e-3, atol=1e-4)


def test_each_stream_of_an_encoder_has_its_own_normalisation(state, images, backbone):
  """Given the encoder, only its adversarial stream was filled."""
  others = resnet_state(np.random.default_rng(2))
  arrays = listed(others, state)
  options = {"preprocess": "unit", "loc": "pooled", "dual": True}
  encoder = urkle_tf.GaussianEncoder(backbone, **options)
  words = 'import into encoder.network, and again into encoder.streams["clean"]'
  refuses(words, urkle_tf.import_torch_state, arrays, encoder, norm=1)
  urkle_tf.import_torch_state(arrays, encoder.network, norm=1)
  urkle_tf.import_torch_state(arrays, encoder.streams["clean"], norm=0)
  mixed = {name: value if is_norm(name) else others[name] for name, value in state.items()}
  for stream, taken in (("adversarial", others), ("clean", mixed)):
    found = lambda x, training, stream=stream: encoder(x, training=training, stream=stream).loc  # noqa: E731
    agree(found, images, forward(taken, images.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize(
  "build, options",
  [(networks.resnet18, {}), (networks.resnet50, {"depths": (3, 4, 6, 3), "bottleneck": True})],
)
def test_torchvisions_networks(rng, build, options):
  state = resnet_state(rng, stem=7, width=2, **options)
  images = rng.uniform(size=(2, 64, 32, 3)).astype(np.float32)
  backbone = build((64, 32, 3), width=2, stem="large")
  urkle_tf.import_torch_state(state, backbone)
  agree(backbone, images, forward(state, images.transpose(0, 3, 1, 2), large=True))


def misfits(state, backbone, message):
  before = [weight.copy() for weight in backbone.get_weights()]
  with refused(match=message):
    urkle_tf.import_torch_state(state, backbone)
  same(before, backbone.get_weights())


SHORTCUT, THIRD = "layer2.0.downsample.0.weight", "layer1.2.conv1.weight"


@pytest.mark.parametrize(
  "drop, zeros, message",
  [
    ([SHORTCUT, "bn1.bias"], {}, f"does not fit resnet18: missing: bn1.bias, {SHORTCUT}$"),
    ([], {"conv1.bias": 4, THIRD: (4, 4, 3, 3)}, f"resnet18: further: conv1.bias, {THIRD}$"),
    ([], {"layer3.1.conv2.weight": (16, 16, 1, 1)}, "2.weight is 16x16x1x1, not 16x16x3x3$"),
    ([], {"conv1.weight": (4, 27)}, "other shapes: conv1.weight is 4x27, not 4x3x3x3$"),
    ([], {"conv1.weight": (4, 3, 7, 7)}, 'x7x7, not 4x3x3x3; .* of 3 channels, .*, stem="large"$'),
  ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(state, backbone, drop, zeros, message):
  changed = {name: value for name, value in state.items() if name not in drop}
  misfits(changed | {name: np.zeros(zeros[name]) for name in zeros}, backbone, message)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(state, backbone, value):
  """They were loaded, and every embedding was NaN."""
  broken = state["bn1.running_var"].copy()
  broken[0] = value
  misfits(state | {"bn1.running_var": broken}, backbone, "NaN or infinite: bn1.running_var$")


def test_states_of_other_networks_are_refused(state, backbone):
  wide = resnet_state(np.random.default_rng(0), width=8)
  misfits(wide, backbone, 'and 96 more; it needs a network of 3 channels, width=8, stem="small"$')
  two = {f"{p}{name}": state[name] for name in state for p in ("encoder_q.", "encoder_k.")}
  misfits(two, backbone, "several networks: give prefix=, one of 'encoder_k.', 'encoder_q.'")
  words = r"no ResNet, .*it has state_dict\): give the state_dict"
  misfits({"state_dict": np.zeros(3)}, backbone, words)


def test_a_prefix_chooses_among_several_networks(state, images, features, backbone):
  arrays = {f"encoder_q.{n}": v for n, v in state.items()}
  arrays |= {f"encoder_k.{n}": 0 * v for n, v in state.items()}
  left = urkle_tf.import_torch_state(arrays, backbone, prefix="encoder_q.")
  agree(backbone, images, features)
  assert "encoder_k.conv1.weight" in left
  words = "did you mean 'encoder_q"
  refuses(words, urkle_tf.import_torch_state, arrays, backbone, prefix="encoder")


def test_other_backbones_are_refused(state):
  model = networks.convnet((8, 8, 3), width=4, layers=2)
  refuses("'convnet' holds no ResNet of this", urkle_tf.import_torch_state, state, model)


def test_values_are_computed_in_float32():
  """Positions are resized before they are assigned; float16 would round them."""
  seen = []
  places = [("positions", (2,), lambda value: seen.append(value.dtype) or [])]
  arrays = {"positions": np.zeros(2, np.float16)}
  assert torch_weights.fill(None, arrays, places, lambda name: False) == []
  assert seen == [np.float32]
