#!/usr/bin/env python3
r"""Every system of the papers on CIFAR-10, with equal budgets: Tables 2 and 3 at any scale.

  python experiments/compare_cifar10.py --data_dir=DATA_DIR
  python experiments/compare_cifar10.py --data_dir=DATA_DIR --rows=simclr,simclr_urkle --seeds=3
  python experiments/compare_cifar10.py --data_dir=DATA_DIR --config=configs/cifar10.cfg \
    --extra_evaluate=--examples=10000 --work=runs/cifar10_full

DATA_DIR holds cifar10, prepared by TensorFlow Datasets or with --download.  Each row is
pre-trained.  It then gets a classifier for each number of labels, which is attacked, corrupted and
calibrated.  Finished parts are not run again, so the same command resumes after an interruption.
--config sets the budget: the first two commands use the small one, the third the paper's.
"""

import dataclasses
import functools
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import compare_page, jobs, pages
from urkle_tf import command_line, errors, spec

NAME = "cifar10_small"
DEFAULTS = {
  "labels": "all,5000,1000",
  "strong_labels": "all",
  "strong_seeds": 1,
  "config": f"configs/{NAME}.cfg",
  "equal": "images",
}


@dataclasses.dataclass(frozen=True)
class Row(jobs.Row):
  """A row of the table: how an encoder is made, and how a classifier of it.

  Attributes:
    pretext: spec; "{teacher}" is filled in.
    robustness: spec.
    trained: images in the training pass per image of the data.
    attacked: attacked images per image of the data.
    augment: spec; None for that of the config.
    protocol: spec of the protocol that makes the classifier; None if the pretext makes it.
    encoder: the row whose encoder is used; None to train one.
    teacher: the row whose encoder is the teacher, or None.
    flags: further flags of its training.
  """

  pretext: str
  robustness: str
  trained: int
  attacked: int
  augment: str | None = None
  protocol: str | None = "slf"
  encoder: str | None = None
  teacher: str | None = None
  flags: tuple[str, ...] = ()

  def gradients(self, attack_steps):
    """Gradient evaluations of the training per image of the data."""
    return self.trained + self.attacked * attack_steps


_SIMCLR = "simclr(temperature=0.1)"
_DISTIL = "distil(teacher='{teacher}/encoder', start=true)"
_CLUSTERS = "clusters(teacher='{teacher}/encoder', count=50, start=true)"
_MIXED = "augmix(base=simclr)"
_WEAK = "crop(padding=4)"  # what supervised training and distillation see
ROWS = (
  Row("simclr", "SimCLR", _SIMCLR, "none", 2, 0, seeds=3),
  Row("rocl", "RoCL", _SIMCLR, "rocl", 3, 1, seeds=5),
  Row("acl_ds", "ACL-DS", _SIMCLR, "acl(form=ds)", 4, 2, seeds=3),
  Row("simclr_urkle", "SimCLR+Urkle", _SIMCLR, "urkle(k=40, attacked=1)", 3, 1, seeds=5),
  Row("byol_urkle", "BYOL+Urkle", "byol", "urkle(k=8, attacked=1)", 3, 1),
  Row("barlow_urkle", "Barlow Twins+Urkle", "barlow_twins", "urkle(k=8, attacked=1)", 3, 1),
  Row("distil", "Distil+Urkle", _DISTIL, "urkle(k=4)", 2, 1, _WEAK, teacher="simclr", seeds=3),
  Row(
    *("clusters", "AT on clusters", _CLUSTERS, "adversarial_training", 1, 1, _WEAK),
    teacher="simclr",
    seeds=3,
  ),
  Row("urrl_head", "URRL, frozen", _SIMCLR, "none", 2, 0, _MIXED, encoder="urrl"),
  Row("urrl", "URRL", _SIMCLR, "none", 2, 0, _MIXED, "similarity"),
  Row(
    *("urrl_plain", "URRL, plain fine-tuning", _SIMCLR, "none", 2, 0, _MIXED),
    *("similarity(weight=0)", "urrl"),
  ),
  Row(
    *("simclr_plain", "SimCLR, plain fine-tuning", _SIMCLR, "none", 2, 0, None),
    *("similarity(weight=0)", "simclr"),
  ),
  Row("standard", "Standard", "supervised(layers=1)", "none", 1, 0, _WEAK, None),
  Row("at", "AT", "supervised(layers=1)", "adversarial_training", 1, 1, _WEAK, None),
  Row("trades", "TRADES", "supervised(layers=1)", "trades(beta=6)", 2, 1, _WEAK, None),
)
REFERENCE = "simclr_urkle"  # its budget is that of all rows

find_row = functools.partial(jobs.find_row, ROWS)

# --- Running ---


def settings(config, extra):
  """{flag: text} of a config's lines and of further arguments, which override them."""
  return jobs.flags([*(jobs.ROOT / config).read_text(encoding="utf-8").splitlines(), *extra])


def epochs(row, given, equal):
  """Epochs of a row's training: those of the config, or the number that equalises gradients.

  Args:
    row: a `Row`.
    given: `settings` of the training.
    equal: what is equal for all rows, "images" or "gradients".
  """
  whole = int(given["epochs"])
  if equal == "images":
    return whole
  steps = int(given["attack_steps"])
  return max(1, round(whole * find_row(REFERENCE).gradients(steps) / row.gradients(steps)))


def stages(row, seed, labels, asked, config, equal, size, strong=True):
  """The commands of one row, seed and number of labels, in order.

  Args:
    row: a `Row`.
    seed: an int.
    labels: "all" or a number as text.
    asked: a `jobs.Asked`.
    config: the flagfile of the training.
    equal: see `epochs`.
    size: the number of training images.
    strong: whether AutoAttack is run too.
  """
  shared = [*asked.shared, f"--seed={seed}"]
  given = settings(config, asked.extra["train"])
  found = []

  def train(row, folder, *arguments, times=1):
    flags = [f"--pretext={row.pretext}", f"--robustness={row.robustness}", *row.flags]
    if row.augment:
      flags.append(f"--augment={row.augment}")
    flags += [*shared, *asked.extra["train"], *arguments]  # later flags override earlier ones
    flags.append(f"--epochs={times * epochs(row, given, equal)}")
    found.append(jobs.Stage("train", config, folder, flags))

  if row.protocol is None:
    run = f"{asked.work}/{row.name}-{labels}-{seed}"
    few = [] if labels == "all" else [f"--examples={labels}"]
    # Fewer images, seen more often: the same number of images and steps.
    train(row, run, *few, times=1 if labels == "all" else max(1, round(size / int(labels))))
  else:
    base = find_row(row.encoder) if row.encoder else row
    encoder = f"{asked.work}/{base.name}-{seed}"
    if base.teacher:
      teacher = f"{asked.work}/{base.teacher}-{seed}"
      train(find_row(base.teacher), teacher)
      pretext = base.pretext.format(teacher=teacher)
      train(dataclasses.replace(base, pretext=pretext), encoder)
    else:
      train(base, encoder)
    run = f"{asked.work}/{row.name}-{labels}-{seed}-head"
    name = spec.parse(row.protocol)[0]
    flags = [f"--encoder={encoder}/encoder", f"--protocol={row.protocol}", *shared]
    tuned = f"configs/{NAME}_{name}_finetune.cfg"
    if labels != "all":
      flags.append(f"--labels={labels}")
      if name != "slf":  # whole networks see few images more often, up to ten times
        more = min(10, max(1, round(size / int(labels))))
        flags.append(f"--epochs={more * int(settings(tuned, ())['epochs'])}")
    flags += asked.extra["finetune"]
    found.append(jobs.Stage("finetune", tuned, run, flags))
  parts = {"evaluate": "evaluate"} | ({"autoattack": "autoattack_evaluate"} if strong else {})
  for part, ending in parts.items():
    folder = f"{asked.work}/{row.name}-{labels}-{seed}-{part}"
    flags = [f"--classifier={run}/classifier", *shared, *asked.extra["evaluate"]]
    found.append(jobs.Stage("evaluate", f"configs/{NAME}_{ending}.cfg", folder, flags))
  return found


# --- Writing ---


def publish(asked, labels, given):
  """Writes the figures, the page and its picture from the results so far.

  Args:
    asked: a `jobs.Asked`.
    labels: numbers of labels, as text.
    given: the parsed command line.
  """
  of_training = settings(given.config, asked.extra["train"])
  document = compare_page.collect(jobs.ROOT / asked.work, ROWS, labels, of_training, given.equal)
  if not document["rows"]:
    return
  pages.write(asked.json_file, document)
  compare_page.draw(document, asked.page_file.with_suffix(".png"))
  command = f"    python experiments/compare_cifar10.py{asked.options}"
  for name, usual in DEFAULTS.items():
    value = getattr(given, name)
    command += f" --{name}={value}" * (value != usual)
  blocks = {
    "table": compare_page.table(document),
    "paired": compare_page.paired(document),
    "picture": f"![Accuracy of every system]({asked.page_file.stem}.png)",
    "commands": command,
  }
  pages.update(asked.page_file, blocks)


def _numbers(name, text):
  if text == "none":
    return []
  parts = [part.strip() for part in text.split(",")]
  if not all(re.fullmatch("all|[1-9][0-9]*", part) for part in parts):
    raise errors.UserError(f"--{name}={text}: give all, or numbers: all,5000,1000; or none")
  return parts


def compare(argv=None):
  """The command line, without the handling of errors."""
  parser = jobs.parser(__doc__, NAME, ROWS, "cifar10")
  add = parser.add_argument
  add("--labels", help="numbers of labels for the classifiers; default %(default)s")
  add("--strong_labels", help="those of them to run AutoAttack on, or none; default %(default)s")
  add("--strong_seeds", type=int, help="number of their seeds; default %(default)s")
  add("--config", help="flagfile of the training of encoders; default %(default)s")
  add(
    "--equal",
    choices=("images", "gradients"),
    help="what is equal for all rows: images seen, or gradient evaluations; default %(default)s",
  )
  parser.set_defaults(**DEFAULTS)
  given = parser.parse_args(argv)
  scaled = any(getattr(given, name) != DEFAULTS[name] for name in ("config", "equal"))
  asked = jobs.read(given, NAME, ROWS, "cifar10", scaled)
  labels = _numbers("labels", given.labels)
  strong = _numbers("strong_labels", given.strong_labels)
  lost = [part for part in strong if part not in labels]
  if lost and given.strong_labels != DEFAULTS["strong_labels"]:
    raise errors.UserError(
      f"--strong_labels={given.strong_labels}: {lost[0]} is not among --labels={given.labels}"
    )
  if not (jobs.ROOT / given.config).is_file():
    raise errors.UserError(f"--config={given.config} is no file of this folder")
  of_training = settings(given.config, [*asked.shared, *asked.extra["train"]])
  for name in ("dataset", "epochs", "attack_steps"):
    if name not in of_training:
      raise errors.UserError(f"--config={given.config} has no --{name}: add it, or --extra_train")
  command_line.import_tensorflow()
  from urkle_tf.data import sources

  examples = int(of_training["examples"]) if "examples" in of_training else None
  split = of_training.get("split", "train")
  source = sources.load(
    of_training["dataset"], split, asked.data_dir, given.download, None, examples
  )
  rows = (
    stages(
      *(row, seed, part, asked, given.config, given.equal, source.size),
      strong=part in strong and seed < given.strong_seeds,
    )
    for seed, row in asked.turns()
    for part in labels
  )
  jobs.run_rows(rows, functools.partial(publish, asked, labels, given), asked.page_file)


if __name__ == "__main__":
  jobs.main(compare)
