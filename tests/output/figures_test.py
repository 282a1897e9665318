"""The figures: the map of sampled z against closed forms, and what a run writes."""

import numpy as np
import pytest
import tensorflow as tf
from cases import refuses
from sklearn import decomposition
from small_models import RUN, board_of, linear_network

import urkle_tf
from urkle_tf import attacks
from urkle_tf.evaluation.report.pictures import examples_figure
from urkle_tf.training import latent_map, pictures

EPSILON, SHAPE = 0.1, (4, 4, 1)


def attack(steps=10):
  return attacks.PGD(attacks.from_norm("linf", EPSILON), steps=steps)


def test_classes_may_have_any_names(tmp_path, recwarn):
  """They were read as formulas and as UTF-8, and ended an evaluation after its attacks.

  A font without their letters needs no warning.
  """
  image = np.zeros((4, 4, 1))
  broken = {"image": image, "adversary": image + 1, "before": 0, "after": 1}
  examples_figure([broken], ["$^$", "caf\udce9 猫"], tmp_path / "examples.png")
  assert not recwarn.list
  assert (tmp_path / "examples.png").stat().st_size


@pytest.fixture
def images(rng):
  return rng.uniform(0.2, 0.8, (7, 4, 4, 1)).astype(np.float32)  # the box never cuts the ball


def test_the_plane_is_that_of_the_clean_means(rng, images):
  weights = rng.normal(size=(16, 5)).astype(np.float32)
  found = latent_map.sampled(linear_network(SHAPE, 1e-4, weights), images, attack(), samples=4)
  found = {name: value.numpy() for name, value in found.items()}
  loc = images.reshape(7, 16) @ weights
  np.testing.assert_allclose(found["clean"], np.repeat(loc[:, None], 4, 1), atol=1e-3)
  clean, adversaries, shares = latent_map.project(found["clean"], found["adversaries"])
  pca = decomposition.PCA(2).fit(loc)
  np.testing.assert_allclose(clean, np.repeat(pca.transform(loc)[:, None], 4, 1), atol=5e-3)
  np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-3)
  np.testing.assert_allclose(  # the adversaries' plane is the clean one, not their own
    adversaries[:, 0], pca.transform(found["adversaries"][:, 0]), atol=5e-3
  )


def test_adversaries_maximise_the_kl_of_equal_scales(rng, images):
  weights = rng.normal(size=(16, 1)).astype(np.float32)
  found = latent_map.sampled(linear_network(SHAPE, 0.5, weights), images, attack(), samples=3)
  # The largest shift of a linear map in the box of half width epsilon is epsilon |w|_1.
  shift = EPSILON * np.abs(weights).sum()
  np.testing.assert_allclose(found["kl"], shift**2 / (2 * 0.5**2), rtol=1e-3)
  # Image and adversary share their noise: only the distribution moves.
  moved = (found["adversaries"] - found["clean"]).numpy()
  np.testing.assert_allclose(np.abs(moved), shift, rtol=1e-3)
  parts = (found[name].numpy() for name in ("clean", "adversaries"))
  clean, adversaries, shares = latent_map.project(*parts)
  assert list(shares) == [1, 0]
  np.testing.assert_allclose(np.abs(adversaries - clean)[..., 0], shift, rtol=1e-3)
  assert not clean[..., 1].any()


def test_noise_has_the_scale_of_the_encoder(images):
  found = latent_map.sampled(
    linear_network(SHAPE, 0.25, np.zeros((16, 3), np.float32)), images, attack(1), samples=500
  )
  assert found["clean"].shape == (7, 500, 3)
  assert np.std(found["clean"]) == pytest.approx(0.25, rel=0.03)


def test_images_of_integers_end_in_one_line(images):
  """A graph cannot see that their pixels are beyond the bounds."""
  encoders = {"": linear_network(SHAPE, 0.25)}
  refuses("got uint8: divide by 255", latent_map.draw, encoders, np.uint8(255 * images), attack(1))


# --- What a run writes ---


def test_pictures_are_drawn_often_at_first_and_at_the_end(monkeypatch):
  drawn, epochs = [], iter(range(1, 12))
  monkeypatch.setattr(pictures.Pictures, "draw", lambda _: drawn.append(epoch))
  callback = pictures.Pictures({}, None, None, None)
  for epoch in epochs:
    callback.on_epoch_end(epoch - 1)
  callback.on_train_end()
  assert drawn == [1, 2, 4, 8, 11]
  callback.on_epoch_end(15)
  callback.on_train_end()  # drawn already
  assert drawn == [1, 2, 4, 8, 11, 11]


OF_VAE = {"views": 3, "reconstructions": 4, "latent_map": 0}
OF_AE = {"views": 1, "reconstructions": 2}


@pytest.mark.full
@pytest.mark.parametrize(
  "pretext, robustness, wanted", [("vae", "urkle(beta=1)", OF_VAE), ("ae", "none", OF_AE)]
)
def test_a_run_writes_the_figures_that_mean_something(tmp_path, pretext, robustness, wanted):
  """Each picture has the wanted number of columns; the map of the latent space has none."""
  options = {**RUN, "epochs": 1, "augment": "none", "pretext": f"{pretext}(width=8, layers=3)"}
  urkle_tf.pretrain(tmp_path, robustness=robustness, **options)
  shown = board_of(tmp_path)
  pictures = {tag for tag, (first, *_) in shown.items() if np.shape(first) == (3,)}
  assert pictures == set(wanted)
  assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(wanted)
  for name, columns in wanted.items():
    ((_, _, picture),) = shown[name]
    file = tf.io.decode_png((tmp_path / "figures" / f"{name}.png").read_bytes())
    np.testing.assert_array_equal(tf.io.decode_png(picture), file)
    if columns:
      assert file.shape == (18 + 8 * 100, columns * 100, 3)  # digits, 12 times as large
    else:
      assert min(file.shape[:2]) > 400
  report, options = tmp_path / "report", {"examples": 10, "representation_examples": 10}
  urkle_tf.assess(encoder=str(tmp_path / "encoder"), output_dir=report, **options)
  assert (report / "figures" / "latent_map.png").exists() is ("latent_map" in wanted)
  text = (report / "report.md").read_text(encoding="utf-8")
  assert ("figures/latent_map.png" in text) is ("latent_map" in wanted)
