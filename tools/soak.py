#!/usr/bin/env python3
"""Kills a real training again and again, and compares what it ends with.

  python tools/soak.py --output_dir=runs/soak
  python tools/soak.py --output_dir=runs/soak --steps=20000 --kills=100 --start=exec --page

A training on the bundled digits runs twice: once undisturbed, and once under faults, after each
of which the same command is started again.  Faults are SIGKILL in the middle of a step, of a
checkpoint and of the export, SIGTERM, a full disk, a second process in the same folder, and
damage to the newest checkpoint; some batches are NaN, in both, and skipped.  In the end the two
must agree in every bit: weights, optimizer, schedule, statistics, metrics, exports.  Meanwhile
memory and open files are counted.

Everything is in OUTPUT_DIR/soak.json; --page also writes it to docs/results/soak.json and into
docs/reliability.md.  Where a fault strikes is drawn from --seed; how far the process is by then is
up to the machine.  Exits with 1 if anything was lost.
"""

import collections
import contextlib
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
import time
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

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
BAD = (50, 17)  # of so many steps, the batch of this one holds no numbers, in both trainings
TIMES = ("seconds", "images_per_second")  # of a row of metrics: all else must agree


@dataclasses.dataclass
class Fault:
  """One fault.

  Attributes:
    kind: of `FAULTS`; None where a process may run to its end.
    at: the step, or the checkpoint, after the process's start at which it strikes; from 1.
    where: how far into that: in [0, 1).
  """

  kind: str | None = None
  at: int = 1
  where: float = 0.0


# --- The process under test ---


class Torn:
  """A file of which only so many bytes get written, before the process kills itself."""

  def __init__(self, file, most):
    self._file, self._left = file, most

  def __getattr__(self, name):
    return getattr(self._file, name)

  def write(self, data):
    data = memoryview(data).cast("B")
    if len(data) >= self._left:
      self._file.write(data[: self._left])
      self._file.flush()
      kill_myself()
    self._left -= len(data)
    return self._file.write(data)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    kill_myself()  # before the move, at the latest


def kill_myself():
  """Ends this process at once, as the kernel does when memory is short."""
  os.kill(os.getpid(), signal.SIGKILL)


def train(words, fault, report):
  """Runs `urkle_tf.train` in this process, which tells on a pipe how far it is.

  Args:
    words: its flags.
    fault: a `Fault`; those that need to know what the process is doing are seen to here.
    report: the pipe's file descriptor.

  Returns:
    The exit status.
  """
  import tensorflow as tf

  from urkle_tf import export
  from urkle_tf import train as command
  from urkle_tf.data import pipeline
  from urkle_tf.training import checkpoints, metrics

  tell = lambda *words: os.write(report, (" ".join(map(str, words)) + "\n").encode())  # noqa: E731
  step_ended = metrics.Metrics.on_train_batch_end
  save, export_encoder = checkpoints.Checkpoints.save, export.export_encoder
  saves = 0

  def count_step(self, batch, logs=None):
    tell("step", int(self.model.optimizer.iterations))
    step_ended(self, batch, logs)

  def save_under_faults(self, step):
    nonlocal saves
    saves += 1
    if saves == fault.at and fault.kind in ("checkpoint", "move", "disk"):
      size = sum(np.asarray(variable.numpy()).nbytes for variable in self._variables)
      part = int(fault.where * size) if fault.kind == "checkpoint" else 10 * size
      if fault.kind == "disk":
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 + int(fault.where * size), usual[1]))
        try:
          save(self, step)
        finally:
          resource.setrlimit(resource.RLIMIT_FSIZE, usual)
      checkpoints.open = lambda *arguments: Torn(open(*arguments), part)  # noqa: SIM115
    save(self, step)
    tell("saved", step)

  def export_and_tell(*arguments, **options):
    tell("export")
    found = export_encoder(*arguments, **options)
    tell("exported")
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
  export.export_encoder = export_and_tell
  sys.argv = ["train", *words]
  try:
    command.main()
  except SystemExit as error:
    return error.code if isinstance(error.code, int) else int(error.code is not None)
  return 0


# --- Its keeper ---


class Process:
  """A started training.

  Args:
    words: its flags.
    fault: a `Fault`.
    log: a file that its output is appended to.
    start: "fork" of this process, which holds TensorFlow already, or "exec" a new interpreter.
  """

  def __init__(self, words, fault, log, start):
    reading, writing = os.pipe()
    sys.stdout.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
      if start == "exec":
        task = json.dumps({"words": words, "fault": dataclasses.asdict(fault), "report": writing})
        os.set_inheritable(writing, True)
        arguments = [sys.executable, str(pathlib.Path(__file__).resolve()), "--attempt", task]
        made = subprocess.Popen(arguments, stdout=output, stderr=output, close_fds=False)
        made.returncode = 0  # it is waited for below
        self.pid = made.pid
      else:
        self.pid = os.fork()
        if not self.pid:
          status = 70
          try:
            os.close(reading)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = train(words, fault, writing)
          except BaseException:
            import traceback

            traceback.print_exc()
          finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    self._said = os.fdopen(reading)

  def lines(self):
    """What it tells, as it comes, until its end."""
    with self._said:
      yield from (line.split() for line in self._said)

  def wait(self):
    """Its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

  def usage(self):
    """(MiB of memory, open files) now; (None, None) once it has ended."""
    try:
      pages_held = int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1])
      opened = len(os.listdir(f"/proc/{self.pid}/fd"))
    except (OSError, IndexError):
      return None, None
    return round(pages_held * os.sysconf("SC_PAGESIZE") / 2**20, 1), opened


class Keeper:
  """Starts trainings, and does to them what a fault says.

  Args:
    words: the flags of the training, without its folder.
    folder: where everything goes.
    every: steps between two looks at memory and files.
    start: as in `Process`.
  """

  def __init__(self, words, folder, every, start):
    self._words, self._folder, self._every, self._start = words, folder, every, start
    self.step_seconds = self.export_seconds = 0.0

  def run(self, name, fault, number=0):
    """Runs the training in the folder `name`, until its end or the fault's.

    Returns:
      A dict of what happened.
    """
    words = [*self._words, f"--output_dir={self._folder / name}"]
    log = self._folder / "logs" / f"{name}-{number:03}.log"
    process = Process(words, fault, log, self._start)
    began = time.monotonic()
    steps, times, curve, exporting = [], [], [], None
    found = {"fault": fault.kind, "second": None}
    for kind, *rest in process.lines():
      now = time.monotonic()
      if kind == "step":
        steps.append(int(rest[0]))
        times.append(now)
        if steps[-1] % self._every == 0 or len(steps) == 1:
          curve.append([steps[-1], *process.usage()])
        if fault.kind in ("training", "signal") and len(steps) == fault.at:
          time.sleep(fault.where * self.step_seconds)
          _send(process.pid, signal.SIGKILL if fault.kind == "training" else signal.SIGTERM)
        elif fault.kind == "second" and len(steps) == fault.at:
          second = Process(words, Fault(), log.with_suffix(".second.log"), self._start)
          collections.deque(second.lines(), 0)
          found["second"] = second.wait()
          _send(process.pid, signal.SIGKILL)
      elif kind == "export":
        exporting = now
        if fault.kind == "export":
          time.sleep(fault.where * self.export_seconds)
          _send(process.pid, signal.SIGKILL)
      elif kind == "exported" and exporting is not None:
        self.export_seconds = now - exporting
    status = process.wait()
    if len(times) > 2:
      self.step_seconds = statistics.median(b - a for a, b in itertools.pairwise(times))
    text = log.read_text(encoding="utf-8", errors="replace")
    curve = [point for point in curve if None not in point]
    return found | {
      "from": steps[0] - 1 if steps else None,
      "reached": steps[-1] if steps else None,
      "status": found["second"] if fault.kind == "second" else status,
      "own_status": status,
      "seconds": round(time.monotonic() - began, 2),
      "fell_back": "is damaged" in text,
      "traceback": "Traceback" in text,
      "curve": curve,
    }


def _send(pid, number):
  with contextlib.suppress(ProcessLookupError):  # it had just ended by itself
    os.kill(pid, number)


def damage(file, kind, dice):
  """Damages a file as `DAMAGES` says; returns the kind."""
  whole = file.read_bytes()
  content = b"" if kind == "emptied" else whole[: dice.randrange(1, len(whole))]
  while kind == "flipped":
    flipped = bytearray(whole)
    flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
    content = bytes(flipped)
    if not _harmless(content):  # as that of a time stamp is
      break
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
  waiting = list(damages)
  gaps = len([kind for kind in kinds if kind in ("training", "checkpoint")]) // (len(waiting) + 1)
  since = 0
  for kind in kinds:
    left = steps - (newest(run)[0][1] if newest(run) else 0)
    if kind != "export" and left < 3:
      kind = "export" if kind in KILLS else None
    if kind is None:
      continue
    at = 1
    if kind in ("training", "signal", "second"):
      at = dice.randint(1, max(1, min(stride, left - 2)))
    elif kind != "export":
      at = dice.randint(1, max(1, min(2, left // every)))
    fault = Fault(kind, at, dice.random())
    attempts.append(keeper.run("faulty", fault, len(attempts)) | {"damage": None})
    _show(attempts)
    since += 1
    # Two more must be there: the one that is fallen back to, and one to spare.
    if waiting and since > gaps and kind != "export" and len(newest(run)) >= 2:
      attempts[-1]["damage"] = damage(newest(run)[0][0], waiting.pop(), dice)
      since = 0
  attempts.append(keeper.run("faulty", Fault(), len(attempts)) | {"damage": None})
  _show(attempts)
  return attempts


def _show(attempts):
  last = attempts[-1]
  print(
    f"{len(attempts):4} {last['fault'] or 'to the end':12} from step {last['from']} to "
    f"{last['reached']}: exit status {last['status']}, {last['seconds']} s"
    + (", fell back to an older checkpoint" if last["fell_back"] else ""),
    flush=True,
  )


# --- Its verdict ---


def compare(one, other):
  """How two finished runs differ.

  Returns:
    {"arrays": how many were compared, "different": names of those that differ in any bit,
    "rows": whether all rows of metrics agree but for times, "exports": whether the exported
    weights do}.
  """
  states = []
  for run in (one, other):
    with np.load(newest(run)[0][0], allow_pickle=False) as stored:
      states.append({name: (stored[name].dtype, stored[name].tobytes()) for name in stored.files})
  names = sorted({*states[0], *states[1]})
  rows = []
  for run in (one, other):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows.append([{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines])
  prints = [
    json.loads((run / "encoder" / "metadata.json").read_text(encoding="utf-8"))["fingerprint"]
    for run in (one, other)
  ]
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


def summary(curve):
  """Memory and open files of one process: means over its second and its last quarter."""
  quarter = len(curve) // 4
  if not quarter:
    return None
  parts = {"second quarter": curve[quarter : 2 * quarter], "last quarter": curve[-quarter:]}
  return {
    name: {
      "from": part[0][0],
      "to": part[-1][0],
      "memory": round(statistics.fmean(p[1] for p in part), 1),
      "files": max(p[2] for p in part),
    }
    for name, part in parts.items()
  }


def blocks(result):
  """The parts of docs/reliability.md that were measured: {name: Markdown}."""
  rows = []
  for kind, (text, status) in FAULTS.items():
    hit = [a for a in result["attempts"] if a["fault"] == kind and a["status"] == status]
    if hit:
      rows.append([text, str(len(hit)), _ending(status)])
  for kind, text in DAMAGES.items():
    hit = [i for i, a in enumerate(result["attempts"]) if a["damage"] == kind]
    if hit:
      told = sum(result["attempts"][i + 1]["fell_back"] for i in hit)
      rows.append([text, str(len(hit)), f"warned, and resumed from the one before: {told}"])
  rows.append(
    ["a batch of NaN, in both runs", str(result["same"]["skipped"]), "its step was skipped"]
  )
  same, curve = result["same"], summary(result["undisturbed"]["curve"])
  alike = "the same in every bit" if not same["different"] else f"{len(same['different'])} differ"
  killed = sum(a["status"] == -signal.SIGKILL for a in result["attempts"])
  lines = [
    tables.markdown(["fault", "times", "what happened"], rows),
    "",
    "At the end, the run was compared with one that was never interrupted:",
    "",
    f"- {same['arrays']} arrays of the last checkpoint (weights, optimizer, schedule, statistics, "
    f"metrics): {alike}",
    f"- rows of `metrics.jsonl` except for the times: {'the same' if same['rows'] else 'others'}",
    f"- exported weights: {'the same' if same['exports'] else 'others'}",
    "",
    ("Nothing was lost. " if not complaints(result) else "Something was lost. ")
    + f"The run had {result['steps']} steps of the digits job and took "
    f"{result['seconds'] / 60:.1f} minutes on {result['cpus']} CPUs. It had "
    f"{len(result['attempts'])} starts, of which SIGKILL ended {killed}. Versions: TensorFlow "
    f"{result['versions']['tensorflow']}, Keras {result['versions']['keras']}, Python "
    f"{result['versions']['python']}.",
  ]
  usage = "The run was too short for a curve."
  if curve:
    usage = tables.markdown(
      ["steps of the undisturbed run", "resident memory, MiB, mean", "open files, most"],
      [
        [f"{p['from']} to {p['to']}", f"{p['memory']:.1f}", str(p["files"])] for p in curve.values()
      ],
    )
  return {"faults": "\n".join(lines), "usage": usage, "command": f"    {result['command']}"}


def _ending(status):
  if status == -signal.SIGKILL:
    return "the same command resumed it from its newest complete checkpoint"
  if status > 128:
    return f"ended its step, wrote a checkpoint, exited with {status}"
  return f"one line on standard error, exit code {status}; nothing was changed"


def _arguments():
  parser = jobs.Parser(__doc__)
  parser.add_argument("--output_dir", help="where everything goes; emptied first if it was ours")
  parser.add_argument("--steps", type=int, default=160, help="of the training")
  parser.add_argument("--kills", type=int, default=20, help="how many SIGKILLs, at least 3")
  parser.add_argument(
    "--others", type=int, default=1, help="SIGTERMs, full disks, second processes"
  )
  parser.add_argument("--damages", type=int, default=3, help="how often a checkpoint is damaged")
  parser.add_argument("--seed", type=int, default=0, help="decides where faults strike")
  parser.add_argument(
    "--start",
    choices=("fork", "exec"),
    default="fork",
    help="fork a process that holds TensorFlow already, or start a new interpreter each time",
  )
  parser.add_argument("--page", action="store_true", help="write the result into docs/")
  parser.add_argument("--attempt", help="used by --start=exec")
  return parser.parse_args()


def job(steps, kills):
  """The training under test, of digits by a small network.

  Returns:
    (its flags but for the folder, its steps, steps between checkpoints).
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
  if arguments.start == "fork":
    # Imported and not used: its threads, which no fork survives, start with its first use.
    from urkle_tf.training import pretraining  # noqa: F401

  began, dice = time.monotonic(), random.Random(arguments.seed)
  words, steps, every = job(arguments.steps, arguments.kills)
  keeper = Keeper(words, folder, max(1, steps // 200), arguments.start)
  undisturbed = keeper.run("undisturbed", Fault())
  if undisturbed["status"]:
    log = (folder / "logs" / "undisturbed-000.log").read_text(encoding="utf-8")
    raise errors.UserError(f"the training fails without any fault: {log.splitlines()[-1]}")
  kinds = plan(arguments.kills, ["signal", "disk", "second"] * arguments.others, dice)
  damages = [list(DAMAGES)[i % len(DAMAGES)] for i in range(arguments.damages)]
  attempts = soak(keeper, folder, steps, every, kinds, damages, dice)
  given = [word for word in sys.argv[1:] if not word.startswith(("--output_dir", "--page"))]
  result = {
    "command": " ".join(["bash tools/soak.sh", *given, "--output_dir=runs/soak"]),
    "steps": steps,
    "kills": arguments.kills,
    "seed": arguments.seed,
    "start": arguments.start,
    "seconds": round(time.monotonic() - began, 1),
    "cpus": os.cpu_count(),
    "versions": _versions(folder / "undisturbed"),
    "same": compare(folder / "undisturbed", folder / "faulty"),
    "undisturbed": undisturbed,
    "attempts": attempts,
  }
  files.write(folder / "soak.json", json.dumps(result, indent=1) + "\n")
  return result


def _versions(run):
  made = json.loads((run / "encoder" / "metadata.json").read_text(encoding="utf-8"))["versions"]
  return {**made, "python": sys.version.split()[0]}


def main():
  """The command line."""
  arguments = _arguments()
  if arguments.attempt:
    task = json.loads(arguments.attempt)
    sys.exit(train(task["words"], Fault(**task["fault"]), task["report"]))
  result = run(arguments)
  found = blocks(result)
  print("\n" + "\n\n".join(found[name] for name in ("faults", "usage")))
  if arguments.page:
    files.write(RESULTS, json.dumps(result, separators=(",", ":")) + "\n")
    files.write(PAGE, pages.page(PAGE.read_text(encoding="utf-8"), found))
  wrong = complaints(result)
  for line in wrong:
    print(f"error: {line}", file=sys.stderr)
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  jobs.main(main)
