#!/usr/bin/env python3
"""Figures that no attack can lower: certified KL, and randomised smoothing.

  python experiments/certificates.py --data_dir=DATA_DIR
  python experiments/certificates.py --data_dir=DATA_DIR --rows=kl_pgd,kl_certified --seeds=3

DATA_DIR holds mnist and cifar10, prepared by TensorFlow Datasets.  Each row is trained, given a
head, measured, and added to docs/results/certificates.md.  Finished parts in --work are not run
again, so the same command resumes after an interruption.  Rows already on the page stay there.
--trained ROW=RUN uses the encoder of an earlier run instead of training the row.
"""

import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import errors
from urkle_tf.output import tables

LOSS_CAP = 5.0  # M of Proposition 1, nats
EPSILONS = (0.1, 0.03, 0.01, 0.003, 0.001)
ALPHA = 0.001  # that a radius of randomised smoothing is wrong
IMAGES = 100  # whose KL is certified; bounds=linear takes a pass for each value of each layer
BOUNDS = ("interval", "linear")
PARTS = ("clean", "attacks", "certificate", "smoothing")  # of a report, that are kept
_MNIST = ["--augment=crop(padding=1, flip=false)", "--epsilon=0.1", "--attack_steps=2"]
_MNIST += ["--attack_step_size=0.07", "--batch_size=100", "--optimizer=adamw"]
_MNIST += ["--warmup_epochs=0.4", "--weight_decay=1e-4"]
_KL = [*_MNIST, "--encoder=convnet(width=8, layers=3)", "--loc=dense", "--latent_dim=16"]
_KL += ["--max_scale=2", "--pretext=vae(width=16)", "--learning_rate=0.005", "--epochs=12"]
_SMALL = [*_MNIST, "--encoder=convnet(width=16)", "--learning_rate=0.01", "--epochs=4"]
_AT = ["--pretext=supervised", "--robustness=adversarial_training"]


@dataclasses.dataclass(frozen=True)
class Row(jobs.Row):
  """A row.

  Attributes:
    dataset: mnist or cifar10.
    flags: of its training, besides those of the flagfile; "{teacher}" is filled in.
    config: the flagfile, or None.
    kl: whether its KL is certified; otherwise its classifier is smoothed.
  """

  dataset: str
  flags: list[str]
  config: str | None = None
  kl: bool = False


_CERTIFIED = ["--robustness=urkle(beta=0.1, certified=1)"]
_CERTIFIED += ["--epsilon_warmup_epochs=8", "--beta_warmup_epochs=8"]
_NEAR = [*_KL, *_CERTIFIED, "--epsilon=0.03"]
_SIMCLR = ["--pretext=simclr", "--robustness=none", "--augment=crop(padding=3, flip=false)"]
_DISTIL = "--pretext=distil(teacher={teacher}/encoder, start=true)"
_WIDTH = "--encoder=resnet18(width=16)"
_FULL = "configs/cifar10_distil_urkle.cfg"
_TEACHER, _STUDENT = "configs/cifar10_cpu_teacher.cfg", "configs/cifar10_cpu.cfg"
_CIFAR10_AT = [_WIDTH, *_AT, "--augment=crop(padding=4)"]
_CIFAR10_AT += ["--learning_rate=0.005", "--epochs=4"]
ROWS = (
  Row("kl_pgd", "VAE+Urkle", "mnist", [*_KL, "--robustness=urkle(beta=1)"], kl=True),
  Row("kl_certified", "VAE+Urkle, certified at 0.03", "mnist", _NEAR, kl=True),
  Row("kl_certified_far", "VAE+Urkle, certified at 0.1", "mnist", [*_KL, *_CERTIFIED], kl=True),
  Row("mnist_simclr", "SimCLR", "mnist", [*_SMALL, *_SIMCLR]),
  Row("mnist_distil", "Distil+Urkle", "mnist", [*_SMALL, _DISTIL, "--robustness=urkle(k=8)"]),
  Row("mnist_at", "AT", "mnist", [*_SMALL, *_AT]),
  Row("cifar10_simclr", "SimCLR", "cifar10", [_WIDTH, "--epochs=10"], _TEACHER),
  Row("cifar10_distil", "Distil+Urkle", "cifar10", [_WIDTH, "--epochs=12", _DISTIL], _STUDENT),
  Row("cifar10_at", "AT", "cifar10", _CIFAR10_AT, "configs/cifar10_small.cfg"),
  Row("cifar10_full", "Distil+Urkle, full size", "cifar10", [], _FULL),
)
TEACHERS = {"mnist_distil": "mnist_simclr", "cifar10_distil": "cifar10_simclr"}


def stages(row, seed, asked, given):
  """The commands of one row and seed.

  Args:
    row: a `Row`.
    seed: an int.
    asked: a `jobs.Asked`.
    given: the parsed command line.

  Returns:
    `Stage`s, in order; the reports' folders end in "-report".
  """
  run, extra = f"{asked.work}/{row.name}-{seed}", asked.extra
  shared = [f"--dataset={row.dataset}", *asked.shared, f"--seed={seed}"]
  found, encoder, of = [], given.trained.get(row.name), ""
  if encoder is None:
    teacher = TEACHERS.get(row.name)
    teacher = given.trained.get(teacher, f"{asked.work}/{teacher}-{seed}")
    words = [flag.replace("{teacher}", teacher) for flag in row.flags]
    words += [*shared, *extra["train"]]
    found.append(jobs.Stage("train", row.config, run, words, pages.fingerprint(teacher)))
    encoder = run
  else:
    of = pages.fingerprint(encoder)
  words = [f"--encoder={encoder}/encoder", "--protocol=slf", *shared]
  words += [] if row.kl else [f"--noise={given.noise}", f"--augment_copies={given.copies}"]
  words += ["--weight_decay=1e-4", *extra["finetune"]]
  found.append(jobs.Stage("finetune", None, f"{run}-head", words, of))
  shared += ["--epsilon=0.1"] * row.kl  # of every row, whatever it was trained at
  for kind, certify in certificates(row, given).items():
    words = [f"--classifier={run}-head/classifier", *shared, f"--certify={certify}"]
    words += [f"--examples={given.examples}", "--attacks=pgd", "--nochecks"]
    words += ["--representation_examples=0", "--samples=20", "--eot=5"]
    found.append(jobs.Stage("evaluate", None, f"{run}-{kind}-report", [*words, *extra["evaluate"]]))
  return found


def certificates(row, given):
  """{kind: what is measured}."""
  if not row.kl:
    options = f"noise={given.noise}, samples={given.samples}, alpha={ALPHA}"
    radii = ",".join(f"{given.noise * step:g}" for step in range(5))
    return {"smoothing": f'smoothing({options}, radii="{radii}", examples={given.examples})'}
  epsilons = ",".join(f"{epsilon:g}" for epsilon in EPSILONS)
  options = f'loss_cap={LOSS_CAP:g}, examples={IMAGES}, epsilons="{epsilons}"'
  return {kind: f"certificate({options}, bounds={kind})" for kind in BOUNDS}


# --- The page ---


def collect(asked):
  """The results so far: {row name: {"system", "dataset", kind: [parts of reports, by seed]}}."""
  found = {}
  for row in ROWS:
    parts = {}
    for kind in BOUNDS if row.kl else ("smoothing",):
      reports = pages.reports(jobs.ROOT / asked.work, row.name, f"{kind}-report").values()
      parts[kind] = [{name: one[name] for name in PARTS if name in one} for one in reports]
    if all(parts.values()):
      found[row.name] = {"system": row.system, "dataset": row.dataset, **parts}
  return found


def kl_table(found):
  """The table of certified KL: a line for each row and epsilon."""
  lines = []
  for part in (found[row.name] for row in ROWS if row.kl and row.name in found):
    for number, epsilon in enumerate(EPSILONS):
      rows = {kind: [one["certificate"]["rows"][number] for one in part[kind]] for kind in BOUNDS}
      cells = [pages.mean([row["kl"] for row in rows[kind]], ".3g") for kind in BOUNDS]
      for name in ("found", "value"):
        cells.append(pages.mean([row[name] for row in rows["linear"]], ".3g"))
      lines.append([part["system"], f"{epsilon:g}", *cells])
  head = ["system", "epsilon", "KL, intervals", "KL, lines", "KL found by PGD", "bound, lines"]
  return tables.markdown(head, lines)


def largest_table(found):
  """The table of the largest epsilon at which the bound is below M."""
  lines = []
  for part in (found[row.name] for row in ROWS if row.kl and row.name in found):
    reports = part["linear"]
    cells = [part["system"], pages.mean([100 * r["clean"]["accuracy"] for r in reports], ".1f")]
    cells.append(pages.mean([100 * r["attacks"][0]["accuracy"] for r in reports], ".1f"))
    for kind in BOUNDS:
      values = [report["certificate"]["largest_epsilon"] for report in part[kind]]
      cells.append(pages.mean(values, ".2g"))
    lines.append(cells)
  head = ["system", "clean, %", "under PGD-20 at 0.1, %", "largest epsilon, intervals"]
  return tables.markdown([*head, "largest epsilon, lines"], lines)


def smoothing_table(found, dataset):
  """The table of certified accuracy on a data set; empty if nothing was measured."""
  parts = {
    row.system: [report["smoothing"] for report in found[row.name]["smoothing"]]
    for row in ROWS
    if row.name in found and row.dataset == dataset and not row.kl
  }
  if not parts:
    return ""
  radii = sorted({row["radius"] for part in parts.values() for row in part[0]["certified"]})
  lines = []
  for system, reports in parts.items():
    shares = [{row["radius"]: row["accuracy"] for row in report["certified"]} for report in reports]
    cells = [pages.mean([100 * of[r] for of in shares if r in of], ".1f") for r in radii]
    abstained = statistics.fmean(100 * report["abstained"] for report in reports)
    lines.append([system, *cells, f"{abstained:.1f}"])
  return tables.markdown(["system", *(f"l2 {radius:g}" for radius in radii), "abstains"], lines)


def blocks(found):
  """The page's tables: {name of the block: Markdown}."""
  return {
    "kl": kl_table(found),
    "largest": largest_table(found),
    "mnist": smoothing_table(found, "mnist"),
    "cifar10": smoothing_table(found, "cifar10"),
  }


# --- The command line ---


def _parsed(argv):
  parser = jobs.parser(__doc__, "certificates", ROWS, "mnist and cifar10")
  add = parser.add_argument
  add("--trained", nargs="*", default=[], metavar="ROW=RUN", help="runs to use instead of training")
  add("--noise", type=float, default=0.25, help="standard deviation of the noise of smoothing")
  add("--copies", type=int, default=4, help="noisy copies of each training image of a head")
  add("--samples", type=int, default=1000, help="noisy copies of an image for its certificate")
  add("--examples", type=int, default=500, help="test images of every report")
  given = parser.parse_args(argv)
  pairs = [text.partition("=") for text in given.trained]
  given.trained = {jobs.find_row(ROWS, name).name: jobs.within(run) for name, _, run in pairs}
  for name, run in given.trained.items():
    if not (jobs.ROOT / run / "encoder").is_dir():
      raise errors.UserError(f"--trained {name}={run}: there is no encoder in it")
  return given


def run(argv=None):
  """The command line, without the handling of errors."""
  given = _parsed(argv)
  asked = jobs.read(given, "certificates", ROWS, "mnist and cifar10")

  def publish():
    pages.update(asked.page_file, blocks(pages.merge(asked.json_file, collect(asked))))

  rows = (stages(row, seed, asked, given) for seed, row in asked.turns())
  jobs.run_rows(rows, publish, asked.page_file)


if __name__ == "__main__":
  jobs.main(run)
