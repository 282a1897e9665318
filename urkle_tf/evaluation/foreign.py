"""Any classifier, a SavedModel or a `.keras` file, measured like our own.

It only has to return scores for images.  Everything else is found by calling it and by reading its
graph.
"""

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors, loops
from urkle_tf.data import compatibility
from urkle_tf.evaluation import graphs, scoring
from urkle_tf.networks.saved import foreign_models

FLOOR = 1e-30  # of probabilities whose logits are not known
PROBE = 64  # images for examining a model
# Calls that show whether it is random, since some draw one of a few sizes for the whole batch, and
# the images that are enough for all of them but the first two.
_CALLS, _FEW = 8, 8
MASKED = 0.9  # share of zero input gradients from which a model counts as having none
_STREAM = 5  # of a seed


def look_at(loaded, source, abstains=False):
  """Examines a model with the first images of labelled data.

  Args:
    loaded: a `foreign_models.Loaded`.
    source: a `Source`.
    abstains: whether its last class means that it abstains, and is not a class of the data.

  Returns:
    A `Foreign`.

  Raises:
    UserError: if the data do not fit it.
  """
  compatibility.check_images(loaded.size_for(source.image_shape), source)
  _, images, labels = next(scoring.stream(source, min(PROBE, source.size)))
  model = Foreign(loaded, images)
  if abstains and model.classes <= len(source.class_names or ()):
    raise errors.UserError(
      f"--abstains: the classifier has {model.classes} outputs for the {len(source.class_names)} "
      "classes of the data, so none is left that means that it abstains: leave the flag out"
    )
  compatibility.check_classes(model.classes - bool(abstains), None, source)
  check_range(model, images, labels)
  return model


class _Scores:
  """The interface of a classifier for attacks and scoring, from a function of images.

  The images take the place of a representation.

  Args:
    values: (images, seed) -> logits or log-probabilities [n, classes].
    stochastic: whether the seed matters.
    classes: the number of classes.
    samples: how many draws a served prediction averages over.
  """

  def __init__(self, values, stochastic, classes, samples):
    self._values = values
    self.stochastic, self.classes, self.samples = stochastic, classes, samples

  @property
  def modes(self):
    """Its noise cannot be removed, so there is only one classifier."""
    return ("sampled",) if self.stochastic else ("deterministic",)

  def represent(self, images):
    """The images, twice, since there is no scale."""
    return images, images

  def head(self, images, training=False):
    """Logits or log-probabilities of one draw, float32 [n, classes]."""
    return self._values(images, None)

  def from_representation(self, images, _, seed=None, samples=None):
    """The log of the mean of the probabilities over calls, float32 [n, classes].

    Args:
      images: float32 [n, h, w, c].
      seed: int32 [2]; it has no effect if the model's noise cannot be seeded.
      samples: the number of calls; 1 is enough if the model is not stochastic.
    """
    add = lambda total, new: tf.reduce_logsumexp(tf.stack([total, new]), 0)  # noqa: E731
    total, samples = self._over_draws(images, seed, samples, tf.nn.log_softmax, add)
    return total - tf.math.log(samples)

  def mean_logits(self, images, _, seed=None, samples=None):
    """The mean of the logits over calls; arguments as in `from_representation`."""
    total, samples = self._over_draws(images, seed, samples, tf.identity, tf.add)
    return total / samples

  def _over_draws(self, images, seed, samples, change, add):
    """The changed values of `samples` calls, combined by `add`; and the number of calls."""
    if seed is None:
      seed = distribution.fresh_seed()
    draw = lambda i: change(self._values(images, distribution.fold(seed, i)))  # noqa: E731
    samples = (samples or self.samples) if self.stochastic else 1
    if samples == 1:
      return draw(0), tf.constant(1.0)
    more = lambda i, total: add(total, draw(i + 1))  # noqa: E731
    return loops.repeat(samples - 1, more, draw(0)), tf.cast(samples, tf.float32)

  def from_shared_noise(self, images, scale, seed, samples):
    """As `from_representation`; the model itself decides whether images share their noise."""
    return self.from_representation(images, scale, seed, samples)


class Foreign(_Scores):
  """A classifier known only as a map from images to scores.

  A few images show whether it returns logits or probabilities (rows that are not negative and sum
  to 1), whether it is stochastic (calls differ), and which share of its gradients is zero.  If its
  outputs are a softmax, the logits below it are used.  If there is no gradient, attacks cross steps
  such as rounding by straight-through gradients.

  Args:
    loaded: a `foreign_models.Loaded`.
    images: float32 [n, h, w, c] in [0, 1] for these checks.

  Attributes:
    image_shape: (height, width, channels).
    differentiable: whether TensorFlow has a gradient for every operation between the images and the
      scores that attacks climb, even if it is zero; a table look-up has none.
    metadata: the findings, for the report.
    notes: the same in sentences.

  Raises:
    UserError: if it does not return finite scores [n, classes >= 2].
  """

  def __init__(self, loaded, images):
    images = tf.constant(images[:PROBE], tf.float32)
    self.image_shape = tuple(images.shape[1:])
    self._served = tf.function(
      loaded.function,
      input_signature=[tf.TensorSpec([None, *self.image_shape], tf.float32)],
      autograph=False,
    )
    call = lambda images: foreign_models.call(self._served, images, loaded.path)  # noqa: E731
    first = call(images)
    self._check(first, loaded)
    stochastic = _differ(first, call(images)) or _varies(lambda: call(images[:_FEW]))
    sums = first.sum(1)
    probabilities = bool(first.min() >= -1e-6 and np.abs(sums - 1).max() < 1e-2)
    kind = "probabilities" if probabilities else "logits"
    self._graph = self._read_graph(images, first, stochastic)
    classes = first.shape[1]
    exact = self._find_logits(images, classes) if probabilities else None
    super().__init__(self._reader(exact, probabilities and not exact), stochastic, classes, 1)
    attacked, (own, left, bridged) = self._look_at_gradients(images, exact, probabilities)
    slope = lambda: _slope(self._attack_values, images, classes)  # noqa: E731
    self.differentiable = left < 1.0 or slope() is not None
    saturated = float(np.mean(_saturated(first))) if probabilities else 0.0
    self.metadata = {
      "kind": "classifier",
      "format": loaded.format,
      "fingerprint": loaded.fingerprint,
      "image_size": list(self.image_shape),
      "classes": classes,
      "stochastic": stochastic,
      "outputs": kind,
      "logits": "given" if not probabilities else "recovered" if exact else "not recovered",
      "attacked": "logits" if exact else "inner scores" if attacked else "the outputs",
      "saturated": saturated,
      "gradients": {"zero": own, "zero_bridged": left, "bridged": bridged},
      "noise": "none" if not stochastic else "seeded" if self._seeded else "not seeded",
    }
    self.notes = self._sentences(loaded)

  def frozen(self):
    """The scores that attacks differentiate, with gradients across steps."""
    return _Scores(self._attack_values, self.stochastic, self.classes, self.samples)

  def own_gradients(self):
    """The model's own scores and gradients, without straight-through gradients."""
    return self

  @staticmethod
  def _check(values, loaded):
    if values.ndim != 2 or values.shape[1] < 2:
      shape = "x".join(map(str, values.shape[1:])) or "a single number"
      raise errors.UserError(
        f"{loaded.path!r} must return scores [n, classes] of at least 2 classes, but returns "
        f"{shape} per image: give a classifier"
      )
    then = "check its weights, and whether it takes pixels in [0, 1]"
    errors.check_finite(values, repr(loaded.path), then)

  def _read_graph(self, images, first, stochastic):
    """The function as a graph, if the graph computes the same; else None."""
    self._seeded = False
    try:
      graph = graphs.Graph(self._served.python_function, self.image_shape)
      run, seed = graph.run(), tf.constant([3, _STREAM])
      values = run(images, seed).numpy()
    except Exception:  # a graph that TensorFlow cannot rewrite is run as it is
      return None
    if not stochastic:
      return None if _differ(first, values) else graph
    self._seeded = not _varies(lambda: run(images[:_FEW], seed).numpy())
    # With frozen noise, it would be another classifier.
    seeds = (seed + number for number in range(_CALLS + 1))
    return graph if _varies(lambda: run(images[:_FEW], next(seeds)).numpy()) else None

  def _find_logits(self, images, classes):
    """The tensor whose softmax the outputs are, or None."""
    if self._graph is None or (self._graph.seeded and not self._seeded):
      return None
    seed = tf.constant([5, _STREAM])
    outputs = tf.cast(self._graph.run()(images, seed), tf.float32).numpy()
    for tensor in self._graph.scores(classes):
      inner = tf.cast(self._graph.run(tensor)(images, seed), tf.float32)
      if _is_softmax(outputs, tf.nn.log_softmax(inner).numpy()):
        return tensor
    return None

  def _reader(self, tensor, take_log, bridged=False):
    """A function (images, seed) -> logits or log-probabilities, float32."""
    if self._graph is None:
      run = lambda images, seed: self._served(images)  # noqa: E731
    else:
      run = self._graph.run(tensor, bridged)

    def values(images, seed):
      found = tf.cast(run(images, seed), tf.float32)
      found = tf.ensure_shape(found, [None, self.classes])
      if take_log:
        floored = tf.math.log(tf.maximum(found, FLOOR))
        found = tf.where(tf.math.is_nan(found), found, floored)
      return found

    return values

  def _look_at_gradients(self, images, exact, probabilities):
    """Chooses what attacks differentiate: the first candidate whose gradients are not masked.

    The candidates are the scores themselves; the scores with gradients across steps; and scores
    inside the model that mostly agree with the outputs, with gradients across steps.

    Returns:
      The name of the tensor (None for the outputs), and (the share of zeros in the model's own
      gradients, that share afterwards, the bridged operations).
    """
    take_log = probabilities and not exact
    self._attack_values = self._reader(exact, take_log)
    own = _zero_share(self._attack_values, images, self.classes)
    if own < MASKED or self._graph is None:
      return exact, (own, own, [])
    seed = tf.constant([11, _STREAM])
    outputs = self._graph.run()(images, seed).numpy()
    ways = [exact] if self._graph.bridged else []
    inner = [tensor for tensor in self._graph.scores(self.classes) if tensor != exact]
    # The log of a probability of 1 depends on that class alone: inner scores are more informative.
    saturated = take_log and np.mean(_saturated(outputs)) > 1 - MASKED
    for tensor in inner + ways if saturated else ways + inner:
      values = self._reader(tensor, take_log and tensor is None, bridged=True)
      if tensor != exact:
        scores = values(images, seed).numpy()
        agree = np.mean(np.argmax(scores, 1) == np.argmax(outputs, 1))
        if agree < 0.9 or not np.all(np.isfinite(scores)):
          continue
      left = _zero_share(values, images, self.classes)
      if left < MASKED:
        self._attack_values = values
        plain = self._reader(tensor, take_log and tensor is None)
        crossed = _zero_share(plain, images, self.classes) >= MASKED
        return tensor, (own, left, self._graph.bridged if crossed else [])
    return exact, (own, own, [])

  def _sentences(self, loaded):
    said = self.metadata
    kind = said["outputs"]
    what = "A SavedModel" if loaded.format == "SavedModel" else "A Keras model"
    what = f"An encoder with {loaded.about} on top" if loaded.about else f"{what} made elsewhere"
    notes = [
      f"{what}: {self.classes} classes, {kind}, "
      + (
        "stochastic (two calls on the same images differ)."
        if self.stochastic
        else "deterministic (two calls on the same images agree)."
      )
    ]
    if kind == "probabilities" and said["logits"] == "recovered":
      notes.append("Its logits were read from under its softmax.")
    elif kind == "probabilities":
      notes.append(
        f"Its logits were not recovered: scores are log p, p at least {FLOOR:g}. "
        f"{said['saturated']:.0%} of the images tried have a probability of 0 or 1 in "
        "float32."
      )
    gradients, ways = said["gradients"], []
    if said["attacked"] == "inner scores":
      ways.append("climb scores inside the model")
    if gradients["bridged"]:
      ways.append(f"cross {', '.join(gradients['bridged'])} by straight-through gradients")
    if ways:
      notes.append(
        f"Its own gradients are masked ({gradients['zero']:.0%} are zero or missing): "
        f"attacks {' and '.join(ways)} ({gradients['zero_bridged']:.0%} zero)."
      )
    elif gradients["zero"] >= MASKED:
      notes.append(
        f"Its gradients are masked ({gradients['zero']:.0%} are zero or missing) and could "
        "not be bridged: only attacks without gradients (square, hop_skip_jump) are informative."
      )
    if said["noise"] == "not seeded":
      notes.append("Its noise cannot be seeded: the same command gives slightly different figures.")
    needs = "--encoder without a head" if loaded.about else "an encoder of this package"
    return [*notes, f"The representation is not measured: that needs {needs}."]


def _differ(one, other):
  """Whether scores differ by more than rounding."""
  return bool(np.abs(other - one).max() > 1e-4 * max(np.abs(one).max(), 1e-12))


def _varies(call):
  """Whether any of `_CALLS` calls returns other scores than one before them."""
  first = call()
  return any(_differ(first, call()) for _ in range(_CALLS))


def _saturated(probabilities):
  return (probabilities.max(1) > 1 - 6e-8) | (probabilities.min(1) == 0)


def _is_softmax(probabilities, logs):
  """Whether probabilities belong to log-probabilities, within the precision of float32."""
  seen = probabilities > 1e-20
  wanted = np.log(np.where(seen, probabilities, 1.0))
  close = np.abs(logs - wanted) <= 2e-2 + 1e-2 * np.abs(wanted)
  spread = np.abs(probabilities - 1 / probabilities.shape[1]).max()
  return bool(np.all(close | ~seen) and np.abs(np.exp(logs) - probabilities).max() <= 2e-2 * spread)


def _slope(values, images, classes):
  """The gradient of a random mixture of the scores in the images; None if there is none."""
  signs = tf.random.stateless_uniform([images.shape[0], classes], [7, _STREAM], -1.0, 1.0)

  @tf.function(autograph=False)
  def gradient(images):
    with tf.GradientTape() as tape:
      tape.watch(images)
      total = tf.reduce_sum(signs * values(images, tf.constant([9, _STREAM])))
    return tape.gradient(total, images)

  try:
    return gradient(images)
  except Exception:  # operations that have no gradient raise many kinds
    return None


def _zero_share(values, images, classes):
  """The share of zeros in that gradient; 1 if there is none."""
  found = _slope(values, images, classes)
  return 1.0 if found is None else float(tf.reduce_mean(tf.cast(found == 0, tf.float32)))


def check_range(model, images, labels):
  """Raises `UserError` if a model seems to expect pixels in 0-255.

  Args:
    model: a `Foreign`.
    images: float32 [n, h, w, c] in [0, 1].
    labels: int [n].
  """
  share = lambda scale: float(  # noqa: E731
    np.mean(np.argmax(model.from_representation(images * scale, None, None, 50), 1) == labels)
  )
  images = tf.constant(images[:PROBE], tf.float32)
  labels = np.asarray(labels)[:PROBE]
  unit, wide = share(1.0), share(255.0)
  if len(labels) >= 20 and wide > 2 * unit and wide > unit + 0.3:
    raise errors.UserError(
      f"the classifier seems to expect pixels in 0-255: {wide:.0%} of {len(labels)} images "
      f"are right with these, and {unit:.0%} with pixels in [0, 1]. Put "
      "keras.layers.Rescaling(255.0) in front of it and save it again"
    )
