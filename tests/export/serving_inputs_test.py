"""What an exported folder makes of any input (docs/exports.md)."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import digits, small_encoder

from urkle_tf import errors, export, networks
from urkle_tf.networks.classifier import Classifier

REFUSED = (TypeError, ValueError, tf.errors.InvalidArgumentError)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  place = tmp_path_factory.mktemp("exports")
  encoder = small_encoder()
  export.export_encoder(encoder, place / "encoder")
  model = Classifier(encoder.network, networks.mlp(6, [10], "head"), samples=3)
  export.export_classifier(model, place / "classifier")
  return place


# (kind, signature, what it gives: name -> width)
each = pytest.mark.parametrize(
  "kind, name, gives",
  [
    ("encoder", "serving_default", {"loc": 6, "scale": 6}),
    ("encoder", "embed", {"embedding": 6}),
    ("classifier", "deterministic", {"logits": 10}),
    ("classifier", "serving_default", {"probabilities": 10}),
  ],
)


@pytest.fixture(scope="module")
def serve(folders):
  """A function (kind, signature, images) to {name: array}."""
  loaded = {kind: tf.saved_model.load(str(folders / kind)) for kind in ("encoder", "classifier")}

  def call(kind, name, images):
    found = loaded[kind].signatures[name](images=tf.constant(images))
    return {key: value.numpy() for key, value in found.items()}

  return call


def drawn(kind, name):
  """Whether two calls differ: their z is random."""
  return (kind, name) == ("classifier", "serving_default")


@each
def test_one_image_and_many(serve, kind, name, gives):
  images = digits()[0]
  found = serve(kind, name, np.resize(images, (10_000, 8, 8, 1)))
  one = serve(kind, name, images[:1])
  assert set(found) == set(gives)
  for key, width in gives.items():
    assert found[key].shape == (10_000, width)
    assert np.isfinite(found[key]).all()
    if not drawn(kind, name):
      np.testing.assert_allclose(found[key][:1], one[key], atol=1e-5)
      again = found[key][len(images) :][: len(images)]  # the same images, further on
      np.testing.assert_allclose(again, found[key][: len(images)], atol=1e-5)


@each
def test_whole_numbers_and_other_shapes_are_refused(serve, kind, name, gives):
  images = digits()[0][:3]
  shapes = [images[..., 0], images[:, :7], np.repeat(images, 3, -1), images[0]]
  shapes.append(images[:0])  # of which TensorFlow's convolutions would make other shapes
  for wrong in ((255 * images).astype(np.uint8), images.astype(np.float64), *shapes):
    with pytest.raises(REFUSED):
      serve(kind, name, wrong)


@each
def test_what_is_no_number_stays_in_its_row(serve, kind, name, gives):
  images = digits()[0][:4].copy()
  clean = serve(kind, name, images)
  images[1:3, 3, 3] = [[np.nan], [np.inf]]
  found = serve(kind, name, images)
  for key in gives:
    assert not np.allclose(found[key][1], clean[key][1], atol=1e-5)  # NaN is not close
    if not drawn(kind, name):
      np.testing.assert_allclose(found[key][[0, 3]], clean[key][[0, 3]], atol=1e-5)
    else:
      assert np.isfinite(found[key][[0, 3]]).all()


@each
def test_values_outside_of_the_range_are_taken_as_they_are(serve, kind, name, gives):
  images = digits()[0][:4]
  inside, outside = serve(kind, name, images), serve(kind, name, 255 * images - 1)
  for key in gives:
    assert np.isfinite(outside[key]).all()
    assert np.abs(outside[key] - inside[key]).max() > 1e-3  # not clipped


def test_in_python_whole_numbers_are_refused_with_what_to_do(folders):
  pixels = np.zeros((2, 8, 8, 1), np.uint8)
  encoder = export.load_encoder(folders / "encoder")
  classifier = export.load_classifier(folders / "classifier")
  for call in (encoder, classifier, classifier.logits, small_encoder()):
    with pytest.raises(errors.UserError, match="got uint8: divide by 255"):  # Keras adds lines
      call(pixels)
    call(pixels / np.float32(255))
  with pytest.raises(ValueError):
    encoder(np.zeros((0, 8, 8, 1), np.float32))
