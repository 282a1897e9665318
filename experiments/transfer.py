#!/usr/bin/env python3
r"""Measures encoders on tasks that they were not trained for, and makes one table.

  python experiments/transfer.py --data_dir=DATA_DIR --encoder=Urkle=RUN/encoder \
    --encoder=Standard=OTHER/encoder --seeds=3 \
    --tasks='mnist,mnist:parity,mnist:at_least(threshold=5),mnist:rotation(degrees=45),digits'

Each encoder gets a head for each task and seed, which is measured on the test split, clean and
attacked.  A task is a data set (a TFDS name, digits, folder:PATH), or one with other labels from
urkle_tf/data/labellings.py.  Images are resized to the encoder's size.  Finished parts are not run
again, so the same command resumes after an interruption.
"""

import collections
import functools
import itertools
import pathlib
import re
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import command_line, errors, spec
from urkle_tf.output import files, tables

# --- Tasks and encoders ---


def slug(text):
  """A folder's name: letters, digits and dashes."""
  return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def shown(task):
  """A task without the folders of this machine."""
  if not task.startswith("folder:"):
    return task
  return "folder:" + pathlib.PurePath(task.removeprefix("folder:")).name


def placed(task):
  """A task as commands name it, since they run in the clone."""
  if not task.startswith("folder:"):
    return task
  return "folder:" + jobs.within(task.removeprefix("folder:"))


def check_names(names, what):
  """Raises `UserError` if there is no name, or if two names would share a folder."""
  slugs = [slug(name) for name in names]
  if not slugs:
    raise errors.UserError(f"give --{what}s, separated by commas")
  for name in names:
    if slugs.count(slug(name)) > 1:
      raise errors.UserError(f"{what} {name!r} is given twice, or is too similar to another")


def encoders(texts):
  """{name: folder} of "NAME=FOLDER", or of "RUN/encoder", which is named after the run."""
  found = {}
  for text in texts or ():
    name, equals, folder = text.partition("=")
    if not equals:
      folder, path = text, pathlib.Path(text).absolute()
      name = path.parent.name if path.name == "encoder" else path.name
    if name in found or not name or not folder:
      raise errors.UserError(f"--encoder={text}: give each another name, --encoder=NAME=FOLDER")
    found[name] = folder
  if not found:
    raise errors.UserError("give --encoder=NAME=FOLDER: the export of a trained encoder")
  check_names(found, "encoder")
  return found


# --- Commands ---


@functools.cache
def source(task, split, examples, data_dir, download):
  """A task's images."""
  from urkle_tf.data import sources

  return sources.load(task, split, data_dir, download, None, examples)


def guess(found):
  """The accuracy of a constant guess, the share of a source's largest class; None for numbers."""
  if found.target is not None or found.labels is None:
    return None  # it is in a regressor's report
  return max(collections.Counter(found.labels.tolist()).values()) / found.size


def at_most(count, found):
  """A count, at most that of a source's images; a share or None is returned unchanged."""
  return count if count is None or count < 1 else min(count, found.size)


def flags(**settings):
  """The flags of settings that are not None."""
  given = {name: value for name, value in settings.items() if value is not None}
  return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def stages(given, folder, encoder, metadata, task, protocol, seed):
  """The commands that make and measure a predictor; the second depends on the first's result."""
  load = lambda split, examples: source(task, split, examples, given.data_dir, given.download)  # noqa: E731
  height, width, _ = metadata["image_size"]
  data = flags(
    dataset=placed(task),
    data_dir=given.data_dir and jobs.within(given.data_dir),
    download=given.download or None,
    image_size=None if load(given.test_split, 1).image_shape[:2] == (height, width) else height,
    seed=seed,
  )
  attacked = flags(norm=given.norm, epsilon=given.epsilon)
  head = flags(
    encoder=encoder if encoder.startswith("preset:") else jobs.within(encoder),
    protocol=protocol,
    split=given.split,
    validation_split=given.validation_split or None,
    examples=given.examples,
    labels=given.labels and at_most(given.labels, load(given.split, given.examples)),
  )
  head += [] if protocol.startswith("slf") else attacked
  made = f"{folder}/{slug(protocol)}-{seed}"
  words = [*data, *head, *jobs.words("extra_finetune", given.extra_finetune)]
  yield jobs.Stage("finetune", None, made, words, metadata["fingerprint"])
  words = [*data, *attacked, f"--split={given.test_split}"]
  if given.test_examples:
    words += flags(examples=at_most(given.test_examples, load(given.test_split, None)))
  if (jobs.ROOT / made / "regressor").exists():
    words += [
      f"--regressor={made}/regressor",
      *jobs.words("extra_regression", given.extra_regression),
    ]
  else:
    words += [f"--classifier={made}/classifier", f"--attacks={given.attacks}"]
    words += ["--representation_examples=0", *jobs.words("extra_evaluate", given.extra_evaluate)]
  yield jobs.Stage("evaluate", None, f"{made}-report", words, metadata["fingerprint"])


# --- Results ---


def scores(report):
  """(measure, figures, names of attacks) of a report.

  The figures are (clean, attacked) for each reading of z, the served one first.  "attacked" is the
  worst over the report's attacks.  Accuracies are in percent.
  """
  measure, worst, unit = ("accuracy", min, 100)
  if "regression" in report:
    measure, worst, unit = ("rmse", max, 1)
  pairs, names = [], {}
  for parts in pages.columns(report).values():
    clean, *rows = (round(unit * part[measure], 4) for part in parts.values())
    pairs.append((clean, worst(rows)))
    names |= dict.fromkeys([*parts][1:])
  return measure, pairs, list(names)


def collect(work, names, tasks, protocols, guess):
  """The results of the finished runs: the content of transfer.json.

  Args:
    work: the folder of all runs.
    names: of the encoders, in order.
    tasks: in order.
    protocols: in order.
    guess: a function of a task to the accuracy of a constant guess, or None.

  Returns:
    {"rows": one for each task, encoder and protocol with a finished seed}.
  """
  rows = []
  for task, name, protocol in itertools.product(tasks, names, protocols):
    folder = work / slug(name) / slug(shown(task))
    reports = pages.reports(folder, slug(protocol), "report")
    if not reports:
      continue
    heads = [pages.selected(folder / f"{slug(protocol)}-{seed}") for seed in reports]
    (measure, _, attacks), *_ = measured = [scores(report) for report in reports.values()]
    served, *others = zip(*(figures for _, figures, _ in measured), strict=True)  # of all seeds
    columns = lambda pairs: dict(zip(("clean", "attacked"), map(list, zip(*pairs))))  # noqa: E731
    part = next(iter(reports.values())).get("regression")
    unit = 1 if part else 100
    entry = {
      "task": shown(task),
      "encoder": name,
      "protocol": protocol,
      "measure": measure,
      "seeds": list(reports),
      **columns(served),
      "attacks": attacks,
    }
    if others:
      entry["deterministic"] = columns(others[0])
    checks = [check for report in reports.values() for check in report.get("checks", ())]
    if checks:
      failed = (check["name"] for check in checks if not check["passed"])
      entry["failed_checks"] = list(dict.fromkeys(failed))
    key = f"validation_{measure}"
    if all(head.get(key) is not None for head in heads):
      entry["validation"] = [round(unit * head[key], 4) for head in heads]
    if part:
      entry |= {"target": part["target"], "guess": round(part["spread"], 4)}
    elif share := guess(task):
      entry["guess"] = round(100 * share, 4)
    rows.append(entry)
  return {"rows": rows}


def table(document):
  """The table, as Markdown."""
  header = ["task", "figure", "a constant guess", "encoder", "protocol", "clean", "attacked"]
  header += ["z = mu: clean / attacked", "validation", "seeds"]
  lines = []
  for row in document["rows"]:
    form, deviation = (".2f", ".2f") if row["measure"] == "accuracy" else (".3g", ".2g")
    mean = functools.partial(pages.mean, form=form, deviation=deviation)
    mu = row.get("deterministic")
    figure = "accuracy, %" if row["measure"] == "accuracy" else f"error in {row['target']}"
    cells = [row["task"], figure]
    cells += [mean([row["guess"]] if "guess" in row else [])]
    cells += [row["encoder"], row["protocol"], mean(row["clean"]), mean(row["attacked"])]
    cells += [f"{mean(mu['clean'])} / {mean(mu['attacked'])}" if mu else ""]
    lines.append([*cells, mean(row.get("validation")), str(len(row["seeds"]))])
  return tables.markdown(header, lines)


def page(document, command):
  """The page: how it was measured, the table, the command."""
  attacks = dict.fromkeys(name for row in document["rows"] for name in row["attacks"])
  failed = [
    f"{row['task']}, {row['encoder']}, {row['protocol']}: {', '.join(row['failed_checks'])}"
    for row in document["rows"]
    if row.get("failed_checks")
  ]
  return f"""# Transfer

This page compares encoders by the heads trained on them for several tasks, clean and under attack.
All rows of an encoder use the same weights.

{table(document)}

- "attacked" is the worst case over {"; ".join(attacks)}. If z is random, "clean" and "attacked"
  average over samples that no attack sees, and z = mu has its own column.
- The error of a regression is its root mean square: lower is better.
- The test split was used for nothing else.
- Seeds are those of the head: its choice of labels, noise and order. {pages.SEVERAL}
- Failed checks for masked gradients, in rows that were checked: {"; ".join(failed) or "none"}.

## Command

    {command}
"""


# --- The command line ---


def _parser():
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--encoder", action="append", help="NAME=FOLDER of an exported encoder; may be repeated")
  add("--tasks", required=True, help="data sets, perhaps with other labels; separated by commas")
  add("--protocols", default="slf", help="slf, alf, aff(beta=6); separated by commas")
  add("--labels", type=spec.number, help="number of labels, at most, or a fraction below 1")
  add("--seeds", type=int, default=1, help="number of seeds: 0, 1, ...")
  add("--data_dir", help="folder of prepared TFDS data; default: TFDS's own folder")
  add("--download", action="store_true", help="let TFDS download and prepare them")
  add("--split", default="train[:90%]", help="split that heads are trained on")
  add(
    "--validation_split", default="train[90%:]", help="split that choices are made on; '' for none"
  )
  add("--examples", type=int, help="train only on the first N images")
  add("--test_split", default="test", help="split that is reported")
  add("--test_examples", type=int, help="report only the first N images")
  add("--norm", help="linf, l2 or l1; default: that of the encoder's training")
  add("--epsilon", type=spec.number, help="radius in pixel units; default: that of the training")
  add("--attacks", default="pgd", help="on classifiers, as in urkle_tf.evaluate (regressors: PGD)")
  add("--work", default="runs/transfer", help="the folder of all runs")
  more = 'more flags for {}: "--name=value ..."'
  add("--extra_finetune", action=jobs.More, default="", help=more.format("urkle_tf.finetune"))
  add("--extra_evaluate", action=jobs.More, default="", help=more.format("urkle_tf.evaluate"))
  add(
    "--extra_regression",
    action=jobs.More,
    default="",
    help=more.format("the evaluation of regressors"),
  )
  return parser


def _command(given):
  """The command for the page, without paths of this machine."""
  hidden = {
    "encoder": [f"{name}=RUN/encoder" for name in encoders(given.encoder)],
    "data_dir": "DATA_DIR",
    "tasks": ",".join(map(shown, spec.split(given.tasks))),
  }
  words = ["python", "experiments/transfer.py"]
  for action in _parser()._actions:
    value = getattr(given, action.dest, None)
    if action.dest in ("work", "help") or value == action.default:
      continue
    value = hidden.get(action.dest, value)
    flag = f"--{action.dest}"
    for part in value if isinstance(value, list) else [value]:
      words.append(flag if part is True else f"{flag}={shlex.quote(str(part))}")
  return " ".join(words)


def transfer(argv=None):
  """The command line, without the handling of errors."""
  given = _parser().parse_args(argv)
  errors.at_least(1, None, seeds=given.seeds)
  for name in ("extra_finetune", "extra_evaluate", "extra_regression"):
    jobs.words(name, getattr(given, name))  # a mistake is found before anything is run
  folders = encoders(given.encoder)
  tasks, protocols = spec.split(given.tasks), spec.split(given.protocols)
  check_names([*map(shown, tasks)], "task")
  check_names(protocols, "protocol")
  command_line.import_tensorflow()
  from urkle_tf import export

  metadata = {name: export.read_metadata(path, "encoder") for name, path in folders.items()}
  base = jobs.within(given.work)
  work = jobs.ROOT / base
  where = (given.data_dir, given.download)

  @functools.cache
  def constant(task):
    most = at_most(given.test_examples, source(task, given.test_split, None, *where))
    return guess(source(task, given.test_split, most, *where))

  def publish():
    document = collect(work, folders, tasks, protocols, constant)
    pages.write(work / "transfer.json", document)
    files.write(work / "transfer.md", page(document, _command(given)))

  def place(name, task):
    return f"{base}/{slug(name)}/{slug(shown(task))}"

  # The whole table with one seed first.
  every = itertools.product(range(given.seeds), tasks, folders.items(), protocols)
  rows = (
    stages(given, place(name, task), path, metadata[name], task, protocol, seed)
    for seed, task, (name, path), protocol in every
  )
  jobs.run_rows(rows, publish, work / "transfer.md")


if __name__ == "__main__":
  jobs.main(transfer)
