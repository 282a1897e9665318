#!/usr/bin/env python3
r"""What an encoder is worth on tasks that it was not made for: one command, one table.

  python experiments/transfer.py --data_dir=DATA_DIR --encoder=Urkle=RUN/encoder \
    --encoder=Standard=OTHER/encoder --seeds=3 \
    --tasks='mnist,mnist:parity,mnist:at_least(threshold=5),mnist:rotation(degrees=45),digits'

Each encoder gets a head for each task and seed, which is measured clean and attacked on the test
split.  A task is a data set (a TFDS name, digits, folder:PATH), which is brought to the encoder's
image size, or one with other labels: urkle_tf/data/labellings.py lists those.  What is there
already is not done again, so the same command goes on after an interruption.
"""

import argparse
import collections
import functools
import inspect
import json
import os
import pathlib
import re
import shlex
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import jobs, pages
from urkle_tf import errors, spec
from urkle_tf.output import files, tables

# --- What there is to do ---


def slug(text):
  """A folder's name: letters, digits and dashes."""
  return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def shown(task):
  """A task without the folders of this machine."""
  if not task.startswith("folder:"):
    return task
  return "folder:" + pathlib.PurePath(task.removeprefix("folder:")).name


def unique(names, what):
  """{folder's name: name}, in order; a `UserError` if two names would share a folder."""
  found = {}
  for name in names:
    if slug(name) in found:
      raise errors.UserError(f"{what} {name!r} is given twice, or hardly differs from another")
    found[slug(name)] = name
  return found


def encoders(texts):
  """{name: folder} of "NAME=FOLDER", or of "RUN/encoder", which is named after the run."""
  found = {}
  for text in texts or ():
    name, equals, folder = text.partition("=")
    if not equals:
      folder, path = text, pathlib.Path(text).absolute()
      name = path.parent.name if path.name == "encoder" else path.name
    if name in found or not name or not folder:
      raise errors.UserError(f"--encoder={text}: give each its own name, --encoder=NAME=FOLDER")
    found[name] = folder
  if not found:
    raise errors.UserError("give --encoder=NAME=FOLDER: the export of a trained encoder")
  unique(found, "encoder")
  return found


def options(text, function, taken):
  """The keyword arguments of a function that flags such as "--epochs=5 --head=linear" mean.

  Args:
    text: the flags.
    function: whose arguments they are.
    taken: arguments that this launcher sets itself.
  """
  known = set(inspect.signature(function).parameters) - set(taken)
  found = {}
  for word in shlex.split(text or ""):
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or not equals:
      raise errors.UserError(f"cannot read {word!r}: write --name=value")
    if name not in known:
      raise errors.unknown("flag", name, known)
    words = {"true": True, "false": False, "none": None}
    try:
      found[name] = words[value.lower()] if value.lower() in words else spec.number(value)
    except ValueError:
      found[name] = value
  return found


# --- Doing it ---


@functools.cache
def guess(task, split, examples, data_dir, download):
  """The share of the largest class in a split, which a constant guess gets right; else None."""
  from urkle_tf.data import sources

  source = sources.load(task, split, data_dir, download, None, examples)
  if source.target is not None or source.labels is None:
    return None  # a regressor's report has it
  counts = collections.Counter(source.labels.tolist())
  return max(counts.values()) / source.size


@functools.cache
def at_most(count, task, split, examples, data_dir, download):
  """A count of one task's images: all of them, where there are fewer; shares stay as they are."""
  from urkle_tf.data import sources

  if count is None or count < 1:
    return count
  return min(count, sources.load(task, split, data_dir, download, None, examples).size)


def image_size(metadata, task, split, data_dir, download):
  """The size that a task's images have to be brought to; None where they have it already."""
  from urkle_tf.data import sources

  height, width, _ = metadata["image_size"]
  found = sources.load(task, split, data_dir, download, None, 1).image_shape
  return None if tuple(found[:2]) == (height, width) else height


def run_one(given, extra, folder, encoder, metadata, task, protocol, seed):
  """Makes and measures one predictor; returns whether anything was done."""
  import urkle_tf
  from urkle_tf.evaluation import assess

  data = {"dataset": task, "data_dir": given.data_dir, "download": given.download}
  where = (given.data_dir, given.download)
  test = (given.test_split, at_most(given.test_examples, task, given.test_split, None, *where))
  size = functools.cache(lambda: image_size(metadata, task, given.test_split, *where))
  head = {
    "protocol": protocol,
    "split": given.split,
    "validation_split": given.validation_split or None,
    "examples": given.examples,
    "labels": at_most(given.labels, task, given.split, given.examples, *where),
    "norm": given.norm if protocol.split("(")[0] != "slf" else None,
    "epsilon": given.epsilon if protocol.split("(")[0] != "slf" else None,
    "seed": seed,
    **extra["finetune"],
  }
  made, report = folder / f"{slug(protocol)}-{seed}", folder / f"{slug(protocol)}-{seed}-report"

  def adapt():
    result = urkle_tf.adapt(
      encoder=encoder, output_dir=str(made), image_size=size(), **data, **head
    )
    keep = [k for k, v in result.items() if k.startswith("validation_") and v is not None]
    return {"row": {name: result[name] for name in (*keep, "step", "epoch", "seconds")}}

  attacked = {
    "split": test[0],
    "examples": test[1],
    "norm": given.norm,
    "epsilon": given.epsilon,
    "seed": seed,
  }

  def measure():
    common = {**data, **attacked, "image_size": size(), "output_dir": str(report)}
    if (made / "regressor").exists():
      assess.assess_regressor(regressor=str(made / "regressor"), **common, **extra["regression"])
      return {}
    evaluate = {"attacks": given.attacks, "representation_examples": 0, **extra["evaluate"]}
    urkle_tf.assess(classifier=str(made / "classifier"), **common, **evaluate)
    return {"guess": guess(task, *test, *where)}

  what = {"encoder": metadata["fingerprint"], "task": task}
  ran = jobs.once(made, {**what, **head}, adapt)
  more = {"attacks": given.attacks, **extra["evaluate"], **extra["regression"]}
  if ran and (report / "finished.json").exists():
    (report / "finished.json").unlink()  # it is of an earlier head
  return jobs.once(report, {**what, **head, **attacked, **more}, measure) or ran


# --- What came out ---


def scores(report):
  """{"measure", "served", "clean", "attacked", "deterministic", "attacks"} of a report.

  "attacked" is the worst over the report's attacks.  Accuracies are in percent; "deterministic"
  is (clean, attacked) at z = mu where z is sampled, else None.
  """
  part = report.get("regression", report)
  measure, worst = ("rmse", max) if "regression" in report else ("accuracy", min)
  unit = 1 if "regression" in report else 100
  pairs = {}
  for mode, (clean, rows) in tables.readings(part).items():
    values = (clean[measure], worst(row[measure] for row in rows))
    pairs[mode] = [round(unit * value, 4) for value in values]
  (clean, attacked), *others = pairs.values()
  names = [f"{tables.attack(row)}, {tables.threat(row)}" for row in part["attacks"]]
  return {
    "measure": measure,
    "clean": clean,
    "attacked": attacked,
    "deterministic": others[0] if others else None,
    "attacks": list(dict.fromkeys(names)),
  }


def collect(work, names, tasks, protocols):
  """What the finished runs measured: the contents of transfer.json.

  Args:
    work: the folder of all runs.
    names: of the encoders, in order.
    tasks: in order.
    protocols: in order.

  Returns:
    {"rows": one for each task, encoder and protocol of which a seed is finished}.
  """
  rows = []
  for task in tasks:
    for name in names:
      for protocol in protocols:
        folder, measured = work / slug(name) / slug(shown(task)), []
        found = pages.finished(folder, slug(protocol), "report", "finished.json")
        for seed, report in found.items():
          content, kept = (pages.read(report / f"{name}.json") for name in ("report", "finished"))
          made = report.with_name(report.name.removesuffix("-report"))
          row = pages.read(made / "finished.json").get("row", {})
          measured.append((seed, scores(content), row, kept, content))
        if not measured:
          continue
        first, part = measured[0][1], measured[0][4].get("regression")
        unit = 100 if first["measure"] == "accuracy" else 1
        lists = lambda key: [found[key] for _, found, *_ in measured]  # noqa: E731, B023
        entry = {
          "task": shown(task),
          "encoder": name,
          "protocol": protocol,
          "measure": first["measure"],
          "seeds": [seed for seed, *_ in measured],
          "clean": lists("clean"),
          "attacked": lists("attacked"),
          "attacks": first["attacks"],
        }
        if first["deterministic"]:
          entry["deterministic"] = {
            key: [pair[i] for pair in lists("deterministic")]
            for i, key in enumerate(("clean", "attacked"))
          }
        contents = [content for *_, content in measured]
        checks = [check for content in contents for check in content.get("checks", ())]
        if checks:
          failed = (check["name"] for check in checks if not check["passed"])
          entry["failed_checks"] = list(dict.fromkeys(failed))
        key = f"validation_{first['measure']}"
        if all(key in row for _, _, row, *_ in measured):
          entry["validation"] = [round(unit * row[key], 4) for _, _, row, *_ in measured]
        if part:
          entry |= {"target": part["target"], "guess": round(part["spread"], 4)}
        elif measured[0][3].get("guess"):
          entry["guess"] = round(100 * measured[0][3]["guess"], 4)
        rows.append(entry)
  return {"rows": rows}


def table(document):
  """The one table, as Markdown; several seeds: mean ± standard deviation."""
  header = ["task", "figure", "a constant guess", "encoder", "protocol", "clean", "attacked"]
  header += ["z = mu: clean / attacked", "validation", "seeds"]
  lines = []
  for row in document["rows"]:
    form = (".2f", ".2f") if row["measure"] == "accuracy" else (".3g", ".2g")
    mean = lambda values: pages.mean(values, *form) if values else ""  # noqa: E731, B023
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

Each encoder is the same in all of its rows. "attacked" is the worst over {"; ".join(attacks)};
where z is random, the mean over samples that no attack knows, and z = mu beside it. Errors of
numbers are root mean squares, and smaller is better. The test split was used for these figures
alone. Several seeds (of the head: its labels, noise and order): mean ± standard deviation.

{table(document)}

Signs of masked gradients, among the rows that were looked at: {"; ".join(failed) or "none"}.

    {command}
"""


# --- The command line ---


def _number(text):
  try:
    return spec.number(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from None


def _parser():
  parser = jobs.Parser(__doc__)
  add = parser.add_argument
  add("--encoder", action="append", help="NAME=FOLDER of an exported encoder; may be repeated")
  add("--tasks", required=True, help="data sets, or data sets with other labels; commas between")
  add("--protocols", default="slf", help="slf, alf, aff(beta=6); commas between")
  add("--labels", type=_number, help="how many: a count (or all, of fewer), or a fraction below 1")
  add("--seeds", type=int, default=1, help="how many seeds: 0, 1, ...")
  add("--data_dir", help="where data lie that TensorFlow Datasets prepared (or its own folder)")
  add("--download", action="store_true", help="let TFDS download and prepare them")
  add("--split", default="train[:90%]", help="what heads are trained on")
  add("--validation_split", default="train[90%:]", help="what choices are made on; '' for none")
  add("--examples", type=int, help="train on the first so many only")
  add("--test_split", default="test", help="what is reported")
  add("--test_examples", type=int, help="report the first so many only (or all, of fewer)")
  add("--norm", help="linf, l2 or l1; default: that of the encoder's training")
  add("--epsilon", type=_number, help="its radius in pixel units; default likewise")
  add("--attacks", default="pgd", help="on classifiers, as in urkle_tf.evaluate (regressors: PGD)")
  add("--work", default="runs/transfer", help="the folder of all runs")
  add("--out_md", help="the page; default WORK/transfer.md")
  add("--out_json", help="the figures; default WORK/transfer.json")
  more = 'more flags for {}: "--name=value ..."'
  add("--extra_finetune", default="", help=more.format("urkle_tf.finetune"))
  add("--extra_evaluate", default="", help=more.format("urkle_tf.evaluate"))
  add("--extra_regression", default="", help=more.format("the evaluation of regressors"))
  return parser


def _command(given):
  """The command as others can give it: no path of this machine."""
  hidden = {
    "encoder": [f"{name}=RUN/encoder" for name in encoders(given.encoder)],
    "data_dir": "DATA_DIR",
    "tasks": ",".join(map(shown, spec.split(given.tasks))),
  }
  words = ["python", "experiments/transfer.py"]
  for action in _parser()._actions:
    value = getattr(given, action.dest, None)
    if action.dest in ("work", "out_md", "out_json", "help") or value == action.default:
      continue
    value = hidden.get(action.dest, value)
    flag = f"--{action.dest}"
    for part in value if isinstance(value, list) else [value]:
      words.append(flag if part is True else f"{flag}={shlex.quote(str(part))}")
  return " ".join(words)


def transfer(argv=None):
  """The command line, without the handling of errors."""
  given = _parser().parse_args(argv)
  if given.seeds < 1:
    raise errors.UserError(f"--seeds must be at least 1, got {given.seeds}")
  folders = encoders(given.encoder)
  tasks, protocols = spec.split(given.tasks), spec.split(given.protocols)
  unique(map(shown, tasks), "task")
  unique(protocols, "protocol")
  for name, values in (("tasks", tasks), ("protocols", protocols)):
    if not values:
      raise errors.UserError(f"give --{name}, with commas in between")
  import keras

  from urkle_tf import downstream, export
  from urkle_tf.evaluation import assess

  ours = {*vars(given), "output_dir", "dataset", "image_size"}
  ours |= {"protocol", "classifier", "regressor", "seed", "epsilons"}
  extra = {
    "finetune": options(given.extra_finetune, downstream.adapt, ours),
    "evaluate": options(given.extra_evaluate, assess.assess, ours),
    "regression": options(given.extra_regression, assess.assess_regressor, ours),
  }
  metadata = {name: export.read_metadata(path, "encoder") for name, path in folders.items()}
  work = pathlib.Path(given.work)
  page_file = pathlib.Path(given.out_md or work / "transfer.md")
  json_file = pathlib.Path(given.out_json or work / "transfer.json")

  def publish():
    document = collect(work, folders, tasks, protocols)
    files.write(json_file, json.dumps(document, indent=1) + "\n")
    files.write(page_file, page(document, _command(given)))

  for seed in range(given.seeds):  # a whole table of one seed first
    for task in tasks:
      for name, path in folders.items():
        for protocol in protocols:
          folder = work / slug(name) / slug(shown(task))
          if run_one(given, extra, folder, path, metadata[name], task, protocol, seed):
            publish()
            keras.backend.clear_session()
  publish()
  print(f"table: {page_file}")


if __name__ == "__main__":
  jobs.main(transfer)
