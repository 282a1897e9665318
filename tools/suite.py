"""`benchmark.py --suite`: every figure of docs/results/speed.md, of one machine, in one JSON.

Each measurement is a process of its own, so that its memory and its start are its own too, and one
after the other.  A part that the JSON holds already is not measured again.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

from experiments import jobs, pages
from tools import loopback, speed_page
from urkle_tf import errors
from urkle_tf.output import files

BENCHMARK = pathlib.Path(__file__).with_name("benchmark.py")


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large everything is.

  Attributes:
    widths: of ResNet-18, and for each how many images a step has.
    image_size: pixels.
    batch: images a batch of the pipeline.
    steps: steps a timing.
    timings: that a median is of, where growth is looked for.
    step_timings: likewise, of the steps of `widths`, whose ratios are compared with goals.
    batches: the batch sizes over which a step must grow linearly.
    attack_steps: likewise PGD's.
    sizes: likewise image sizes, in pixels of a side.
    growing: the network of these.
    soak_steps: of the run whose memory is watched.
    worker_steps: of one worker, and of two.
    data: flags of the trainings of which the robust accuracy is measured.
    config: their flagfile.
    head: flags of their heads.
    test: flags of their evaluation.
    epochs: of each option's training.
    systems: how many of `SYSTEMS` are tried.
    pairs: flags of the trainings that attack one view or two.
    target: accuracy under PGD-20.
    racing: how many of `RACING` are tried.
    budgets: epochs, of which the first that reaches the target counts.
  """

  widths: tuple[tuple[int, int], ...] = ((64, 32), (16, 128))
  image_size: int = 32
  batch: int = 128
  steps: int = 1
  timings: int = 3
  step_timings: int = 7
  batches: tuple[int, ...] = (16, 32, 64, 128)
  attack_steps: tuple[int, ...] = (1, 2, 4, 8)
  sizes: tuple[int, ...] = (32, 64)  # above 64 the stem of the network is another
  growing: str = "resnet18(width=16)"
  soak_steps: int = 2000
  worker_steps: int = 88
  data: tuple[str, ...] = ("--dataset=mnist",)
  config: str = "configs/mnist_vae_urkle.cfg"
  head: tuple[str, ...] = (
    "--head=mlp(width=256, layers=3)",
    "--epochs=5",
    "--batch_size=500",
    "--learning_rate=0.003",
    "--weight_decay=1",
  )
  test: tuple[str, ...] = ("--split=test", "--examples=2000", "--epsilon=0.1")
  epochs: int = 1
  systems: int = 100
  pairs: tuple[str, ...] = (
    "--split=train[:20000]",
    "--encoder=convnet(width=16)",
    "--pretext=simclr(projector=256)",
    "--augment=simclr(strength=0.5, flip=false)",
    "--batch_size=200",
    "--learning_rate=0.003",
  )
  target: float = 0.97
  racing: int = 100
  budgets: tuple[int, ...] = (1, 3, 6, 9, 12, 18)


SCALES = {
  "full": Scale(),
  "tiny": Scale(
    widths=((4, 4),),
    image_size=8,
    batch=4,
    timings=2,
    step_timings=2,
    batches=(4, 8),
    attack_steps=(1, 2),
    sizes=(8, 16),
    growing="convnet(width=4, layers=2)",
    soak_steps=40,
    worker_steps=12,
    data=(
      "--dataset=digits",
      "--split=train[:400]",
      "--encoder=convnet(width=8, layers=2)",
      "--pretext=vae(width=8, layers=2)",
    ),
    head=("--epochs=2", "--batch_size=100"),
    test=("--examples=100", "--epsilon=0.1"),
    systems=2,
    pairs=("--encoder=convnet(width=4, layers=2)", "--pretext=simclr(projector=16)"),
    target=0.3,
    racing=1,
    budgets=(1, 2),
  ),
}

# What is compared by robust accuracy against minutes: flags over the config's.
_SEVEN = ("--attack_steps=7", "--attack_step_size=0.025")
PLAIN = (*_SEVEN, "--precision=float32")
SYSTEMS = {
  "PGD-7, plain": PLAIN,
  "PGD-7, bfloat16 in the attack": (*PLAIN, "--attack_precision=mixed_bfloat16"),
  "PGD-7, bfloat16": _SEVEN,
  "PGD-7, bfloat16, rising from 1": (*_SEVEN, "--attack_schedule=rising(first=1)"),
  "PGD-7, bfloat16, controlled": (*_SEVEN, "--attack_schedule=controlled(every=100)"),
  "PGD-2, bfloat16": (),
  "PGD-2, bfloat16, carried": ("--attack=pgd(carry=true)",),
  "RS-FGSM, bfloat16": ("--attack=rs_fgsm",),
  "RS-FGSM, bfloat16, carried": ("--attack=rs_fgsm(carry=true)",),
  "RS-FGSM, bfloat16, GradAlign": ("--attack=rs_fgsm", "--robustness=urkle(beta=1, align=1)"),
}
VIEWS = {
  "two views, PGD-5": (
    "--robustness=urkle(beta=0.1)",
    "--attack_steps=5",
    "--attack_step_size=0.05",
  ),
  "one view, PGD-5": (
    "--robustness=urkle(beta=0.1, attacked=1)",
    "--attack_steps=5",
    "--attack_step_size=0.05",
  ),
  "one view, PGD-12": (
    "--robustness=urkle(beta=0.1, attacked=1)",
    "--attack_steps=12",
    "--attack_step_size=0.021",
  ),
}
RACING = ("PGD-7, plain", "PGD-2, bfloat16", "RS-FGSM, bfloat16")


def _benchmark(folder, **options):
  """One run of benchmark.py, as what it prints; what a folder has of it is not run again."""
  flags = [f"--{name}={value}" for name, value in options.items()]
  digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:16]
  kept = pathlib.Path(folder) / "benchmarks" / f"{digest}.json"
  if kept.exists():
    return json.loads(kept.read_text(encoding="utf-8"))
  done = subprocess.run(
    [sys.executable, BENCHMARK, "--strategy=one", *flags],
    capture_output=True,
    text=True,
    env=jobs.environment(),
    check=False,
  )
  if done.returncode:
    raise errors.UserError(f"benchmark.py {' '.join(flags)} failed: {done.stderr[-400:]}")
  kept.parent.mkdir(parents=True, exist_ok=True)
  files.write(kept, done.stdout)
  return json.loads(done.stdout)


def step(scale, options):
  """Images a second of the step, and its share of the ceiling."""
  return [
    {
      "width": width,
      "precision": precision,
      **_benchmark(
        options.work,
        encoder=f"resnet18(width={width})",
        precision=precision,
        attack_steps=5,
        image_size=scale.image_size,
        batch_size=batch,
        steps=scale.steps,
        timings=scale.step_timings,
      ),
    }
    for width, batch in scale.widths
    for precision in ("float32", "mixed_bfloat16")
  ]


def pipeline(scale, options):
  """Images a second of the input, on one core."""
  sizes = {"image_size": scale.image_size, "batch_size": scale.batch}
  return _benchmark(options.work, part="input", steps=30, timings=5, **sizes)


def growth(scale, options):
  """Time and memory of a step, over one size at a time."""
  middle = {
    "encoder": scale.growing,
    "image_size": scale.sizes[0],
    "batch_size": scale.batches[0],
    "attack_steps": scale.attack_steps[0],
    "steps": scale.steps,
    "timings": scale.timings,
  }
  axes = {
    "batch_size": scale.batches,
    "attack_steps": scale.attack_steps,
    "image_size": scale.sizes,
  }
  shown = ("passes", "step_seconds", "step_core_seconds", "step_memory_mib")
  shown += ("build_seconds", "compile_seconds")
  return {
    name: [
      {"value": value, **{key: found[key] for key in shown}}
      for value in values
      for found in [_benchmark(options.work, part="step", **{**middle, name: value})]
    ]
    for name, values in axes.items()
  }


def soak(scale, options):
  """A training's resident memory as it goes on: [(step, MiB)]."""
  folder = pathlib.Path(options.work) / f"soak-{time.time_ns()}"
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
  return {"steps": epochs * 89, "curve": curve, "grown_mib": grown}


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
  images = 32 * scale.worker_steps
  epochs = -(-images // 1408)
  flags = ["--encoder=convnet(width=32)", "--batch_size=32", f"--epochs={epochs}", "--log_every=1"]
  flags += ["--attack_steps=2", f"--split=train[:{min(images, 1408)}]", "--learning_rate=0.01"]
  for count, strategy in ((1, "one"), (2, "multi_worker")):
    folder = work / f"workers-{count}-{time.time_ns()}"
    command = [sys.executable, "-m", "urkle_tf.train", *flags, f"--strategy={strategy}"]
    started = loopback.start(folder, [*command, f"--output_dir={folder / 'run'}"], count)
    if any(process.wait() for process in started):
      raise errors.UserError(f"the workers failed: see {folder / '0.log'}")
    found[count] = _rows(folder / "run")
  seconds = {count: rows[-1]["seconds"] / (len(rows) - 1) for count, rows in found.items()}
  ten = zip(found[1][:10], found[2][:10], strict=True)
  differences = [abs(one["loss"] / two["loss"] - 1) for one, two in ten]
  return {
    "steps": len(found[1]),
    "step_seconds": seconds,
    "overhead": seconds[2] / seconds[1] - 1,
    "first_difference": differences[0],
    "loss_difference": max(differences),
  }


def _trained(scale, options, name, flags, common, epochs):
  """Trains an encoder and a head, attacks them, and says what they withstand and took."""
  work = jobs.within(options.work)
  where = [f"--data_dir={os.path.abspath(options.data_dir)}"] if options.data_dir else []
  run = f"{work}/{name}-{epochs}"
  data = [*where, scale.data[0]]
  folder = jobs.ROOT / run
  spent = folder / "spent.json"
  if folder.exists() and not spent.exists():
    shutil.rmtree(folder)  # of a training that goes on, nobody knows what the first half took
  before = _spent()
  training = jobs.Stage("train", scale.config, run, [*where, *common, *flags, f"--epochs={epochs}"])
  if jobs.run_stages([training]):
    files.write(spent, json.dumps({"seconds": _spent() - before}))
  jobs.run_stages(
    [
      jobs.Stage(
        "finetune",
        None,
        f"{run}-head",
        ["--protocol=slf", *data, *scale.head, f"--encoder={run}/encoder"],
      ),
      jobs.Stage(
        "evaluate",
        None,
        f"{run}-report",
        [
          *("--attacks=pgd(steps=20)", "--norm=linf", "--eot=10", "--nochecks"),
          *(*data, *scale.test, f"--classifier={run}-head/classifier"),
        ],
      ),
    ]
  )
  report = json.loads((jobs.ROOT / f"{run}-report" / "report.json").read_text("utf-8"))
  rows = _rows(folder)
  return {
    "epochs": epochs,
    "minutes": pages.training_minutes(folder),
    "core_minutes": round(json.loads(spent.read_text("utf-8"))["seconds"] / 60, 2),
    "steps": [row["attack_steps"] for row in rows if "attack_steps" in row][-1:],
    "kl": rows[-1]["kl"],
    "clean": report["clean"]["accuracy"],
    "accuracy": min(part["accuracy"] for part in report["attacks"]),
    "examples": report["clean"]["examples"],
  }


def _spent():
  """Processor seconds of all processes that were started here and have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _system(scale, options, system, epochs):
  flags = SYSTEMS[system]
  name = f"option-{list(SYSTEMS).index(system)}"
  tried = _trained(scale, options, name, flags, scale.data, epochs)
  return {"system": system, "flags": list(flags), **tried}


def options(scale, options):
  """VAE+Urkle by each of the fast options for the same epochs: robust accuracy against minutes."""
  return [
    _system(scale, options, system, scale.epochs) for system in list(SYSTEMS)[: scale.systems]
  ]


def views(scale, options):
  """SimCLR+Urkle with both views attacked, and with one."""
  found = []
  for number, (system, flags) in enumerate(VIEWS.items()):
    name, common = f"views-{number}", (scale.data[0], *scale.pairs)
    tried = _trained(scale, options, name, flags, common, 2 * scale.epochs)
    found.append({"system": system, "flags": list(flags), **tried})
  return found


def target(scale, options):
  """The first number of epochs whose encoder, with a head on clean images, withstands PGD-20."""
  found = []
  for system in RACING[: scale.racing]:
    tried = []
    for epochs in scale.budgets:
      tried.append(_system(scale, options, system, epochs))
      if tried[-1]["accuracy"] >= scale.target:
        break
    found.append({"system": system, "flags": list(SYSTEMS[system]), "tried": tried})
  return {"target": scale.target, "systems": found}


_ALL = (step, pipeline, growth, workers, soak, options, views, target)
PARTS = {part.__name__: part for part in _ALL}


def run(options):
  """Measures what the JSON lacks of the parts, and writes it after each, and then the page."""
  if options.scale not in SCALES:
    raise errors.unknown("scale", options.scale, SCALES)
  wanted = options.parts.split(",") if options.parts else list(PARTS)
  for name in wanted:
    if name not in PARTS:
      raise errors.unknown("part", name, PARTS)
  out = pathlib.Path(options.out)
  found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
  if found.setdefault("scale", options.scale) != options.scale:
    raise errors.UserError(f"{out} holds figures of --scale={found['scale']}: give another --out")
  found.setdefault("date", datetime.date.today().isoformat())
  found.setdefault("command", f"python tools/benchmark.py --suite --scale={options.scale}")
  for name in wanted:
    if name in found:
      continue
    print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", file=sys.stderr, flush=True)
    began, load = time.perf_counter(), os.getloadavg()[0]
    found[name] = PARTS[name](SCALES[options.scale], options)
    found.setdefault("minutes", {})[name] = round((time.perf_counter() - began) / 60, 2)
    # More than the cores: others were at work too.
    found.setdefault("loads", {})[name] = [round(load, 2), round(os.getloadavg()[0], 2)]
    files.write(out, json.dumps(found, indent=1) + "\n")
  if options.page:
    files.write(pathlib.Path(options.page), speed_page.page(found))
