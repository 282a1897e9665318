"""Urkle's terms, what its attack maximises, the regulariser on its own, and certified bounds."""

import types

import keras
import numpy as np
import plain_losses
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from alike import same
from cases import refuses
from small_models import digits, sequential, small_encoder, worst_of_corners

import urkle_tf
from urkle_tf import attacks, errors, networks, pretexts, robustness
from urkle_tf.data import augment, pipeline, sources
from urkle_tf.networks.bounds.kl import kl_bound
from urkle_tf.networks.kl import kl_objective, worst

tfd = tfp.distributions


def _images(n=8):
  return tf.constant(np.random.default_rng(2).uniform(size=(n, 8, 8, 1)), tf.float32)


def _scheme(encoder=None, **options):
  scheme, pretext = robustness.Urkle(**options), pretexts.SimCLR()
  scheme.check(pretext)
  scheme.attach(encoder or types.SimpleNamespace(max_scale=0.25, latent_dim=4), pretext)
  return scheme


def test_objective_is_kl_from_the_clean_image_in_inference_mode(encoder):
  clean, near = _images(), _images() + 0.01
  before = [v.numpy() for v in encoder.non_trainable_variables]
  value = kl_objective(encoder, clean)(near)
  p, q = (encoder(images, training=False) for images in (clean, near))
  expected = plain_losses.kl(p.loc, p.scale, q.loc, q.scale).sum(1)
  np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)
  pair = worst(encoder, clean, lambda objective, images, seed: near)
  np.testing.assert_allclose(pair.kl, expected, rtol=1e-3, atol=1e-5)
  same(before, encoder.non_trainable_variables)


def test_objective_has_no_gradient_at_the_clean_image(encoder):
  """Why an attack may not start there."""
  clean = _images()
  for images, zero in ((clean, True), (clean + 0.01, False)):
    with tf.GradientTape() as tape:
      tape.watch(images)
      value = kl_objective(encoder, clean)(images)
    gradient = tape.gradient(value, images)
    assert (float(tf.reduce_max(tf.abs(gradient))) < 1e-4) == zero


def test_the_attack_finds_a_worse_neighbour_than_chance(encoder):
  clean = _images()
  objective = kl_objective(encoder, clean)
  found = attacks.PGD(attacks.Linf(0.05), steps=10)(objective, clean, [0, 1])
  assert np.all(objective(found) > worst_of_corners(objective, clean, 0.05))


@pytest.mark.parametrize("attacked", [1, 2])
def test_the_term_is_the_mean_kl_of_the_attacked_views(rng, attacked):
  scheme = _scheme(beta=0.3, attacked=attacked)
  loc = rng.normal(size=(5, 2 + attacked, 3)).astype("float32")
  scale = rng.uniform(0.4, 1, size=loc.shape).astype("float32")
  normal = tfd.Normal(loc, scale)
  ((weight, value),) = scheme.losses(None, networks.Representations(normal, loc), 2, None).values()
  assert weight == 0.3
  clean, near = ((loc[:, part], scale[:, part]) for part in (slice(attacked), slice(2, None)))
  expected = plain_losses.kl(*clean, *near).sum(2).mean(1)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  views = rng.uniform(size=(3, 2, 4, 4, 1)).astype("float32")
  np.testing.assert_array_equal(scheme.targets(views), views[:, :attacked])


def test_adversaries_are_positives_until_that_is_switched_off():
  for positives, members in ((True, [0, 1, 2, 3]), (False, [0, 1])):
    assert [list(m) for _, m in _scheme(positives=positives).tuples(2, 2)] == [members]
  scheme = robustness.Urkle(anchor="original")
  scheme.check(pretexts.Keep.__new__(pretexts.Keep))  # which has no positives
  assert [list(m) for _, m in scheme.tuples(1, 1)] == [[0]]


def test_one_attacked_view_estimates_the_mean_of_both(encoder):
  """Of the same 600 images, the KL of the first view's adversary and that of all views'."""
  source = sources.load("digits", "train[:600]")
  recipe = augment.SimCLR(strength=0.5, flip=False)
  views = next(iter(pipeline.views(source, recipe, 600, seed=0)))["views"]
  attack = attacks.PGD(attacks.Linf(0.1), steps=3)
  found = np.stack(
    [urkle_tf.kl_robustness(encoder, views[:, k], attack, seed=[k, 0]) for k in range(2)]
  )
  difference = found[0] - found.mean(0)
  assert abs(difference.mean()) < 4 * difference.std() / 600**0.5  # unbiased
  assert difference.std() > 0.05 * found.mean()  # and not the same


def test_kl_is_minimised_through_both_arguments():
  loc = tf.Variable(tf.random.normal((3, 4, 2)))
  with tf.GradientTape() as tape:
    normal = tfd.Normal(tf.identity(loc), tf.ones((3, 4, 2)))
    _, value = _scheme().losses(None, networks.Representations(normal, normal.loc), 2, None)["kl"]
  gradient = tape.gradient(value, loc).numpy()
  assert (np.abs(gradient) > 0).all()


def test_more_attacked_views_than_there_are():
  refuses("2 views", _scheme, attacked=3)


# With a certified bound in its loss.


def trained(steps, attack=None, pretext=None, encoder=None, **options):
  """(the encoder, {name: its value in the last step}); learning rate 0 if it is given."""
  fixed, encoder = encoder is not None, encoder or small_encoder()
  options, trainer_options = {"beta": 0.3, **options}, {}
  if "epsilon_warmup" in options:
    trainer_options = {name: options.pop(name) for name in ("epsilon_warmup", "beta_warmup")}
  trainer = urkle_tf.Trainer(
    encoder,
    pretext or pretexts.VAE(beta=0.01, width=4, layers=2),
    robustness.Urkle(**options),
    attack or attacks.PGD(attacks.Linf(0.02), steps=2),
    **trainer_options,
  )
  trainer.compile(keras.optimizers.Adam(0.0 if fixed else 1e-3), run_eagerly=fixed)
  images, _ = digits()
  views = tf.data.Dataset.from_tensor_slices((images[:640],)).batch(64).repeat()
  history = trainer.fit(views, steps_per_epoch=steps, verbose=0).history
  return encoder, {name: values[-1] for name, values in history.items()}


def test_the_loss_holds_the_certificates_bound():
  """Its mean over the views, at the epsilon of the step, with a share of the weight.

  The learning rate is 0, and the pass has moved the batch statistics before the bound is found.
  """
  images = tf.constant(digits()[0][:64])
  encoder, found = trained(1, encoder=small_encoder(), certified=0.25)
  bound = float(np.mean(kl_bound(encoder, images, 0.02)))
  assert found["certified"] == pytest.approx(bound, rel=1e-4)
  rest = found["reconstruction"] + found["prior_kl"]
  total = rest + 0.3 * (0.75 * found["kl"] + 0.25 * bound)
  assert found["loss"] == pytest.approx(total, rel=1e-4)
  rising = {"epsilon_warmup": 4, "beta_warmup": 2}
  encoder, found = trained(1, encoder=small_encoder(), certified=1, **rising)
  bound = float(np.mean(kl_bound(encoder, images, 0.005)))
  assert found["certified"] == pytest.approx(bound, rel=1e-4)
  assert "kl" not in found
  assert "attack_objective" not in found
  rest = found["reconstruction"] + found["prior_kl"]
  assert found["loss"] == pytest.approx(rest + 0.15 * bound, rel=1e-4)


@pytest.mark.parametrize("inference", [False, True])
def test_the_bounds_gradient_is_that_of_the_mode_of_training(encoder, inference):
  """Through the batch's statistics, unless the backbone stays in inference mode."""
  images = tf.constant(digits()[0][:4])
  scheme = _scheme(beta=2.0, certified=0.5, encoder=encoder)
  given = types.SimpleNamespace(network=encoder.network, inference=inference)
  gradients = []
  for bound in (
    lambda: scheme.penalties(given, images, attacks.Linf(0.02), None)["certified"][1],
    *(lambda t=t: kl_bound(encoder, images, 0.02, training=t) for t in (False, True)),
  ):
    with tf.GradientTape() as tape:
      total = tf.reduce_sum(bound())
    gradients.append(tape.gradient(total, encoder.trainable_variables[0].value).numpy())
  found, still, followed = gradients
  assert np.abs(still - followed).max() > 0.1 * np.abs(still).max()
  np.testing.assert_allclose(found, still if inference else followed, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_training_lowers_the_bound():
  """Of images that were not seen, and far below what training against PGD alone leaves."""
  images = tf.constant(digits()[0][1000:1200])
  mean = lambda encoder: float(np.mean(kl_bound(encoder, images, 0.02)))  # noqa: E731
  start = mean(small_encoder())
  against_pgd, _ = trained(60)
  certified, _ = trained(60, certified=1)
  print("bound at the start, after PGD, after certified training:", start, mean(against_pgd))
  assert mean(certified) < 0.5 * min(start, mean(against_pgd))


def test_what_has_no_bound_is_refused_before_the_first_step():
  for options, message in (
    ({"certified": 2}, r"in \[0, 1\], got 2"),
    ({"certified": 0.5, "align": 1.0}, "cannot be combined with anchor or align"),
    ({"certified": 0.5, "attack": attacks.PGD(attacks.L2(0.5), steps=2)}, "in l_inf, not in l2"),
  ):
    with pytest.raises(errors.UserError, match=message):
      trained(1, **options)
  strange = keras.layers.LayerNormalization(name="strange")
  network = sequential((8, 8, 1), keras.layers.Flatten(), strange)
  encoder = networks.GaussianEncoder(network, loc="dense", latent_dim=4)
  refuses("no bound is known for the layer 'strange'", trained, 1, encoder=encoder, certified=0.5)
