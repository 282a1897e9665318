"""ACL's semi-supervised fine-tuning: few labels, and robustness learned from all images."""

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import errors, export
from urkle_tf.data import labellings, pipeline, sources
from urkle_tf.downstream import _training, aff
from urkle_tf.downstream.base import Protocol
from urkle_tf.networks.classifier import Classifier
from urkle_tf.output import files, progress
from urkle_tf.training.trainer import Trainer

_BATCH = 250
_SAMPLES = 20  # of z, whose mean is a pseudo-label


class _Soft(_training.Given):
  """The cross-entropy with soft labels q, -sum_y q(y) log p(y|z), with a weight.

  Args:
    task: a `Task` whose batches hold q, float32 [n, classes], as their "label".
    weight: the weight of the term.
  """

  def __init__(self, task, weight):
    super().__init__(task)
    self.terms, self._weight = ("distillation",), weight

  def loss(self, representations, aux, training=True):
    """{"distillation": [n]}, times its weight; the mean over the members."""
    logits, labels = self.predict(representations.flat, training), representations.repeat(aux)
    values = tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return {"distillation": self._weight * representations.mean(values)}


class SemiSupervised(Protocol):
  """Semi-supervised robust fine-tuning in ACL's three stages (Jiang et al., 2020).

  1. "clean": the encoder and a separate head are fine-tuned on the labelled images, with the
     cross-entropy.
  2. That network's probabilities q(y|x) become the labels of all images of the split.  Only the
     labels of stage 1 are read.  They are kept in `pseudo_labels.npy`, float32 [images, classes].
  3. "adversarial": the exported encoder and the head are trained on all the images, by TRADES on
     the soft labels,

         -weight sum_y q(y|x) log p(y|x) + beta max_{x' in A(x)} KL[p(.|x) || p(.|x')]

  Stage 3 of the published code differs.  Its attack maximises the cross-entropy, and its first term
  is that of the adversaries, with weight 1.  For labelled images, half of it is that with the label
  itself.

  Stage 1 uses the clean stream of an encoder with dual batch norm (`clean/` in its folder), and a
  copy of any other encoder; stage 3 uses the adversarial stream.  `--epochs`, `--augment`, the
  attack and the choice of the best epoch apply to stage 3.  Stage 1 has the same optimiser,
  learning rate and batch size, and no attack.

  Args:
    beta: the weight of the divergence, at least 0.
    weight: the weight of the cross-entropy with the soft labels, above 0.
    clean_epochs: passes of stage 1 over the labelled images, at least 1; many passes cost little,
      because the images are few.
  """

  adversarial = True
  defaults = {**aff.AFF.defaults, "epochs": 15}

  def __init__(self, beta=6.0, weight=0.5, clean_epochs=100):
    errors.at_least(0, "semi_supervised", beta=beta)
    errors.above(0, "semi_supervised", weight=weight)
    errors.whole(1, "semi_supervised", clean_epochs=clean_epochs)
    self._beta, self._weight, self._clean_epochs = beta, weight, clean_epochs

  def check(self, task):
    super().check(task)
    if not task.classifies:
      raise errors.UserError(
        f"semi_supervised makes labels from probabilities, but those of {task.source.name!r} are "
        "numbers: use --protocol=aff"
      )
    if len(task.chosen) == task.source.size:
      raise errors.UserError(
        "semi_supervised is for few labels: give --labels=0.01, or use --protocol=aff with all "
        "of them"
      )

  def seen(self, task):
    return np.arange(task.source.size)

  def fit(self, task, run):
    file = run.path / "pseudo_labels.npy"
    if not file.exists():
      _say(f"stage 1 of 3: {len(task.chosen)} labelled images")
      model = self._clean(task, run.stage("clean", "clean"))
      _say(f"stage 2 of 3: labels for {task.source.size} images")
      soft = _probabilities(model, task)
      files.write(file, lambda stream: np.save(stream, soft))
    soft = np.load(file, allow_pickle=False)
    _say(f"stage 3 of 3: {task.source.size} images with these labels")
    everything = dataclasses.replace(
      task, source=_relabelled(task.source, soft), chosen=self.seen(task)
    )
    given = _Soft(everything, self._weight), aff.scheme(task, self._beta)
    learner = Trainer(task.encoder, *given, task.attack, seed=task.seed)
    return _training.train(everything, run.stage("adversarial"), learner, task.weights)

  def _clean(self, task, run):
    """Stage 1: the fine-tuned `Classifier`."""
    clean = task.folder / "clean"
    encoder = export.load_encoder(clean if clean.is_dir() else task.folder)
    head = keras.models.clone_model(task.head)
    model = Classifier(encoder.network, head, task.model.stochastic, task.model.samples)
    task = dataclasses.replace(
      task, encoder=encoder, model=model, attack=None, epochs=self._clean_epochs
    )
    given = _training.Given(task)
    given.stochastic = model.stochastic
    _training.train(task, run, Trainer(encoder, given, seed=task.seed), task.weights)
    return model


def _say(text):
  print(text, file=sys.stderr, flush=True)


def _probabilities(model, task):
  """A classifier's probabilities for all images of a task's source, float32 [size, classes]."""
  source, seed = task.source, task.seed
  frozen, bar, found = model.frozen(), progress.Progress("labels", source.size), []

  @tf.function(autograph=False, reduce_retracing=True)
  def predict(images, number):
    noise = tf.stack([seed, number])
    return tf.exp(frozen.from_representation(*frozen.represent(images), noise, _SAMPLES))

  for number, batch in enumerate(pipeline.batches(source, _BATCH)):
    found.append(predict(batch["image"], tf.constant(number)).numpy())
    task.watch.check()
    bar.add(len(found[-1]))
  return np.concatenate(found)


def _relabelled(source, soft):
  """The source with only soft labels [size, classes], by the examples' indices."""
  table = tf.constant(soft)
  relabel = lambda batch: batch | {"label": tf.gather(table, batch["index"])}  # noqa: E731
  labelling = labellings.Labelling(relabel, class_names=source.class_names)
  return sources.RelabelledSource(source, labelling, source.name)
