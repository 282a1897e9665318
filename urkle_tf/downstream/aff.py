"""AFF: fine-tunes the whole network with TRADES."""

from urkle_tf.downstream import _training
from urkle_tf.downstream.base import Protocol
from urkle_tf.networks.representations import Representations
from urkle_tf.robustness.trades import Trades
from urkle_tf.training.trainer import Trainer


class _OnSamples(Trades):
  """TRADES on sampled z.

  An image and its adversary are compared at the same noise, z = loc + scale * noise: with different
  noise, an image would not even agree with itself.  The attack is at z = loc.
  """

  stochastic = True

  def losses(self, pretext, representations, views, aux):
    normal = representations.normal  # [n, 2, d_z]
    noise = (representations.z[:, :views] - normal.loc[:, :views]) / normal.scale[:, :views]
    coupled = Representations(normal, normal.loc + normal.scale * noise)
    return super().losses(pretext, coupled, views, aux)


def scheme(task, beta):
  """TRADES for a task: on z = loc, or on sampled z if the model serves sampled z."""
  return (_OnSamples if task.model.stochastic else Trades)(beta)


class AFF(Protocol):
  """Adversarial full fine-tuning: TRADES on encoder and head, batch norms included.

      -log p(y|x) + beta max_{x' in A(x)} KL[p(.|x) || p(.|x')]

  For numbers the terms are half the squared error, and the squared difference of the predictions.
  If the encoder's z is random, both terms use one fresh z per image and step, so the scale is
  trained too and the result is served as it was trained; otherwise z = loc.  The recipe is that of
  the published fine-tuning of contrastive encoders, with a cosine schedule instead of its two
  steps.  Its weight decay of 2e-4 is part of the gradient there, which with momentum 0.9 is 2e-3 of
  the decoupled one here.

  Args:
    beta: the weight of the second term, at least 0.
  """

  adversarial = True
  defaults = {
    "optimizer": "sgd(momentum=0.9)",
    "learning_rate": 0.1,
    "weight_decay": 2e-3,
    "batch_size": 128,
    "epochs": 25,
    "attack_steps": 10,
  }

  def __init__(self, beta=6.0):
    self._beta = beta
    Trades(beta)  # checks beta before anything is written

  def fit(self, task, run):
    given = _training.Given(task), scheme(task, self._beta)
    learner = Trainer(task.encoder, *given, task.attack, seed=task.seed)
    return _training.train(task, run, learner, task.weights)
