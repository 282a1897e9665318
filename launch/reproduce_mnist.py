#!/usr/bin/env python3
"""Table 1 of the Urkle paper, on MNIST, from images to table.

  python launch/reproduce_mnist.py --data_dir=DATA_DIR
  python launch/reproduce_mnist.py --data_dir=DATA_DIR --rows=vae,vae_urkle --seeds=1,vae_urkle=5

DATA_DIR holds mnist prepared by TensorFlow Datasets, or gets it with --download.  Each row of
each seed is trained, given a head, attacked and added to the table; what is there already is not
done again, so the same command goes on after an interruption.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "launch")]  # a clone that was not installed works too

import mnist_page  # noqa: E402

from urkle_tf import errors, files  # noqa: E402

LOSS_CAP = 5.0  # M of Proposition 1, nats


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table.

  Attributes:
    name: configs/mnist_NAME.cfg is how it is trained.
    system: what the table calls it.
    labels: whether its training reads labels, and so makes the classifier itself.
    stochastic: whether its z is random, so that it has a bound.
    paper: the paper's (clean, adversarial) accuracy in percent; None where it has no such row.
    seeds: how many seeds are run if the user does not say.
  """

  name: str
  system: str
  labels: bool
  stochastic: bool
  paper: tuple[float, float] | None = None
  seeds: int = 1


ROWS = (
  Row("standard", "Standard", True, False, (99.3, 1.0)),
  Row("at", "AT", True, False, (99.0, 98.5)),
  Row("trades", "TRADES", True, False, (99.1, 98.3)),
  Row("supervised_urkle", "Supervised+Urkle", True, True),
  Row("ae", "AE", False, False),
  Row("ae_trades", "AE+TRADES", False, False, (99.1, 96.6), seeds=3),
  Row("vae", "VAE", False, True),
  Row("vae_urkle", "VAE+Urkle", False, True, (99.1, 98.0), seeds=3),
)


def find_row(name):
  """The row of a name ("vae_urkle") or a system ("VAE+Urkle")."""
  for row in ROWS:
    if name.strip().lower() in (row.name, row.system.lower()):
      return row
  raise errors.unknown("row", name.strip(), [row.name for row in ROWS])


def parse_seeds(text):
  """{row name: how many seeds} of "2", "ae_trades=3,vae_urkle=3" or "1,VAE+Urkle=3"."""
  counts = {row.name: row.seeds for row in ROWS}
  for position, part in enumerate(filter(None, map(str.strip, (text or "").split(",")))):
    name, equals, count = part.rpartition("=")
    if not re.fullmatch("[1-9][0-9]*", count) or (not equals and position):
      raise errors.UserError(
        f"--seeds={text}: give how many, --seeds=2, and what differs, --seeds=1,vae_urkle=3; the "
        "seeds are 0, 1, ..."
      )
    for row in [find_row(name)] if equals else ROWS:
      counts[row.name] = int(count)
  return counts


# --- Running ---


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command, the folder that it fills, and the config that it reads."""

  module: str
  config: str
  folder: str
  arguments: list[str]

  @property
  def words(self):
    """The command's words after `python`."""
    given = [f"--flagfile={self.config}", *self.arguments, f"--output_dir={self.folder}"]
    return ["-m", f"urkle_tf.{self.module}", *given]

  @property
  def text(self):
    """The command as a shell takes it."""
    return " ".join(["python", *map(_quoted, self.words)])


def _quoted(word):
  """--name='value with spaces', which reads better than '--name=value with spaces'."""
  name, equals, value = word.partition("=")
  return name + equals + (shlex.quote(value) if value else "")


def stages(row, seed, work, shared=(), extra=None):
  """The commands of one row and seed.

  Args:
    row: a `Row`.
    seed: an int.
    work: the folder of all runs.
    shared: arguments of every command.
    extra: {module: arguments of that command}, after all others.

  Returns:
    `Stage`s, in order.
  """
  extra, run = extra or {}, f"{work}/{row.name}-{seed}"
  shared = [*shared, f"--seed={seed}"]
  found = [Stage("train", f"configs/mnist_{row.name}.cfg", run, shared)]
  classifier = f"{run}/classifier"
  if not row.labels:
    arguments = [f"--encoder={run}/encoder", *shared]
    found.append(Stage("finetune", "configs/mnist_finetune.cfg", f"{run}-head", arguments))
    classifier = f"{run}-head/classifier"
  arguments = [f"--classifier={classifier}", *shared]
  if row.stochastic:
    arguments.append(f"--loss_cap={LOSS_CAP}")
  found.append(Stage("evaluate", "configs/mnist_evaluate.cfg", f"{run}-report", arguments))
  return [
    dataclasses.replace(stage, arguments=stage.arguments + list(extra.get(stage.module, ())))
    for stage in found
  ]


def run_stages(found):
  """Runs commands one after the other; those that once ran to their end are left out.

  A command finds out itself what is finished, and refuses a folder of other settings.  What it
  was asked is kept in the folder, so that a finished one need not even be started.

  Args:
    found: `Stage`s; each needs the one before.

  Returns:
    Whether anything was run.
  """
  ran = False
  for stage in found:
    asked = stage.text + "\n\n" + (ROOT / stage.config).read_text(encoding="utf-8")
    stamp = ROOT / stage.folder / "finished.txt"
    if not ran and stamp.exists() and stamp.read_text(encoding="utf-8") == asked:
      print(f"finished: {stage.text}", flush=True)
      continue
    print(stage.text, flush=True)
    code = subprocess.run([sys.executable, *stage.words], cwd=ROOT, env=_environment()).returncode
    if code:
      print(f"error: this command failed (exit code {code}): {stage.text}", file=sys.stderr)
      sys.exit(code if code > 0 else 1)
    files.write(stamp, asked)
    ran = True
  return ran


def _environment():
  path = [str(ROOT), os.environ.get("PYTHONPATH")]
  return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


# --- Writing ---


def commands(document, options=""):
  """The commands, as Markdown: for everything, for each row, and what they run."""
  (example,) = (row for row in ROWS if row.name == "vae_urkle")
  run = [stage.text for stage in stages(example, 0, "RUNS", ["--data_dir=DATA_DIR"])]
  lines = ["    python launch/reproduce_mnist.py" + options, "", "One row of the table:", ""]
  lines += ["    " + row["command"] for row in document["rows"]]
  lines += ["", f"For each seed that runs, here for {example.system},", ""]
  return "\n".join(lines + ["    " + line for line in run])


def publish(work, page_file, json_file, options=""):
  """Writes mnist.json, the page and its figure, of all that is finished so far."""
  document = mnist_page.collect(work, ROWS, options)
  if not document["rows"]:
    return
  files.write(json_file, json.dumps(document, indent=1) + "\n")
  page_file.parent.mkdir(parents=True, exist_ok=True)
  mnist_page.draw(document, page_file.with_suffix(".png"))
  pictures = {
    "": "Clean and adversarial accuracy of every row",
    "_latent_map": "Samples of z, clean and attacked",
    "_reconstructions": "Reconstructions by VAE+Urkle",
  }
  names = {title: f"{page_file.stem}{ending}.png" for ending, title in pictures.items()}
  shown = [
    f"![{title}]({name})" for title, name in names.items() if (page_file.parent / name).exists()
  ]
  blocks = {
    "table": mnist_page.table(document),
    "bound": mnist_page.bound_table(document),
    "pictures": "\n\n".join(shown),
    "commands": commands(document, options),
  }
  text = page_file.read_text(encoding="utf-8") if page_file.exists() else mnist_page.TEMPLATE
  files.write(page_file, mnist_page.page(text, blocks))


# --- The command line ---


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise errors.UserError(message)


def _arguments(argv):
  parser = _Parser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  add = parser.add_argument
  names = ", ".join(row.name for row in ROWS)
  add("--data_dir", help="where mnist lies, prepared by TensorFlow Datasets (or TFDS's own folder)")
  add("--download", action="store_true", help="let TFDS download and prepare it")
  add("--work", help="the folder of all runs; default runs/mnist")
  add("--rows", help=f"which, with commas in between; default all: {names}")
  usual = ", ".join(f"{row.name}={row.seeds}" for row in ROWS if row.seeds > 1)
  add("--seeds", help=f"how many: 2, or 1,vae_urkle=5; default 1, {usual}")
  add("--out_md", help="the page; default docs/results/mnist.md; its pictures lie beside it")
  add("--out_json", help="the figures; default docs/results/mnist.json")
  small = parser.add_argument_group(
    "trying it out on less (the page then goes into the folder of all runs)",
    '--dataset=digits --extra_train="--epochs=1 --examples=100"; both apply to all rows',
  )
  small.add_argument("--dataset", help="another data set: digits is bundled")
  for module in ("train", "finetune", "evaluate"):
    small.add_argument(
      f"--extra_{module}", default="", help=f"more flags for every urkle_tf.{module}"
    )
  return parser.parse_args(argv)


def within(folder):
  """A folder as the commands are to name it: from the clone, wherever that lies."""
  path = pathlib.Path(folder).absolute()
  return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def reproduce(argv=None):
  """The command line, without the handling of errors."""
  given = _arguments(argv)
  wanted = [find_row(name) for name in given.rows.split(",")] if given.rows else list(ROWS)
  counts = parse_seeds(given.seeds)
  work = within(given.work or ROOT / "runs" / "mnist")
  extra = {}
  for module in ("train", "finetune", "evaluate"):
    extra[module] = shlex.split(getattr(given, f"extra_{module}"))
  shared, smaller = [], bool(given.dataset or any(extra.values()))
  if given.dataset:
    shared.append(f"--dataset={given.dataset}")
  data_dir = given.data_dir and os.path.abspath(given.data_dir)
  if data_dir:
    if not os.path.isdir(data_dir) and not given.download:
      raise errors.UserError(
        f"--data_dir={given.data_dir} is no folder: prepare mnist there, or add --download"
      )
    shared.append(f"--data_dir={within(data_dir)}")
  if given.download:
    shared.append("--download")

  # The commands as others can give them: no path of this machine.
  options = " --data_dir=DATA_DIR"
  if given.dataset:
    options = f" --dataset={given.dataset}"
  for module, flags in extra.items():
    if flags:
      text = shlex.join(flags)  # which has single quotes inside
      quoted = shlex.quote(text) if re.search(r'[$`"\\!]', text) else f'"{text}"'
      options += f" --extra_{module}={quoted}"

  usual = ROOT / work if smaller else ROOT / "docs" / "results"
  page_file = pathlib.Path(given.out_md or usual / "mnist.md").absolute()
  json_file = pathlib.Path(given.out_json or usual / "mnist.json").absolute()
  ran = False
  for seed in range(max(counts[row.name] for row in wanted)):  # a whole table of one seed first
    for row in wanted:
      if seed < counts[row.name] and run_stages(
        stages(row, seed, work, shared=shared, extra=extra)
      ):
        publish(ROOT / work, page_file, json_file, options)
        ran = True
  pictures = {
    ending: page_file.with_name(f"{page_file.stem}_{ending}.png")
    for ending in ("latent_map", "reconstructions")
  }
  folders = {name: ROOT / work / f"{name}-0" / "encoder" for name in ("vae", "vae_urkle")}
  folders = {find_row(name).system: path for name, path in folders.items() if path.exists()}
  if folders and (ran or not pictures["latent_map"].exists()):
    dataset = given.dataset or "mnist"
    mnist_page.draw_latent_map(folders, pictures["latent_map"], dataset, data_dir)
  drawn = ROOT / work / "vae_urkle-0" / "figures" / "reconstructions.png"
  if drawn.exists():
    shutil.copyfile(drawn, pictures["reconstructions"])
  publish(ROOT / work, page_file, json_file, options)
  print(f"table: {page_file}")


def main():
  """The command line."""
  try:
    reproduce()
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("error: interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
  main()
