"""`benchmark.py --suite`: every figure of docs/results/speed.md, of one machine, in one JSON.

Each measurement is a process of its own, so that its memory and its start are its own too, and one
after the other.  A part that the JSON holds already is not measured again.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jobs
import loopback
import pages
import speed_page

from urkle_tf import errors, files

BENCHMARK = pathlib.Path(__file__).with_name("benchmark.py")


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large everything is.

  Attributes:
    widths: of ResNet-18.
    image_size: pixels.
    batch: images a step.
    steps: steps a timing.
    timings: that a median is of.
    batches: the batch sizes over which a step must grow linearly.
    attack_steps: likewise PGD's.
    sizes: likewise image sizes, in pixels of a side.
    growing: the network of these.
    soak_steps: of the run whose memory is watched.
    worker_steps: of one worker, and of two.
    data: flags of the training that is to reach a target.
    config: its flagfile.
    test: flags of its evaluation.
    target: accuracy under PGD-20.
    budgets: epochs, of which the first that reaches the target counts.
    systems: how many of `SYSTEMS` are tried.
  """

  widths: tuple[int, ...] = (64, 16)
  image_size: int = 32
  batch: int = 128
  steps: int = 2
  timings: int = 5
  batches: tuple[int, ...] = (32, 64, 128, 256)
  attack_steps: tuple[int, ...] = (1, 2, 4, 8)
  sizes: tuple[int, ...] = (32, 64, 96)
  growing: str = "resnet18(width=16)"
  soak_steps: int = 2000
  worker_steps: int = 100
  data: tuple[str, ...] = ("--dataset=mnist",)
  config: str = "configs/mnist_vae_urkle.cfg"
  test: tuple[str, ...] = ("--split=test", "--epsilon=0.1")
  target: float = 0.97
  budgets: tuple[int, ...] = (2, 4, 6, 8, 12, 16, 20)
  systems: int = 100


SCALES = {
  "full": Scale(),
  "tiny": Scale(
    widths=(4,),
    image_size=8,
    batch=4,
    steps=1,
    timings=2,
    batches=(4, 8),
    attack_steps=(1, 2),
    sizes=(8, 16),
    growing="convnet(width=4, layers=2)",
    soak_steps=40,
    worker_steps=8,
    data=(
      "--dataset=digits",
      "--encoder=convnet(width=8, layers=2)",
      "--pretext=vae(width=8, layers=2)",
    ),
    test=("--dataset=digits", "--examples=100", "--epsilon=0.1"),
    target=0.3,
    budgets=(1, 4),
    systems=2,
  ),
}

# What is compared in time to a target: flags over the config's.
_SMALL_STEPS = ("--attack_steps=7", "--attack_step_size=0.025")
SYSTEMS = {
  "PGD-7, plain": (*_SMALL_STEPS, "--precision=float32"),
  "PGD-7, bfloat16 in the attack": (
    *_SMALL_STEPS,
    "--precision=float32",
    "--attack_precision=mixed_bfloat16",
  ),
  "PGD-7, bfloat16": _SMALL_STEPS,
  "PGD-7, rising from 1": (*_SMALL_STEPS, "--attack_schedule=rising(first=1)"),
  "PGD-7, controlled": (*_SMALL_STEPS, "--attack_schedule=controlled(every=300)"),
  "PGD-2": (),
  "PGD-2, carried": ("--attack=pgd(carry=true)",),
  "RS-FGSM": ("--attack=rs_fgsm",),
  "RS-FGSM, carried": ("--attack=rs_fgsm(carry=true)",),
  "RS-FGSM, GradAlign": ("--attack=rs_fgsm", "--robustness=urkle(beta=1, align=1)"),
}


def _benchmark(**options):
  """One run of benchmark.py, as what it prints."""
  flags = [f"--{name}={value}" for name, value in options.items()]
  done = subprocess.run(
    [sys.executable, BENCHMARK, "--strategy=one", *flags],
    capture_output=True,
    text=True,
    env=jobs._environment(),
    check=False,
  )
  if done.returncode:
    raise errors.UserError(f"benchmark.py {' '.join(flags)} failed: {done.stderr[-400:]}")
  return json.loads(done.stdout)


def _common(scale):
  return {"image_size": scale.image_size, "batch_size": scale.batch, **_timing(scale)}


def _timing(scale):
  return {"steps": scale.steps, "timings": scale.timings}


def step(scale, options):
  """Images a second of the step, and its share of the ceiling."""
  del options
  return [
    {
      "width": width,
      "precision": precision,
      **_benchmark(
        encoder=f"resnet18(width={width})", precision=precision, attack_steps=5, **_common(scale)
      ),
    }
    for width in scale.widths
    for precision in ("float32", "mixed_bfloat16")
  ]


def pipeline(scale, options):
  """Images a second of the input, on one core."""
  del options
  return _benchmark(part="input", **{**_common(scale), "steps": 10 * scale.steps})


def growth(scale, options):
  """Time and memory of a step, over one size at a time."""
  del options
  middle = {
    "encoder": scale.growing,
    "image_size": scale.image_size,
    "batch_size": scale.batches[0],
    "attack_steps": scale.attack_steps[0],
    **_timing(scale),
  }
  axes = {
    "batch_size": scale.batches,
    "attack_steps": scale.attack_steps,
    "image_size": scale.sizes,
  }
  return {
    name: [
      {"value": value, **{key: found[key] for key in ("step_seconds", "step_memory_mib")}}
      for value in values
      for found in [_benchmark(**{**middle, name: value})]
    ]
    for name, values in axes.items()
  }


def soak(scale, options):
  """A training's resident memory as it goes on: [(step, MiB)]."""
  folder = pathlib.Path(options.work) / "soak"
  epochs = -(-scale.soak_steps // 89)  # 1,437 digits in batches of 16
  flags = ["--encoder=convnet(width=8, layers=2)", "--batch_size=16", f"--epochs={epochs}"]
  flags += ["--attack_steps=2", "--log_every=10", "--strategy=one", f"--output_dir={folder}"]
  (process,) = loopback.start(folder, [sys.executable, "-m", "urkle_tf.train", *flags], count=1)
  curve, status = [], pathlib.Path(f"/proc/{process.pid}/status")
  while process.poll() is None:
    time.sleep(0.2)
    rows = _rows(folder)
    if rows and (not curve or rows[-1]["step"] > curve[-1][0]):
      try:
        text = status.read_text()
      except OSError:  # it has just ended
        break
      if "VmRSS" in text:
        kib = int(text.partition("VmRSS:")[2].split()[0])
        curve.append((rows[-1]["step"], round(kib / 1024, 1)))
  if process.wait():
    raise errors.UserError(f"the soak run failed: see {folder / '0.log'}")
  late = [mib for at, mib in curve if at >= curve[-1][0] / 4]
  third = max(1, len(late) // 3)
  grown = statistics.median(late[-third:]) - statistics.median(late[:third])
  return {"curve": curve, "grown_mib": grown}


def _rows(folder):
  file = folder / "metrics.jsonl"
  lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
  rows = []
  for line in lines:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:  # it is being written
      break
  return rows


def workers(scale, options):
  """The same training by one worker and by two."""
  work, found = pathlib.Path(options.work), {}
  images = 16 * scale.worker_steps
  epochs = -(-images // 1424)
  flags = ["--encoder=resnet18(width=8)", "--batch_size=16", f"--epochs={epochs}", "--log_every=1"]
  flags += ["--attack_steps=2", f"--split=train[:{min(images, 1424)}]", "--learning_rate=0.01"]
  for count, strategy in ((1, "one"), (2, "multi_worker")):
    folder = work / f"workers-{count}-{time.time_ns()}"
    command = [sys.executable, "-m", "urkle_tf.train", *flags, f"--strategy={strategy}"]
    started = loopback.start(folder, [*command, f"--output_dir={folder / 'run'}"], count)
    if any(process.wait() for process in started):
      raise errors.UserError(f"the workers failed: see {folder / '0.log'}")
    found[count] = _rows(folder / "run")
  seconds = {count: rows[-1]["seconds"] / (len(rows) - 1) for count, rows in found.items()}
  first = zip(found[1][:10], found[2][:10], strict=True)
  return {
    "steps": len(found[1]),
    "step_seconds": seconds,
    "overhead": seconds[2] / seconds[1] - 1,
    "loss_difference": max(abs(one["loss"] / two["loss"] - 1) for one, two in first),
  }


def target(scale, options):
  """Minutes until a training's encoder, with a head on clean images, withstands PGD-20."""
  work = jobs.within(options.work)
  data = [f"--data_dir={os.path.abspath(options.data_dir)}"] if options.data_dir else []
  found = []
  for number, (system, flags) in enumerate(list(SYSTEMS.items())[: scale.systems]):
    tried = []
    for epochs in scale.budgets:
      run = f"{work}/target-{number}-{epochs}"
      head = ["--protocol=slf", *data, *scale.data[:1], f"--encoder={run}/encoder"]
      attack = ["--attacks=pgd(steps=20)", "--norm=linf", *data, *scale.data[:1], *scale.test]
      train = [*data, *scale.data, *flags, f"--epochs={epochs}"]
      attack += [f"--classifier={run}-head/classifier", "--eot=10"]
      jobs.run_stages(
        [
          jobs.Stage("train", scale.config, run, train),
          jobs.Stage("finetune", None, f"{run}-head", [*head, "--epochs=10"]),
          jobs.Stage("evaluate", None, f"{run}-report", attack),
        ]
      )
      report = json.loads((jobs.ROOT / f"{run}-report" / "report.json").read_text("utf-8"))
      tried.append(
        {
          "epochs": epochs,
          "minutes": pages.training_minutes(jobs.ROOT / run),
          "clean": report["clean"]["accuracy"],
          "accuracy": min(part["accuracy"] for part in report["attacks"]),
        }
      )
      if tried[-1]["accuracy"] >= scale.target:
        break
    found.append({"system": system, "flags": list(flags), "tried": tried})
  return {"target": scale.target, "systems": found}


PARTS = {part.__name__: part for part in (step, pipeline, growth, workers, soak, target)}


def run(options):
  """Measures what the JSON lacks, and writes it and the page after each part."""
  if options.scale not in SCALES:
    raise errors.unknown("scale", options.scale, SCALES)
  out = pathlib.Path(options.out)
  found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
  if found.setdefault("scale", options.scale) != options.scale:
    raise errors.UserError(f"{out} holds figures of --scale={found['scale']}: give another --out")
  found.setdefault("date", datetime.date.today().isoformat())
  found.setdefault("command", f"python launch/benchmark.py --suite --scale={options.scale}")
  for name, part in PARTS.items():
    if name in found:
      continue
    print(f"{name}: {part.__doc__.splitlines()[0]}", file=sys.stderr, flush=True)
    began = time.perf_counter()
    found[name] = part(SCALES[options.scale], options)
    found.setdefault("minutes", {})[name] = round((time.perf_counter() - began) / 60, 2)
    files.write(out, json.dumps(found, indent=1) + "\n")
  if options.page:
    files.write(pathlib.Path(options.page), speed_page.page(found))
