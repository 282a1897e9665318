#!/usr/bin/env python3
r"""Times training, its input pipeline and attacks, on whatever device is here; prints JSON.

  python tools/benchmark.py --encoder="resnet18(width=16)" --batch_size=256 --attack_steps=4
  python tools/benchmark.py --precision=mixed_bfloat16 --strategy=auto --batch_size=1024
  python tools/benchmark.py --part=attacks --classifier=RUN/classifier --attack_steps=20

Images are random: the time does not depend on what they show.  Reading files is not part of
it.  Each figure is the median of several timings, and an image counts once, whatever its views
and adversaries.  What is compared takes turns, so that a busy machine disturbs it little.

--suite measures everything that docs/results/speed.md shows, one part after the other (--scale=tiny
tries them all in minutes).  What --out and --work hold is not measured again, so that the same
command resumes after an interruption, and --parts can be measured at different times:

  python tools/benchmark.py --suite --out=docs/results/speed.json --page=docs/results/speed.md \
    --data_dir=DATA_DIR --parts=step,pipeline,growth,options,views,target

Estimated minutes on two idle cores: step 7, pipeline 1, growth 6, options 20, views 7,
target 110; on a busy machine several times that.

--part=attacks compares the compiled loop of PGD with the network's own forward and backward pass,
and with PGD of foolbox and adversarial-robustness-toolbox if they are installed, on the same
network; each ratio is the median of those within one turn.  --part=input is the pipeline alone, on
one core; --part=step is the training's step without its pipeline.
"""

import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import keras
import numpy as np
import tensorflow as tf

from experiments import jobs
from urkle_tf import attacks, distribution, errors, export, networks, pretexts, robustness, spec
from urkle_tf.attacks import losses
from urkle_tf.data import augment, pipeline, sources
from urkle_tf.networks import classifier as classifiers
from urkle_tf.training import optimizers, trainer


def _arguments(argv):
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--encoder", default="resnet18", help="an architecture: resnet18(width=64)")
  add("--image_size", type=int, default=32, help="pixels")
  add("--channels", type=int, default=3)
  add("--latent_dim", type=int, default=128)
  add("--batch_size", type=int, default=256, help="images a step, over all replicas")
  add("--pretext", default="simclr")
  add("--robustness", help="instead of urkle with --attacked views")
  add("--attacked", type=int, default=2, help="how many views are attacked")
  add("--attack_steps", type=int, default=5)
  add("--epsilon", type=spec.number, default=8 / 255, help="pixel units of [0, 1]")
  add("--augment", default="simclr", help="the recipe of the input pipeline")
  add("--augment_on_device", action="store_true", help="augment inside the step")
  add("--optimizer", default="sgd")
  add("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
  add("--strategy", default="auto")
  add("--steps", type=int, default=10, help="steps a timing")
  add("--timings", type=int, default=5, help="timings that the median is of")
  add("--part", default="training", choices=PARTS, help="what is timed")
  add("--suite", action="store_true", help="everything; other flags are not read")
  add("--scale", default="full", help="of the suite: full, or tiny to try it")
  add("--parts", help="of the suite: which, with commas between; default: all")
  add("--out", default="speed.json", help="of the suite: where its figures go")
  add("--page", help="of the suite: where they go as Markdown")
  add("--work", default="runs/speed", help="of the suite: the folder of its trainings")
  add("--data_dir", help="of the suite: where mnist lies, prepared")
  add("--classifier", help="an exported one for --part=attacks, instead of a new --encoder")
  options = parser.parse_args(argv)
  if not sys.platform.startswith("linux"):
    raise errors.UserError("this reads times and memory as Linux shows them: run it on Linux")
  counts = ("batch_size", "image_size", "channels", "attack_steps", "steps", "timings")
  errors.flags_at_least(1, vars(options), *counts)
  return options


def _seconds(run, steps, timings):
  """The median over `timings` of the seconds that a call of `run` takes, over `steps` calls."""
  found = []
  for _ in range(timings):
    started = time.perf_counter()
    for _ in range(steps):
      result = run()
    # A device works asynchronously: its last result ends the clock.
    tf.nest.map_structure(np.asarray, result)
    found.append((time.perf_counter() - started) / steps)
  return statistics.median(found)


def _input(views, options):
  """A batch, and the seconds and processor seconds that one takes; its prefetching ends here."""
  batches = iter(views)
  batch = next(batches)  # the start
  spent = time.process_time()
  seconds = _seconds(lambda: next(batches), options.steps, options.timings)
  spent = (time.process_time() - spent) / options.steps / options.timings
  return batch, seconds, spent


def _encoder(options, image_shape):
  backbone = networks.backbone(options.encoder, image_shape)
  return networks.GaussianEncoder(backbone, options.latent_dim, loc="dense")


def _learner(options, image_shape, pretext, recipe):
  scheme = options.robustness or f"urkle(attacked={options.attacked})"
  encoder = _encoder(options, image_shape)
  learner = trainer.Trainer(
    encoder,
    pretext,
    spec.build("robustness", scheme, robustness.Robustness),
    attacks.PGD(attacks.Linf(options.epsilon), steps=options.attack_steps),
    augment=recipe if options.augment_on_device else None,
  )
  steps = 2 + options.steps * options.timings
  learner.compile(optimizers.build(options.optimizer, 1e-3, steps, 0, 0.0))
  return learner


def passes(views, attacked, steps):
  """Forward passes of an image that a step takes time for, a backward pass being one or two.

  Of each member of the training pass the forward pass and the gradients of weights and inputs; of
  each attacked view the clean reference, and at each step forward and the gradient of the input.
  """
  return 3 * (views + attacked) + attacked + 2 * attacked * steps


def measure(options):
  """Builds one cell of the grid and times it.

  Args:
    options: what `_arguments` parses; the part "step" leaves out what the pipeline has to do with.

  Returns:
    A dict for JSON.  `share_of_ceiling`: of what the network's forward pass, times `passes`, would
    take; on one replica.  `waiting_share`: of a step with the pipeline, what it takes longer than
    one whose batch is there.  `input_share_of_step` above 1 says that the pipeline holds the step
    up.  `start_seconds`: from the process's start to here.
  """
  start_seconds = _age()
  keras.mixed_precision.set_global_policy(options.precision)
  scope = distribution.strategy(options.strategy)
  source, recipe, pretext, views = _pipeline(options)
  alone = options.part == "step"
  batch, input_seconds, _ = (next(iter(views)), None, None) if alone else _input(views, options)
  before = _peak_mib()
  built = time.perf_counter()
  with scope.scope():
    learner = _learner(options, source.image_shape, pretext, recipe)
  same = tf.data.Dataset.from_tensors(batch).repeat()
  feed = iter(scope.experimental_distribute_dataset(same))
  learner.make_train_function()
  built = time.perf_counter() - built
  first = _seconds(lambda: learner.train_function(feed), 1, 1)
  memory = _peak_mib()
  contenders = {"step": lambda: learner.train_function(feed), "forward": _forward(learner, options)}
  if not alone:
    fresh = iter(scope.experimental_distribute_dataset(views))
    contenders["fed"] = lambda: learner.train_function(fresh)
  turns = _turns(contenders, options.steps, options.timings)
  seconds = {name: statistics.median(found) / options.steps for name, found in turns.items()}

  # Of all cores together: what else the machine does has no part in it.
  spent = time.process_time()
  _seconds(contenders["step"], options.steps, 1)
  spent = (time.process_time() - spent) / options.steps

  def median(function, other):
    return statistics.median(map(function, turns["step"], turns[other]))

  steps = learner.attack.steps if learner.attack else 0
  attacked = steps and learner.robustness.targets(tf.zeros([1, pretext.views, 1])).shape[1]
  needed = passes(pretext.views, attacked, steps)
  rates = {name: options.batch_size / seconds[name] for name in ("step", "forward")}
  result = {
    "step_seconds": seconds["step"],
    "step_core_seconds": spent,
    **{f"{name}_images_per_second": rate for name, rate in rates.items()},
    "passes": needed,
    "share_of_ceiling": None,
    "start_seconds": start_seconds,
    "build_seconds": built,
    "compile_seconds": max(0.0, first - seconds["step"]),
    "peak_memory_mib": memory,
    "step_memory_mib": memory - before,
    "machine": {**_machine(), "replicas": scope.num_replicas_in_sync},
  }
  if scope.num_replicas_in_sync == 1:
    result["share_of_ceiling"] = median(lambda step, one: needed * one / step, "forward")
  if not alone:
    result |= {
      "input_seconds": input_seconds,
      "input_images_per_second": options.batch_size / input_seconds,
      "input_share_of_step": input_seconds / seconds["step"],
      "waiting_share": median(lambda step, fed: max(0.0, 1 - step / fed), "fed"),
    }
  if gpus := tf.config.list_logical_devices("GPU"):
    peaks = [tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus]
    result["peak_device_memory_mib"] = max(peaks) / 2**20
  return result


def measure_input(options):
  """Times the pipeline alone, one view of each image, on one core.

  Args:
    options: what `_arguments` parses.

  Returns:
    A dict for JSON.
  """
  _, _, _, views = _pipeline(options, views=1)
  threads = tf.data.Options()
  threads.threading.private_threadpool_size = 1
  threads.threading.max_intra_op_parallelism = 1
  threads.autotune.enabled = False
  _, seconds, spent = _input(views.with_options(threads), options)
  return {
    "images_per_second": options.batch_size / seconds,
    "images_per_core_second": options.batch_size / spent,
  }


def _pipeline(options, views=None):
  """(source, recipe, pretext, endless batches) over random images."""
  size, batch_size = options.image_size, options.batch_size
  shape = (4 * batch_size, size, size, options.channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  source = sources.ArraySource(images, name="random", split="train")
  recipe = augment.from_spec(options.augment)
  pretext = spec.build("pretexts", options.pretext, pretexts.Pretext)
  on_device = options.augment_on_device and views is None
  batches = pipeline.views(
    source, recipe, batch_size, 0, views=views or pretext.views, on_device=on_device
  )
  return source, recipe, pretext, batches


def _forward(learner, options):
  """The network's forward pass in inference mode, of as many images as a batch has."""
  shape = [options.batch_size, *learner.encoder.image_shape]
  images = tf.random.stateless_uniform(shape, [0, 0])

  @tf.function(autograph=False, jit_compile=learner.jit_compile)
  def forward():
    return learner.encoder.network(images, training=False)["loc"]

  return forward


def _age():
  """Seconds since this process was started."""
  ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
  uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  return uptime - ticks / os.sysconf("SC_CLK_TCK")


def _peak_mib():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _machine():
  found = {
    "cores": len(os.sched_getaffinity(0)),
    "load": round(os.getloadavg()[0], 2),  # more than the cores: others were at work too
    "devices": [device.name for device in tf.config.list_logical_devices()],
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
  }
  if gpus := tf.config.list_physical_devices("GPU"):
    names = map(tf.config.experimental.get_device_details, gpus)
    found["gpus"] = [name.get("device_name", "") for name in names]
  return found


def _classifier(options):
  """The classifier that is attacked: an exported one, or a new one of ten classes."""
  if options.classifier:
    return export.load_classifier(options.classifier)
  shape = (options.image_size, options.image_size, options.channels)
  head = networks.mlp(options.latent_dim, [10], "head")
  return classifiers.Classifier(_encoder(options, shape).network, head)


def _contenders(classifier, images, labels, epsilon, steps):
  """What takes turns: {name: function that evaluates `steps` gradients of the batch}.

  All attack z = loc with PGD from a random start, on the cross-entropy; "model" evaluates the
  gradient of the same loss `steps` times, and "model_folded" that of the same network with batch
  norms folded, which is what our attacks run on.
  """
  size = 2.5 * epsilon / steps
  pixels = keras.Input(classifier.image_shape)
  logits = classifier.head(classifier.network(pixels)["loc"])
  network = keras.Model(pixels, logits)
  threat = attacks.Linf(epsilon)

  def gradient(scores):
    @tf.function(autograph=False)
    def found(images, labels):
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        loss = tf.reduce_sum(losses.cross_entropy(scores()(images), labels))
      return tape.gradient(loss, images)

    return lambda: [found(images, labels) for _ in range(steps)][-1]

  def folded():
    frozen = classifier.frozen()
    return lambda inputs: frozen.head(frozen.represent(inputs)[0])

  @tf.function(autograph=False)
  def ours(images, labels, seed):
    scores = folded()
    attack = attacks.PGD(threat, steps=steps, step_size=size)
    return attack(lambda z: losses.cross_entropy(scores(z), labels), images, seed)

  found = {
    "ours": lambda: ours(images, labels, tf.constant([1, 2])),
    "model": gradient(lambda: lambda inputs: network(inputs, training=False)),
    "model_folded": gradient(folded),
  }
  if importlib.util.find_spec("foolbox"):
    import foolbox

    wrapped = foolbox.TensorFlowModel(network, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=size)
    criterion = foolbox.criteria.Misclassification(labels)
    # `run` is the loop alone, without the checks before and after it.
    found["foolbox"] = lambda: attack.run(wrapped, images, criterion, epsilon=epsilon)
  if importlib.util.find_spec("art"):
    from art.attacks import evasion
    from art.estimators import classification

    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    sizes = classifier.classes, classifier.image_shape
    estimator = classification.TensorFlowV2Classifier(network, *sizes, loss, clip_values=(0, 1))
    budget = {"eps": epsilon, "eps_step": size, "max_iter": steps, "num_random_init": 1}
    theirs = evasion.ProjectedGradientDescentTensorFlowV2(
      estimator, **budget, batch_size=len(images), verbose=False
    )
    arrays = images.numpy(), np.eye(classifier.classes, dtype=np.float32)[labels.numpy()]
    found["art"] = lambda: theirs.generate(*arrays)
  return found


def _turns(contenders, steps, timings):
  """{name: seconds of each turn}, of `steps` calls each, after one call that does not count."""
  names = list(contenders)
  for name in names:
    np.asarray(contenders[name]())
  seconds = {name: [] for name in names}
  for turn in range(timings):
    shift = turn % len(names)  # no contender may gain by the one before it
    for name in names[shift:] + names[:shift]:
      seconds[name].append(_seconds(contenders[name], steps, 1) * steps)
  return seconds


def measure_attacks(options):
  """Times PGD against the network's own passes and other libraries.

  Args:
    options: what `_arguments` parses.

  Returns:
    A dict for JSON.  `gradients_per_second`: of one image each; of "foolbox" and "art" (the
    adversarial-robustness-toolbox) where installed.  `share_of_model`: ours against the network's
    own; `times_fastest_library`: against the faster of the two.
  """
  keras.mixed_precision.set_global_policy(options.precision)
  classifier = _classifier(options)
  rng = np.random.default_rng(0)
  shape = (options.batch_size, *classifier.image_shape)
  images = tf.constant(rng.uniform(size=shape).astype(np.float32))
  labels = tf.constant(rng.integers(0, classifier.classes, options.batch_size))
  contenders = _contenders(classifier, images, labels, options.epsilon, options.attack_steps)
  seconds = _turns(contenders, options.steps, options.timings)
  gradients = options.batch_size * options.attack_steps * options.steps

  def ratio(*others):
    """How many times faster ours is than the fastest of the others, within a turn."""
    found = [
      min(seconds[name][turn] for name in others) / ours
      for turn, ours in enumerate(seconds["ours"])
    ]
    return statistics.median(found)

  libraries = [name for name in ("foolbox", "art") if name in contenders]
  return {
    "gradients_per_second": {
      name: gradients / statistics.median(found) for name, found in seconds.items()
    },
    "share_of_model": ratio("model"),
    "share_of_model_folded": ratio("model_folded"),
    **{f"times_{name}": ratio(name) for name in libraries},
    "times_fastest_library": ratio(*libraries) if libraries else None,
  }


PARTS = {"training": measure, "step": measure, "attacks": measure_attacks, "input": measure_input}


def main(argv=None):
  """Prints one JSON object."""
  options = _arguments(argv)
  if options.suite:
    from tools import suite

    return suite.run(options)
  try:
    found = PARTS[options.part](options) | {"settings": vars(options)}
    print(json.dumps({"machine": _machine(), **found}, indent=2))
  finally:
    keras.mixed_precision.set_global_policy("float32")


if __name__ == "__main__":
  jobs.main(main)
