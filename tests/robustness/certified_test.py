"""Urkle with a certified bound in its loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import digits, small_encoder

import urkle_tf
from urkle_tf import attacks, errors, networks, pretexts, robustness
from urkle_tf.networks.bounds.kl import kl_bound


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
  shape = (8, 8, 1)
  for options, message in (
    ({"certified": 2}, r"in \[0, 1\], got 2"),
    ({"certified": 0.5, "align": 1.0}, "cannot be combined with anchor or align"),
    ({"certified": 0.5, "attack": attacks.PGD(attacks.L2(0.5), steps=2)}, "in l_inf, not in l2"),
  ):
    with pytest.raises(errors.UserError, match=message):
      trained(1, **options)
  images = keras.Input(shape)
  strange = keras.layers.LayerNormalization(name="strange")(keras.layers.Flatten()(images))
  encoder = networks.GaussianEncoder(keras.Model(images, strange), loc="dense", latent_dim=4)
  with pytest.raises(errors.UserError, match="no bound is known for the layer 'strange'"):
    trained(1, encoder=encoder, certified=0.5)
