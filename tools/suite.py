"""`benchmark.py --suite`: every figure of docs/results/speed.md, of one machine, in one JSON.

Each measurement is a process of its own, so that its memory and its start are its own too, and one
after the other.  A part that the JSON holds already is not measured again.
"""

import datetime
import functools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

from experiments import jobs, pages
from tools import speed_page
from urkle_tf import errors
from urkle_tf.output import files

BENCHMARK = pathlib.Path(__file__).with_name("benchmark.py")

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
_TWO, _ONE = "--robustness=urkle(beta=0.1)", "--robustness=urkle(beta=0.1, attacked=1)"
VIEWS = {
  "two views, PGD-5": (_TWO, "--attack_steps=5", "--attack_step_size=0.05"),
  "one view, PGD-5": (_ONE, "--attack_steps=5", "--attack_step_size=0.05"),
  "one view, PGD-12": (_ONE, "--attack_steps=12", "--attack_step_size=0.021"),
}
PAIR = (  # how the trainings that attack one view or two differ from those of `SYSTEMS`
  *("--split=train[:20000]", "--encoder=convnet(width=16)", "--batch_size=200"),
  *("--pretext=simclr(projector=256)", "--augment=simclr(strength=0.5, flip=false)"),
  "--learning_rate=0.003",
)
RACING = ("PGD-7, plain", "PGD-2, bfloat16", "RS-FGSM, bfloat16")
TARGET = 0.97  # accuracy under PGD-20
BUDGETS = (1, 3, 6, 9, 12, 18)  # epochs, of which the first that reaches the target counts
HEAD = (
  *("--dataset=mnist", "--head=mlp(width=256, layers=3)", "--epochs=5", "--batch_size=500"),
  *("--learning_rate=0.003", "--weight_decay=1"),
)
TEST = (
  *("--dataset=mnist", "--attacks=pgd(steps=20)", "--norm=linf", "--epsilon=0.1", "--eot=10"),
  *("--nochecks", "--examples=2000"),
)

# {scale: flags that come last, of benchmark.py and of each command; how many of each list}.
SCALES = {
  "full": {"benchmark": {}, "train": (), "finetune": (), "evaluate": (), "most": None},
  "tiny": {
    "benchmark": {"encoder": "convnet(width=4, layers=2)", "batch_size": 4, "image_size": 8}
    | {"steps": 1, "timings": 2},
    "train": (
      *("--dataset=digits", "--split=train[:400]", "--encoder=convnet(width=4, layers=2)"),
      *("--pretext=vae(width=8, layers=2)", "--augment=crop(padding=1)", "--batch_size=100"),
    ),
    "finetune": ("--dataset=digits", "--epochs=2", "--batch_size=100"),
    "evaluate": ("--dataset=digits", "--examples=100"),
    "most": 1,
  },
}


@functools.cache
def _printed(*flags):
  """What one run of benchmark.py prints."""
  command = [sys.executable, BENCHMARK, "--strategy=one", *flags]
  done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment())
  if done.returncode:
    last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    raise errors.UserError(f"benchmark.py {' '.join(flags)} failed: {last}")
  return json.loads(done.stdout)


def _benchmark(scale, **options):
  return _printed(*(f"--{k}={v}" for k, v in {**options, **scale["benchmark"]}.items()))


def step(scale, options):
  """Images a second of the step, and its share of the ceiling."""
  found = []
  for width, batch in ((64, 32), (16, 128))[: scale["most"]]:
    for precision in ("float32", "mixed_bfloat16"):
      cell = {"encoder": f"resnet18(width={width})", "precision": precision, "batch_size": batch}
      row = _benchmark(scale, **cell, steps=1, timings=7)  # whose ratios are compared with goals
      found.append({"width": width, "precision": precision} | row)
  return found


def pipeline(scale, options):
  """Images a second of the input, on one core."""
  return _benchmark(scale, part="input", steps=30, batch_size=128)


def growth(scale, options):
  """Time and memory of a step, over one size at a time."""
  axes = {  # above 64 pixels the stem of the network is another
    "batch_size": (16, 32, 64, 128),
    "attack_steps": (1, 2, 4, 8),
    "image_size": (32, 64),
  }
  first = {name: values[0] for name, values in axes.items()}
  shared = {"part": "step", "encoder": "resnet18(width=16)", "steps": 1, "timings": 3}
  shown = ("passes", "step_seconds", "step_core_seconds", "step_memory_mib")
  shown += ("build_seconds", "compile_seconds")
  found = {name: [] for name in axes}
  for name, values in axes.items():
    for value in values:
      measured = _benchmark(scale, **{**shared, **first, name: value})
      found[name].append({"value": value, **{key: measured[key] for key in shown}})
  return found


def _trained(scale, options, run, flags, epochs):
  """Trains an encoder and a head, attacks them, and says what they withstand and took."""
  run = f"{jobs.within(options.work)}/{run}-{epochs}"
  where = [f"--data_dir={os.path.abspath(options.data_dir)}"] if options.data_dir else []
  folder = jobs.ROOT / run
  spent = folder / "spent.json"
  if folder.exists() and not spent.exists():
    shutil.rmtree(folder)  # of a training that is resumed, nobody knows what the first half took
  training, *others = jobs.stages(
    run,
    "configs/mnist_vae_urkle.cfg",
    [*where, *flags, f"--epochs={epochs}", *scale["train"]],
    [*where, f"--encoder={run}/encoder", *HEAD, *scale["finetune"]],
    [*where, f"--classifier={run}-head/classifier", *TEST, *scale["evaluate"]],
  )
  before = _spent()
  # A finished training is started again if its data moved, and then takes only seconds.
  if jobs.run_stages([training]) and not spent.exists():
    files.write(spent, json.dumps({"seconds": _spent() - before}))
  jobs.run_stages(others)
  report = pages.read(jobs.ROOT / f"{run}-report" / "report.json")
  rows = pages.metrics(folder)
  return {
    "flags": list(flags),
    "epochs": epochs,
    "minutes": pages.training_minutes(folder),
    "core_minutes": round(pages.read(spent)["seconds"] / 60, 2),
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
  number = list(SYSTEMS).index(system)
  tried = _trained(scale, options, f"option-{number}", SYSTEMS[system], epochs)
  return {"system": system, **tried}


def options(scale, options):
  """VAE+Urkle by each of the fast options for the same epochs: robust accuracy against minutes."""
  return [_system(scale, options, system, 1) for system in list(SYSTEMS)[: scale["most"]]]


def views(scale, options):
  """SimCLR+Urkle with both views attacked, and with one."""
  return [
    {"system": system, **_trained(scale, options, f"views-{number}", (*PAIR, *flags), 2)}
    for number, (system, flags) in enumerate(list(VIEWS.items())[: scale["most"]])
  ]


def target(scale, options):
  """The first number of epochs whose encoder, with a head on clean images, withstands PGD-20."""
  found = []
  for system in RACING[: scale["most"]]:
    tried = []
    for epochs in BUDGETS[: scale["most"]]:
      tried.append(_system(scale, options, system, epochs))
      if tried[-1]["accuracy"] >= TARGET:
        break
    found.append({"system": system, "tried": tried})
  return {"target": TARGET, "systems": found}


PARTS = {part.__name__: part for part in (step, pipeline, growth, options, views, target)}


def run(options):
  """Measures what the JSON lacks of the parts, and writes it after each, and then the page."""
  errors.one_of("scale", options.scale, SCALES)
  wanted = options.parts.split(",") if options.parts else list(PARTS)
  for name in wanted:
    errors.one_of("part", name, PARTS)
  out = pathlib.Path(options.out)
  found = pages.kept(out)
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
    pages.write(out, found)
  if options.page:
    files.write(pathlib.Path(options.page), speed_page.page(found))
