#!/usr/bin/env python3
"""Times the training step and the input pipeline, on whatever device is here; prints JSON.

  python launch/benchmark.py --encoder="resnet18(width=16)" --batch_size=256 --attack_steps=4
  python launch/benchmark.py --precision=mixed_bfloat16 --strategy=auto --batch_size=1024

Images are random: the step's time does not depend on what they show.  Reading files is not
part of it.  Each figure is the median of several timings, and an image counts once, whatever
its views and adversaries.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import tensorflow as tf

from urkle_tf import (
  attacks,
  distribution,
  errors,
  networks,
  optimizers,
  pretexts,
  robustness,
  spec,
  trainer,
)
from urkle_tf.data import augment, pipeline, sources


def _arguments(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
  return parser, parser.parse_args(argv)


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
  """A batch and the seconds that one takes; the pipeline and its prefetching end here."""
  batches = iter(views)
  batch = next(batches)  # the start
  return batch, _seconds(lambda: next(batches), options.steps, options.timings)


def _learner(options, image_shape, pretext, recipe):
  scheme = options.robustness or f"urkle(attacked={options.attacked})"
  encoder = networks.GaussianEncoder(
    networks.backbone(options.encoder, image_shape), options.latent_dim
  )
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


def measure(options):
  """Builds one cell of the grid and times it.

  Args:
    options: what `_arguments` parses.

  Returns:
    A dict for JSON; `input_share_of_step` above 1 says that the pipeline holds the step up.
  """
  for name in ("batch_size", "image_size", "channels", "steps", "timings"):
    if getattr(options, name) < 1:
      raise errors.UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
  keras.mixed_precision.set_global_policy(options.precision)
  scope = distribution.strategy(options.strategy)
  size, batch_size = options.image_size, options.batch_size
  shape = (4 * batch_size, size, size, options.channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  source = sources.ArraySource(images, name="random", split="train")
  recipe = augment.from_spec(options.augment)
  pretext = spec.build("pretexts", options.pretext, pretexts.Pretext)
  views = pipeline.views(
    source, recipe, batch_size, 0, views=pretext.views, on_device=options.augment_on_device
  )

  batch, input_seconds = _input(views, options)
  with scope.scope():
    learner = _learner(options, source.image_shape, pretext, recipe)
  same = tf.data.Dataset.from_tensors(batch).repeat()
  feed = iter(scope.experimental_distribute_dataset(same))
  learner.make_train_function()
  first = _seconds(lambda: learner.train_function(feed), 1, 1)
  step_seconds = _seconds(lambda: learner.train_function(feed), options.steps, options.timings)

  result = {
    "step_seconds": step_seconds,
    "step_images_per_second": batch_size / step_seconds,
    "input_seconds": input_seconds,
    "input_images_per_second": batch_size / input_seconds,
    "input_share_of_step": input_seconds / step_seconds,
    "compile_seconds": max(0.0, first - step_seconds),
    "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "machine": {
      "cores": len(os.sched_getaffinity(0)),
      "devices": [device.name for device in tf.config.list_logical_devices()],
      "replicas": scope.num_replicas_in_sync,
      "tensorflow": tf.__version__,
      "keras": keras.__version__,
    },
    "settings": vars(options),
  }
  if gpus := tf.config.list_logical_devices("GPU"):
    peaks = [tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus]
    result["peak_device_memory_mib"] = max(peaks) / 2**20
    names = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    result["machine"]["gpus"] = [name.get("device_name", "") for name in names]
  return result


def main(argv=None):
  """Prints one JSON object."""
  parser, options = _arguments(argv)
  try:
    print(json.dumps(measure(options), indent=2))
  except errors.UserError as error:
    parser.exit(2, f"error: {error}\n")
  finally:
    keras.mixed_precision.set_global_policy("float32")


if __name__ == "__main__":
  main()
