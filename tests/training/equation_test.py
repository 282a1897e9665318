"""Equation 12, the whole of it, in plain NumPy: from pixels, weights and noise to the loss.

Nothing here is the package's own but the weights.  The adversaries and the noise are given.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from plain_losses import kl, nt_xent_loop

import urkle_tf
from urkle_tf import attacks, distribution, networks, pretexts, robustness

N, SIDE, WIDTH, D = 5, 8, 3, 4
MIN_SCALE, MAX_SCALE = 0.1, 0.25


class Given(attacks.Attack):
  """An attack that returns the images it was given."""

  def __init__(self, adversaries):
    super().__init__(attacks.Linf(0.1))
    self._adversaries = adversaries

  def _attempt(self, objective, images, restart, seed):
    assert images.shape == self._adversaries.shape
    return {"result": self._adversaries, "objective": tf.zeros(len(images))}


# --- The networks, layer by layer ---


def convolution(images, kernel):
  """3x3, stride 2, padded as TensorFlow pads even sides: a row and a column at the end."""
  images = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))
  patches = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))[:, ::2, ::2]
  return np.einsum("nhwcij,ijco->nhwo", patches, kernel)


def transposed(maps, kernel):
  """3x3, stride 2: every value stamps the kernel [3, 3, out, in]; the last row is cut off."""
  side = maps.shape[1]
  outputs = np.zeros((len(maps), 2 * side + 1, 2 * side + 1, kernel.shape[2]))
  for row in range(side):
    for column in range(side):
      stamp = np.einsum("nc,ijoc->nijo", maps[:, row, column], kernel)
      outputs[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += stamp
  return outputs[:, : 2 * side, : 2 * side]


def normalised(x, gamma=1.0, beta=0.0):
  """A batch norm with the statistics of this batch."""
  axes = tuple(range(x.ndim - 1))
  return gamma * (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) + beta


def weights(model, name):
  return [np.float64(weight) for weight in model.get_layer(name).get_weights()]


def encoded(encoder, images):
  """(loc, scale) of images [m, h, w, c], both [m, d_z]."""
  network, x = encoder.network, 2.0 * np.float64(images) - 1.0
  (backbone,) = (layer for layer in network.layers if isinstance(layer, keras.Model))
  for layer in (1, 2):
    (kernel,) = weights(backbone, f"conv{layer}")
    gamma, beta, _, _ = weights(backbone, f"norm{layer}")
    x = np.maximum(normalised(convolution(x, kernel), gamma, beta), 0.0)
  features = x.mean((1, 2))
  (kernel,) = weights(network, "raw_loc")
  loc = normalised(features @ kernel)
  kernel, bias = weights(network, "raw_scale")
  room = MAX_SCALE - MIN_SCALE
  raw = np.log1p(np.exp(features @ kernel + bias))
  return loc, MIN_SCALE + room * np.tanh(raw / room)


def projected(projector, z):
  """Dense, batch norm, ReLU, dense: z [m, d_z] -> [m, d]."""
  (kernel,) = weights(projector, "dense1")
  gamma, beta, _, _ = weights(projector, "norm1")
  hidden = np.maximum(normalised(z @ kernel, gamma, beta), 0.0)
  kernel, bias = weights(projector, "dense2")
  return hidden @ kernel + bias


def decoded(decoder, z):
  """Two transposed convolutions: z [m, d_z] -> logits of pixels [m, h, w, c]."""
  (kernel,) = weights(decoder, "expand")
  x = (z @ kernel).reshape(-1, SIDE // 4, SIDE // 4, 2 * WIDTH)
  for layer in (2, 1):
    gamma, beta, _, _ = weights(decoder, f"norm{layer}")
    kernel, *bias = weights(decoder, f"deconv{layer}")
    x = transposed(np.maximum(normalised(x, gamma, beta), 0.0), kernel) + sum(bias)
  return x


# --- The terms ---


def robustness_term(loc, scale, views):
  """Eq. 11: the mean over images and views of KL[clean || adversary]; [n, 2 views, d_z]."""
  clean, attacked = ((loc[:, part], scale[:, part]) for part in (slice(views), slice(views, None)))
  return kl(*clean, *attacked).sum(2).mean()


def stepped(monkeypatch, pretext, beta, views):
  """The step's own (values, weights of its start, views, adversaries, noise)."""
  rng = np.random.default_rng(0)
  keras.utils.set_random_seed(0)
  backbone = networks.convnet((SIDE, SIDE, 1), width=WIDTH, layers=2)
  encoder = networks.GaussianEncoder(backbone, D, MIN_SCALE, MAX_SCALE, loc="dense")
  clean = rng.uniform(size=(N, views, SIDE, SIDE, 1)).astype(np.float32)
  adversaries = np.clip(clean + 0.1 * np.sign(rng.normal(size=clean.shape)), 0, 1)
  adversaries = adversaries.astype(np.float32)
  attack = Given(tf.constant(adversaries.reshape(-1, SIDE, SIDE, 1)))
  trainer = urkle_tf.Trainer(encoder, pretext, robustness.Urkle(beta=beta), attack)
  trainer.compile("sgd")
  for weight in trainer.trainable_variables:  # gammas, betas and the scale's kernel too
    weight.assign(np.float32(weight) + 0.3 * rng.normal(size=weight.shape).astype(np.float32))
  noise = rng.normal(size=(N * 2 * views, D)).astype(np.float32)
  monkeypatch.setattr(distribution, "normal", lambda seed, shape: tf.constant(noise))
  images = np.concatenate([clean, adversaries], 1)
  loc, scale = encoded(encoder, images.reshape(-1, SIDE, SIDE, 1))
  z = loc + scale * noise
  head = projected(pretext.projector, z) if views == 2 else decoded(pretext.decoder, z)
  values = trainer.step({"views": tf.constant(clean)})
  fold = lambda x: x.reshape(N, 2 * views, *x.shape[1:])  # noqa: E731
  return values, clean, fold(loc), fold(scale), fold(head)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_simclr_with_urkle(monkeypatch, beta):
  pretext = pretexts.SimCLR(projector=6, projection=5)
  values, _, loc, scale, projections = stepped(monkeypatch, pretext, beta, views=2)
  nt_xent = nt_xent_loop(projections, projections).mean()
  worst = robustness_term(loc, scale, views=2)
  assert worst > 1.0
  np.testing.assert_allclose(values["nt_xent"], nt_xent, rtol=1e-4)
  np.testing.assert_allclose(values["kl"], worst, rtol=1e-4)
  np.testing.assert_allclose(values["loss"], nt_xent + beta * worst, rtol=1e-4)
  parts = values["kl_mean_part"] + values["kl_scale_part"]
  np.testing.assert_allclose(parts, worst, rtol=1e-4)


def test_vae_with_urkle(monkeypatch):
  """The same with the VAE's loss (eq. 5 and 6) in the place of NT-Xent."""
  pretext = pretexts.VAE(beta=0.2, width=WIDTH, layers=2)
  values, clean, loc, scale, logits = stepped(monkeypatch, pretext, 0.7, views=1)
  error = (1 / (1 + np.exp(-logits)) - clean) ** 2  # adversaries are decoded into the clean image
  reconstruction = error.sum((2, 3, 4)).mean() / 2
  prior = kl(loc, scale, 0, 1).sum(2).mean()
  worst = robustness_term(loc, scale, views=1)
  np.testing.assert_allclose(values["reconstruction"], reconstruction, rtol=1e-4)
  np.testing.assert_allclose(values["prior_kl"], 0.2 * prior, rtol=1e-4)
  np.testing.assert_allclose(values["kl"], worst, rtol=1e-4)
  np.testing.assert_allclose(values["loss"], reconstruction + 0.2 * prior + 0.7 * worst, rtol=1e-4)
