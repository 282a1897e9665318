"""The precision of parts of a network."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import precision, sequential, tiny_trainer

from urkle_tf import networks
from urkle_tf.networks import policies


def _dtypes(function, *shapes):
  """The dtypes of the convolutions of a traced function, in itself and in its loops."""
  specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
  graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph.as_graph_def()
  names = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
  kinds = lambda nodes: {tf.as_dtype(n.attr["T"].type).name for n in nodes if n.op in names}  # noqa: E731
  loops = [node for function in graph.library.function for node in function.node_def]
  return {"step": kinds(graph.node), "loop": kinds(loops)}


@pytest.fixture(scope="module")
def encoder():
  keras.utils.set_random_seed(0)
  return networks.GaussianEncoder(networks.backbone("resnet18(width=4)", (8, 8, 3)), 6, loc="dense")


def test_within_it_the_backbone_is_bfloat16_and_outputs_stay_near(encoder, rng):
  images = tf.constant(rng.uniform(size=(4, 8, 8, 3)), tf.float32)
  expected = encoder.frozen()(images)
  with policies.low_precision(encoder.network):
    frozen = encoder.frozen()
    found = frozen(images)
    assert _dtypes(lambda x: frozen(x).loc, [4, 8, 8, 3])["step"] == {"bfloat16"}
  assert found.loc.dtype == found.scale.dtype == tf.float32
  assert 1e-6 < np.abs(found.loc - expected.loc).max() < 0.1
  again = encoder.frozen()
  np.testing.assert_array_equal(again(images).loc, expected.loc)  # as before
  assert _dtypes(lambda x: again(x).loc, [4, 8, 8, 3])["step"] == {"float32"}
  assert {v.dtype for v in encoder.network.variables} == {"float32"}


def test_an_error_within_it_restores_too(encoder):
  before = [layer.dtype_policy.name for layer in encoder.network._flatten_layers()]
  with pytest.raises(ZeroDivisionError), policies.low_precision(encoder.network):
    raise ZeroDivisionError
  assert [layer.dtype_policy.name for layer in encoder.network._flatten_layers()] == before


def test_layers_of_float16_follow_the_precision_too():
  """Their gradients would need a scaled loss."""
  with precision("mixed_float16"):
    model = sequential((4,), keras.layers.Rescaling(2.0), keras.layers.Dense(2))
  with precision("mixed_bfloat16"):
    policies.follow_precision(model)
  assert [layer.compute_dtype for layer in model.layers] == ["float32", "bfloat16"]


@pytest.mark.full
def test_a_training_step_attacks_in_bfloat16_and_learns_in_float32(encoder, rng):
  views = rng.uniform(size=(4, 2, 8, 8, 3)).astype(np.float32)
  found = {}
  for policy in (None, "mixed_bfloat16"):
    trainer = tiny_trainer(encoder=encoder, attack_precision=policy)
    kinds = _dtypes(lambda x, t=trainer: t.train_step({"views": x}), [4, 2, 8, 8, 3])
    # The clean image is encoded before the loop, for the attack's objective.
    assert kinds["loop"] == {"bfloat16" if policy else "float32"}
    assert "float32" in kinds["step"]
    adversaries, info = trainer.adversaries(tf.constant(views), None, [0, 0])
    found[policy] = tf.reduce_mean(info["objective"])
    assert np.abs(adversaries - views).max() <= 0.1 + 1e-6
  # The adversaries differ, and are as bad.
  assert float(found["mixed_bfloat16"]) == pytest.approx(float(found[None]), rel=0.1)


def test_the_backbone_of_a_file_computes_in_the_precision_of_the_training(rng, tmp_path):
  pixels = keras.Input((8, 8, 3))
  x = keras.layers.Conv2D(8, 4, strides=4)(keras.layers.Rescaling(255.0)(pixels))
  tokens = keras.layers.LayerNormalization()(keras.layers.Reshape((4, 8))(x))
  tokens = keras.layers.MultiHeadAttention(2, 4)(tokens, tokens)
  keras.Model(pixels, keras.layers.GlobalAveragePooling1D()(tokens)).save(tmp_path / "vit.keras")
  load = functools.partial(networks.backbone, str(tmp_path / "vit.keras"), (8, 8, 3))
  exact = load()
  with precision("mixed_bfloat16"):
    backbone = load()
  assert _dtypes(exact, [4, 8, 8, 3])["step"] == {"float32"}
  assert _dtypes(backbone, [4, 8, 8, 3])["step"] == {"bfloat16"}
  inner = {layer.name: layer.compute_dtype for layer in backbone._flatten_layers()}
  assert {"bfloat16", "float32"} == set(inner.values())
  assert all(kind == "float32" for name, kind in inner.items() if "rescaling" in name)
  assert {v.dtype for v in backbone.variables} == {"float32"}
  images = tf.constant(rng.uniform(size=(4, 8, 8, 3)), tf.float32)
  expected, found = exact(images), tf.cast(backbone(images), tf.float32)
  assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("dropout", [0.0, 0.1])  # Keras takes another way with dropout
def test_attention_is_float32_in_bfloat16(rng, dropout):
  tokens = keras.Input((5, 8))
  layer = keras.layers.MultiHeadAttention(2, 4, dropout=dropout)
  model = keras.Model(tokens, layer(tokens, tokens))
  x = tf.constant(rng.normal(size=(2, 5, 8)), tf.float32)
  exact, plain = model(x), _attention_dtypes(model, x)
  policies.precise_attention(model)
  np.testing.assert_array_equal(model(x), exact)  # in float32 nothing changes
  assert plain == _attention_dtypes(model, x) == {"logits": {"float32"}, "softmax": {"float32"}}
  with policies.computing_in("mixed_bfloat16", model):
    assert model(x).dtype == tf.bfloat16
    assert _attention_dtypes(model, x) == {"logits": {"float32"}, "softmax": {"float32"}}
    operations = tf.function(model).get_concrete_function(x).graph.get_operations()
    products = ("Einsum", "BatchMatMulV2", "MatMul")  # of the projections, and of the attention
    low = {op.outputs[0].dtype for op in operations if op.type in products}
    assert low == {tf.bfloat16, tf.float32}
    found = tf.cast(model(x), tf.float32)
  assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


def _attention_dtypes(model, x):
  """The dtypes of the logits and of the softmax: of what is of shape [2, heads, 5, 5]."""
  operations = tf.function(model).get_concrete_function(x).graph.get_operations()
  found = {"logits": set(), "softmax": set()}
  for operation in operations:
    for tensor in operation.outputs:
      if operation.type in ("Einsum", "BatchMatMulV2") and tensor.shape[-2:] == (5, 5):
        found["logits"].add(tensor.dtype.name)
      if operation.type == "Softmax":
        found["softmax"].add(tensor.dtype.name)
  return found
