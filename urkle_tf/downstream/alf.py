"""ALF: a frozen encoder and a head trained on attacked images."""

import tensorflow as tf
import tensorflow_probability as tfp

from urkle_tf import distribution, errors
from urkle_tf.downstream import _training
from urkle_tf.downstream.base import Protocol
from urkle_tf.networks.encoders import Encoder
from urkle_tf.networks.representations import Representations
from urkle_tf.robustness.adversarial_training import AdversarialTraining
from urkle_tf.training.trainer import Trainer

_NOISE = 3  # the attack's stream of a step's seed; `Attack` itself folds restarts into it


class _Frozen(Encoder):
  """An encoder that is always in inference mode, and hides its variables from a trainer."""

  def __init__(self, encoder):
    self.network, self.latent_dim = encoder.network, encoder.latent_dim
    self._represent = encoder.frozen()  # folded once: the weights stay as they are

  def __call__(self, images, training=False):
    return self._represent(images)

  def frozen(self, stream=None):
    return self._represent


class _OnSamples(AdversarialTraining):
  """Adversarial training whose attack maximises the mean loss over samples of z.

  The samples are the same in all iterations of a step's attack.

  Args:
    samples: how many.
  """

  stochastic = True

  def __init__(self, samples):
    self._samples = samples

  def objective(self, encoder, pretext, views, aux):
    labels, seed = aux

    def loss(neighbours):
      normal = encoder(neighbours)
      loc, scale = normal.loc[:, None], normal.scale[:, None]
      shape = [tf.shape(loc)[0], self._samples, encoder.latent_dim]
      z = loc + scale * tf.random.stateless_normal(shape, distribution.fold(seed, _NOISE))
      representations = Representations(tfp.distributions.Normal(loc, scale), z)
      (value,) = pretext.loss(representations, labels, training=False).values()
      return value

    return loss


class _Trainer(Trainer):
  """A trainer that passes the seed of the samples to the attack, besides the labels."""

  def adversaries(self, views, aux, seed, step=None):
    return super().adversaries(views, (aux, seed), seed, step)


class ALF(Protocol):
  """Adversarial linear fine-tuning: min over heads of E[max_{x' in A(x)} -log p(y|z(x'))].

  The encoder is frozen and in inference mode; only the head learns.  If the encoder's z is random,
  the loss uses one fresh z per image and step, as in `slf`, and the attack maximises the mean of
  the loss over `samples` of z.

  Args:
    samples: samples of z in the attack's objective, if z is random.
  """

  adversarial = frozen = True
  # As in `slf`, but with fewer epochs, because every epoch costs an attack.
  defaults = {**Protocol.defaults, "epochs": 25, "attack_steps": 10}

  def __init__(self, samples=10):
    errors.whole(1, "alf", samples=samples)
    self._samples = samples

  def fit(self, task, run):
    encoder, pretext = _Frozen(task.encoder), _training.Given(task)
    if task.model.stochastic:
      scheme = _OnSamples(self._samples)
      learner = _Trainer(encoder, pretext, scheme, task.attack, seed=task.seed)
    else:
      learner = Trainer(encoder, pretext, AdversarialTraining(), task.attack, seed=task.seed)
    return _training.train(task, run, learner, task.head.variables)
