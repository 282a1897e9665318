#!/usr/bin/env python3
"""Kills a real training again and again, and compares what it ends with.

  python tools/soak.py --output_dir=runs/soak
  python tools/soak.py --output_dir=runs/soak --steps=20000 --kills=100 --page

A training on the bundled digits runs twice: once undisturbed, and once under faults, after each
of which the same command is started again.  Faults are SIGKILL in the middle of a step, of a
checkpoint and of the export, SIGTERM, a full disk, a second process in the same folder, and
damage to the newest checkpoint; some batches are NaN, in both, and skipped.  In the end the two
must agree in every bit: weights, optimizer, schedule, statistics, metrics, exports.  Meanwhile
memory and open files are counted.

Everything is in OUTPUT_DIR/soak.json; --page also writes it to docs/results/soak.json and into
docs/reliability.md.  --seed decides where faults strike; how far the process has come
by then depends on the machine.  Exits with 1 if anything was lost.
"""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import numpy as np

from experiments import jobs, pages
from urkle_tf import errors
from urkle_tf.output import files, tables

RESULTS = jobs.ROOT / "docs" / "results" / "soak.json"
PAGE = jobs.ROOT / "docs" / "reliability.md"

# {kind: (what is done, the exit status that it must end with)}
FAULTS = {
  "training": ("SIGKILL while training, at a random moment of a random step", -signal.SIGKILL),
  "checkpoint": ("SIGKILL while a checkpoint is written, at a random byte", -signal.SIGKILL),
  "move": ("SIGKILL between a checkpoint's last byte and its move into place", -signal.SIGKILL),
  "export": ("SIGKILL while the encoder is exported, at a random moment", -signal.SIGKILL),
  "signal": ("SIGTERM while training", 128 + signal.SIGTERM),
  "disk": ("a checkpoint does not fit on the disk", 1),
  "second": ("the same command, while the first is running", 2),
}
KILLS = [kind for kind, (_, status) in FAULTS.items() if status == -signal.SIGKILL]
DAMAGES = {
  "truncated": "the newest checkpoint cut short, before the next start",
  "flipped": "a bit of the newest checkpoint flipped, before the next start",
  "emptied": "the newest checkpoint emptied, before the next start",
}
BAD = (50, 17)  # of 50 steps, the batch of this one holds no numbers, in both trainings
TIMES = ("seconds", "images_per_second")  # of a row of metrics: all else must agree


@dataclasses.dataclass
class Fault:
  """One fault.

  Attributes:
    kind: of `FAULTS`; None if a process may run to its end.
    at: the step, or the checkpoint, after the process's start at which it strikes; from 1.
    where: how far into that: in [0, 1).
    pause: how long that is, in seconds, if the clock decides.
  """

  kind: str | None = None
  at: int = 1
  where: float = 0.0
  pause: float = 0.0

  def strike(self, number=signal.SIGKILL):
    """Sends this process a signal in a moment."""
    timer = threading.Timer(self.where * self.pause, os.kill, (os.getpid(), number))
    timer.daemon = True  # the process may end before
    timer.start()


# --- The process under test ---


def kill_myself(*_):
  """Ends this process at once, as the kernel does when memory is short."""
  os.kill(os.getpid(), signal.SIGKILL)


def train(words, fault, every, file):
  """Runs `urkle_tf.train` in this process, which notes how far it is, and strikes it.

  Args:
    words: its flags.
    fault: a `Fault`.
    every: steps between two looks at memory and open files.
    file: where it writes notes, each a line: what, the time, and more.
  """
  import tensorflow as tf

  from urkle_tf import export
  from urkle_tf import train as command
  from urkle_tf.data import pipeline
  from urkle_tf.training import checkpoints, metrics

  noted = open(file, "w", buffering=1)  # noqa: SIM115
  note = lambda *words: print(*words, file=noted)  # noqa: E731
  step_ended = metrics.Metrics.on_train_batch_end
  save, export_encoder = checkpoints.Checkpoints.save, export.export_encoder
  saves, steps = itertools.count(1), itertools.count(1)

  def count_step(self, batch, logs=None):
    step, number = int(self.model.optimizer.iterations), next(steps)
    note("step", time.monotonic(), step, *usage() if step % every == 0 or number == 1 else ())
    if number == fault.at and fault.kind in ("training", "signal"):
      fault.strike(signal.SIGKILL if fault.kind == "training" else signal.SIGTERM)
    elif number == fault.at and fault.kind == "second":
      other = [sys.executable, "-m", "urkle_tf.train", *words]
      note("second", time.monotonic(), subprocess.run(other, env=jobs.environment()).returncode)
      kill_myself()
    step_ended(self, batch, logs)

  def save_under_faults(self, step):
    if next(saves) != fault.at or fault.kind not in ("checkpoint", "move", "disk"):
      return save(self, step)
    if fault.kind == "move":
      os.replace = kill_myself
      return save(self, step)
    if fault.kind == "checkpoint":  # killed at the byte where a full disk would be an error
      signal.signal(signal.SIGXFSZ, kill_myself)
    size = sum(np.asarray(variable.numpy()).nbytes for variable in self._variables)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 + int(fault.where * size), usual[1]))
    try:
      return save(self, step)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, usual)

  def export_under_faults(*arguments, **options):
    note("export", time.monotonic())
    if fault.kind == "export":
      fault.strike()
    found = export_encoder(*arguments, **options)
    note("exported", time.monotonic())
    return found

  views = pipeline.views

  def views_with_bad_ones(*arguments, start_step=0, **options):
    def spoil(step, batch):
      bad = step % BAD[0] == BAD[1]
      return batch | {"views": tf.where(bad, np.float32("nan"), batch["views"])}

    return views(*arguments, start_step=start_step, **options).enumerate(start_step).map(spoil)

  pipeline.views = views_with_bad_ones
  metrics.Metrics.on_train_batch_end = count_step
  checkpoints.Checkpoints.save = save_under_faults
  export.export_encoder = export_under_faults
  sys.argv = ["train", *words]
  command.main()


def usage():
  """(MiB of memory, open files) of this process."""
  held = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  opened = len(os.listdir("/proc/self/fd"))
  return round(held * os.sysconf("SC_PAGESIZE") / 2**20, 1), opened


# --- Its keeper ---


class Keeper:
  """Starts trainings, each with a fault.

  Args:
    words: the flags of the training, without its folder.
    folder: where everything goes.
    every: steps between two looks at memory and files.
  """

  def __init__(self, words, folder, every):
    self._words, self._folder, self._every = words, folder, every
    self._seconds = {"step": 0.0, "export": 0.0}  # that one takes

  def run(self, name, fault, number=0):
    """Runs the training in the folder `name`, until its end or the fault's.

    Returns:
      A dict of what happened.
    """
    log = self._folder / "logs" / f"{name}-{number:03}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    noted = log.with_suffix(".txt")
    noted.touch()
    fault.pause = self._seconds["export" if fault.kind == "export" else "step"]
    words = [*self._words, f"--output_dir={self._folder / name}"]
    task = {"words": words, "every": self._every, "file": str(noted)}
    task["fault"] = dataclasses.asdict(fault)
    began = time.monotonic()
    with open(log, "wb") as output:
      command = [sys.executable, __file__, "--attempt", json.dumps(task)]
      status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    text = log.read_text(encoding="utf-8", errors="replace")
    found = {"step": [], "second": [], "export": [], "exported": []}
    for line in noted.read_text(encoding="utf-8").splitlines():
      what, *numbers = line.split()
      found[what].append([*map(float, numbers)])
    steps, times = [int(row[1]) for row in found["step"]], [row[0] for row in found["step"]]
    if len(times) > 2:
      self._seconds["step"] = statistics.median(b - a for a, b in itertools.pairwise(times))
    if found["exported"]:
      self._seconds["export"] = found["exported"][0][0] - found["export"][0][0]
    return {
      "fault": fault.kind,
      "damage": None,  # what is done to its checkpoint afterwards
      "from": steps[0] - 1 if steps else None,
      "reached": steps[-1] if steps else None,
      "status": int(found["second"][0][1]) if found["second"] else status,
      "own_status": status,
      "seconds": round(time.monotonic() - began, 2),
      "fell_back": "is damaged" in text,
      "traceback": "Traceback" in text,
      "curve": [[int(row[1]), row[2], int(row[3])] for row in found["step"] if len(row) == 4],
    }


def damage(file, kind, dice):
  """Damages a file as `DAMAGES` says; returns the kind."""
  whole = file.read_bytes()
  content = b"" if kind == "emptied" else whole[: dice.randrange(1, len(whole))]
  if kind == "flipped":
    content = whole
    while _harmless(content):  # as the flipped bit of a time stamp is
      flipped = bytearray(whole)
      flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
      content = bytes(flipped)
  file.write_bytes(content)
  return kind


def _harmless(content):
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return archive.testzip() is None
  except Exception:  # many kinds, for what is no archive any more
    return False


def newest(run):
  """The newest checkpoints of a run, from new to old, each with its step."""
  found = sorted((run / "checkpoints").glob("step_*.npz"), reverse=True)
  return [(file, int(file.stem.removeprefix("step_"))) for file in found]


def plan(kills, others, dice):
  """The kinds of faults of a soak, in the order in which they strike."""
  exports = max(1, kills // 5)
  torn = max(1, kills // 4)
  kinds = ["training"] * (kills - exports - torn)
  kinds += ["checkpoint" if i % 3 else "move" for i in range(1, torn + 1)]
  kinds += others
  dice.shuffle(kinds)
  return [*kinds, *["export"] * exports]  # a finished training is exported again: no step is lost


def soak(keeper, folder, steps, every, kinds, damages, dice):
  """Trains under faults, to the end.

  Args:
    keeper: a `Keeper`.
    folder: its folder.
    steps: of the training.
    every: steps between checkpoints.
    kinds: of faults, in their order.
    damages: kinds of damage to checkpoints.
    dice: a `random.Random`.

  Returns:
    What happened, a dict for each start.
  """
  run, attempts = folder / "faulty", []
  stride = max(2, 2 * steps // max(1, len(kinds)))
  waiting, since = list(damages), 0
  gaps = sum(kind in ("training", "checkpoint") for kind in kinds) // (len(waiting) + 1)
  for kind in [*kinds, None]:
    left = steps - (newest(run)[0][1] if newest(run) else 0)
    trains = kind not in ("export", None)
    if trains and left < 3:
      if kind not in KILLS:
        continue
      kind, trains = "export", False
    saves = min(2, left // every)
    most = {"export": 1, "checkpoint": saves, "move": saves, "disk": saves}
    at = dice.randint(1, max(1, most.get(kind, min(stride, left - 2))))
    found = keeper.run("faulty", Fault(kind, at, dice.random()), len(attempts))
    print(
      f"{len(attempts):4} {kind or 'to the end':12} from step {found['from']} to "
      f"{found['reached']}: exit status {found['status']}, {found['seconds']} s"
      + ", fell back to an older checkpoint"
      * found["fell_back"],
      flush=True,
    )
    attempts.append(found)
    since += 1
    # Two more must be there: the one that is fallen back to, and one to spare.
    if waiting and since > gaps and trains and len(newest(run)) >= 2:
      found["damage"] = damage(newest(run)[0][0], waiting.pop(), dice)
      since = 0
  return attempts


# --- Its verdict ---


def compare(one, other):
  """How two finished runs differ.

  Returns:
    {"arrays": how many were compared, "different": names of those that differ in any bit,
    "rows": whether all rows of metrics agree except for times, "exports": whether the exported
    weights do}.
  """
  states = []
  for run in (one, other):
    with np.load(newest(run)[0][0], allow_pickle=False) as stored:
      states.append({name: (stored[name].dtype, stored[name].tobytes()) for name in stored.files})
  names = sorted({*states[0], *states[1]})
  timeless = lambda row: {name: value for name, value in row.items() if name not in TIMES}  # noqa: E731
  rows = [list(map(timeless, pages.metrics(run))) for run in (one, other)]
  prints = [pages.read(run / "encoder" / "metadata.json")["fingerprint"] for run in (one, other)]
  return {
    "arrays": len(names),
    "different": [name for name in names if states[0].get(name) != states[1].get(name)],
    "rows": rows[0] == rows[1],
    "skipped": rows[1][-1].get("skipped_steps"),
    "exports": prints[0] == prints[1],
  }


def complaints(result):
  """What a soak found wrong, a list of lines."""
  found, same = [], result["same"]
  if same["different"]:
    found.append(f"{len(same['different'])} of {same['arrays']} arrays differ")
  found += [f"the {name} differ" for name in ("rows", "exports") if not same[name]]
  damaged = False
  for number, attempt in enumerate(result["attempts"]):
    expected = FAULTS[attempt["fault"]][1] if attempt["fault"] else 0
    # A step that was the last, or an export, may have ended before the signal came.
    ended = attempt["own_status"] == 0 and attempt["fault"] in ("training", "export", "signal")
    if attempt["status"] != expected and not ended:
      found.append(f"start {number} ({attempt['fault']}) ended with {attempt['status']}")
    if attempt["traceback"]:
      found.append(f"start {number} ({attempt['fault']}) showed a traceback")
    if damaged and not attempt["fell_back"]:
      found.append(f"start {number} did not say that a checkpoint is damaged")
    damaged = attempt["damage"] is not None
  return found


def _usage(curve):
  """Memory and open files of one process, over its second and its last quarter, as Markdown."""
  quarter = len(curve) // 4
  if not quarter:
    return "The run was too short for a curve."
  lines = []
  for part in (curve[quarter : 2 * quarter], curve[-quarter:]):
    steps, memory, opened = zip(*part, strict=True)
    lines.append([f"{steps[0]} to {steps[-1]}", f"{statistics.fmean(memory):.1f}", max(opened)])
  head = ["steps of the undisturbed run", "resident memory, MiB, mean", "open files, most"]
  return tables.markdown(head, lines)


def blocks(result):
  """The parts of docs/reliability.md that were measured: {name: Markdown}."""
  attempts, same, versions, rows = *(result[k] for k in ("attempts", "same", "versions")), []
  for kind, (text, status) in FAULTS.items():
    hit = [a for a in attempts if a["fault"] == kind and a["status"] == status]
    rows.append([text, len(hit), _ending(status)])
  for kind, text in DAMAGES.items():
    after = [two["fell_back"] for one, two in itertools.pairwise(attempts) if one["damage"] == kind]
    rows.append([text, len(after), f"warned, and resumed from the one before: {sum(after)}"])
  rows.append(["a batch of NaN, in both runs", same["skipped"], "its step was skipped"])
  killed = sum(a["status"] == -signal.SIGKILL for a in attempts)
  differ = len(same["different"])
  alike = lambda good: "the same" if good else "others"  # noqa: E731
  faults = f"""{tables.markdown(["fault", "times", "what happened"], [r for r in rows if r[1]])}

At the end, the run was compared with one that was never interrupted:

- {same["arrays"]} arrays of the last checkpoint (weights, optimizer, schedule, statistics, \
metrics): {f"{differ} differ" if differ else "the same in every bit"}
- rows of `metrics.jsonl` except for the times: {alike(same["rows"])}
- exported weights: {alike(same["exports"])}

{"Something" if complaints(result) else "Nothing"} was lost. The run had {result["steps"]} steps \
of the digits job and took {result["seconds"] / 60:.1f} minutes on {result["cpus"]} CPUs. It had \
{len(attempts)} starts, of which SIGKILL ended {killed}. Versions: TensorFlow \
{versions["tensorflow"]}, Keras {versions["keras"]}, Python {versions["python"]}."""
  usage = _usage(result["undisturbed"]["curve"])
  return {"faults": faults, "usage": usage, "command": f"    {result['command']}"}


def _ending(status):
  if status == -signal.SIGKILL:
    return "the same command resumed it from its newest complete checkpoint"
  if status > 128:
    return f"ended its step, wrote a checkpoint, exited with {status}"
  return f"one line on standard error, exit code {status}; nothing was changed"


def _arguments():
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--output_dir", help="where everything goes; emptied first if it was ours")
  add("--steps", type=int, default=160, help="of the training")
  add("--kills", type=int, default=20, help="how many SIGKILLs, at least 3")
  add("--others", type=int, default=1, help="SIGTERMs, full disks, second processes")
  add("--damages", type=int, default=3, help="how often a checkpoint is damaged")
  add("--seed", type=int, default=0, help="decides where faults strike")
  add("--page", action="store_true", help="write the result into docs/")
  add("--attempt", help="used by itself")
  return parser.parse_args()


def job(steps, kills):
  """The training under test, of digits by a small network.

  Returns:
    (its flags except for the folder, its steps, steps between checkpoints).
  """
  batch, epochs = 16, 2 if steps < 100 else 5 if steps < 1000 else 20
  images = min(1200, batch * steps // epochs)
  epochs, every = steps // (images // batch), max(2, steps // (4 * kills))
  words = [
    *("--dataset=digits", f"--split=train[:{images}]", "--probe_split=train[1200:1260]"),
    *("--augment=crop(padding=1)", f"--epochs={epochs}", f"--batch_size={batch}"),
    *("--encoder=convnet(width=4, layers=2)", "--latent_dim=8"),
    *("--attack_steps=2", "--epsilon=0.1", "--learning_rate=0.05"),
    # Rows that are half full at a checkpoint are part of the state.
    *("--log_every=7", f"--checkpoint_every={every}"),
  ]
  return words, epochs * (images // batch), every


def run(arguments):
  """Runs the soak; returns its result."""
  if not arguments.output_dir:
    raise errors.UserError("give --output_dir=FOLDER: where everything goes")
  if arguments.kills < 3 or arguments.steps < 32:
    raise errors.UserError("give at least --kills=3 and --steps=32")
  folder = pathlib.Path(arguments.output_dir).absolute()
  if folder.exists() and any(folder.iterdir()) and not (folder / "soak.json").exists():
    raise errors.UserError(f"{str(folder)!r} holds something else: give another --output_dir")
  shutil.rmtree(folder, ignore_errors=True)
  files.write(folder / "soak.json", "{}\n")
  began, dice = time.monotonic(), random.Random(arguments.seed)
  words, steps, every = job(arguments.steps, arguments.kills)
  keeper = Keeper(words, folder, max(1, steps // 200))
  undisturbed = keeper.run("undisturbed", Fault())
  if undisturbed["status"]:
    log = (folder / "logs" / "undisturbed-000.log").read_text(encoding="utf-8")
    raise errors.UserError(f"the training fails without any fault: {log.splitlines()[-1]}")
  kinds = plan(arguments.kills, ["signal", "disk", "second"] * arguments.others, dice)
  damages = [list(DAMAGES)[i % len(DAMAGES)] for i in range(arguments.damages)]
  attempts = soak(keeper, folder, steps, every, kinds, damages, dice)
  made = pages.read(folder / "undisturbed" / "encoder" / "metadata.json")
  given = [word for word in sys.argv[1:] if not word.startswith(("--output_dir", "--page"))]
  result = {
    "command": " ".join(["bash tools/soak.sh", *given, "--output_dir=runs/soak"]),
    "steps": steps,
    "seconds": round(time.monotonic() - began, 1),
    "cpus": os.cpu_count(),
    "versions": {**made["versions"], "python": sys.version.split()[0]},
    "same": compare(folder / "undisturbed", folder / "faulty"),
    "undisturbed": undisturbed,
    "attempts": attempts,
  }
  pages.write(folder / "soak.json", result)
  return result


def main():
  """The command line."""
  arguments = _arguments()
  if arguments.attempt:
    task = json.loads(arguments.attempt)
    train(**{**task, "fault": Fault(**task["fault"])})
    return
  result = run(arguments)
  found = blocks(result)
  print("\n" + "\n\n".join(found[name] for name in ("faults", "usage")))
  if arguments.page:
    files.write(RESULTS, json.dumps(result, separators=(",", ":")) + "\n")
    pages.update(PAGE, found)
  wrong = complaints(result)
  for line in wrong:
    print(f"error: {line}", file=sys.stderr)
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  jobs.main(main)
