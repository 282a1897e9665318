#!/usr/bin/env python3
"""What each piece of the SimCLR teacher's recipe is worth: one piece is changed at a time.

  python experiments/teacher_pieces.py --data_dir=DATA_DIR
  python experiments/teacher_pieces.py --data_dir=DATA_DIR --rows=recipe,both --epochs=10 --seeds=2
  python experiments/teacher_pieces.py --data_dir=DATA_DIR --epochs=10 --precision=mixed_bfloat16

The recipe is configs/cifar10_teacher.cfg with resnet18(width=16), half the batch and a learning
rate for that, and few epochs of train[:45000]: two take nine minutes of a core.  A linear head
learns from the same images and chooses its weight decay on a part of them; its clean accuracy is
that of train[45000:].  Each number of epochs and each precision has a table of its own.  The JSON
beside the page keeps what was measured: that is not run again, on whatever machine.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf.output import tables

NAME, CONFIG, DATASET = "teacher_pieces", "configs/cifar10_teacher.cfg", "cifar10"
LEARN, CHECK = "--split=train[:45000]", "--split=train[45000:]"
SMALL = [LEARN, "--encoder=resnet18(width=16)", "--batch_size=128", "--learning_rate=0.24"]
SMALL += ["--augment_on_device=false", "--checkpoint_every=176", "--log_every=44"]


@dataclasses.dataclass(frozen=True)
class Row(jobs.Row):
  """A row, whose `system` says what was changed.

  Attributes:
    flags: that change it.
    longer: how many times as many epochs it has.
  """

  flags: tuple[str, ...] = ()
  longer: int = 1


def _simclr(temperature=0.2, projector=1024, views=4, more=""):
  widths = f"projector={projector}, projection=128"
  return (
    f"--pretext=simclr(temperature={temperature}, denominator=all, {widths}, views={views}{more})"
  )


def _views(strength=1.0, min_scale=0.2, grey=0.1):
  return f"--augment=simclr(strength={strength}, min_scale={min_scale}, grey={grey})"


ROWS = (
  Row("recipe", "nothing"),
  Row("temperature", "temperature: 0.5 instead of 0.2", (_simclr(temperature=0.5),)),
  Row("rate", "learning rate: 0.06 instead of 0.24", ("--learning_rate=0.06",)),
  Row(
    "views",
    "2 views, twice the batch and epochs",
    (_simclr(views=2), "--batch_size=256"),
    longer=2,
  ),
  Row("loc", "loc: dense instead of sphere", ("--loc=dense",)),
  Row("norm", "projector: no batch norm", (_simclr(more=", projector_norm=false"),)),
  Row(
    "gammas", "gammas start at 1 instead of 0", ("--encoder=resnet18(width=16, zero_gamma=false)",)
  ),
  Row("crop", "crops from 0.08 instead of 0.2", (_views(min_scale=0.08),)),
  Row("jitter", "jitter: half as strong", (_views(strength=0.5),)),
  Row("decay", "weight decay: 5e-4 instead of 5e-3", ("--weight_decay=5e-4",)),
  Row("projector", "projector: 512 wide instead of 1024", (_simclr(projector=512),)),
  Row("grey", "grey: 0.2 instead of 0.1", (_views(grey=0.2),)),
  Row(
    "both",
    "gammas and grey: both changes",
    ("--encoder=resnet18(width=16, zero_gamma=false)", _views(grey=0.2)),
  ),
)


def folder(asked, given):
  """Where the runs of a table lie, as commands name it."""
  return f"{asked.work}/{given.epochs}-{given.precision}"


def stages(row, seed, asked, given):
  """The commands of a row and a seed."""
  run, extra = f"{folder(asked, given)}/{row.name}-{seed}", asked.extra
  own = [f"--dataset={DATASET}", f"--seed={seed}", *asked.shared]
  length = [f"--epochs={row.longer * given.epochs}", f"--warmup_epochs={0.1 * given.epochs:g}"]
  precision = f"--precision={given.precision}"
  train = [*SMALL, precision, *length, *row.flags, *own, *extra["train"]]
  head = [f"--encoder={run}/encoder", "--protocol=slf", LEARN, *own, *extra["finetune"]]
  tested = [f"--classifier={run}-head/classifier", CHECK, *own, "--attacks=fgsm", "--nochecks"]
  tested += ["--representation_examples=0", *extra["evaluate"]]
  return jobs.stages(run, CONFIG, train, head, tested)


def collect(work):
  """{row: {seed: percent}} of the finished runs in a folder."""
  found = {}
  for row in ROWS:
    if reports := pages.reports(work, row.name, "report"):
      clean = {str(s): pages.percent(one["clean"]["accuracy"]) for s, one in reports.items()}
      found[row.name] = clean
  return found


def table(found):
  """Each piece's accuracy, and what the recipe is ahead by, over the seeds that both have."""
  lines, recipe = [], found.get("recipe", {})
  for row in (row for row in ROWS if row.name in found):
    clean = found[row.name]
    ahead = pages.differences(recipe, clean) if row.name != "recipe" else []
    compared = pages.mean(ahead, "+.2f", ".2f")
    lines.append([row.system, pages.mean(list(clean.values())), compared, str(len(clean))])
  head = ["what is changed", "clean, %", "the recipe is ahead by", "seeds"]
  return tables.markdown(head, lines)


def run(argv=None):
  """The command line, without the handling of errors."""
  parser = jobs.parser(__doc__, NAME, ROWS, DATASET)
  parser.add_argument("--epochs", type=int, default=2, help="of each training; default 2")
  choices = ["float32", "mixed_bfloat16"]
  parser.add_argument("--precision", default="float32", choices=choices, help="of each training")
  given = parser.parse_args(argv)
  asked = jobs.read(given, NAME, ROWS, DATASET)
  title = f"{given.epochs} epochs" + (given.precision != "float32") * f", {given.precision}"
  kept = pages.kept(asked.json_file).get(title, {})

  def publish():
    found = pages.merge(asked.json_file, {title: collect(jobs.ROOT / folder(asked, given))})
    pages.update(asked.page_file, {title: table(found[title])})

  missing = (
    stages(row, seed, asked, given)
    for seed, row in asked.turns()
    if str(seed) not in kept.get(row.name, {})
  )
  jobs.run_rows(missing, publish, asked.page_file)


if __name__ == "__main__":
  jobs.main(run)
