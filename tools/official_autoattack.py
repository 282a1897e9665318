#!/usr/bin/env python3
r"""The official AutoAttack (PyTorch) against a classifier of this package, beside our own.

  python tools/official_autoattack.py --classifier=RUN/classifier --dataset=cifar10 \
    --data_dir=DATA_DIR --epsilon=8/255 --examples=200 --out=runs/judged/cifar10

Needs `pip install pyautoattack`, which brings PyTorch.  The classifier stays in TensorFlow: PyTorch
asks it for logits and for their gradient.  Stages run one after the other, each on the images that
the stages before did not break.  Each stage is kept in OUT/official.json, so that the same command
resumes.  Then `urkle_tf.evaluate` attacks the same images, and both are printed.

  python tools/official_autoattack.py --page=PAGE --rows "a name=OUT" "another=OUT"

replaces the table of a page, between its lines <!-- table -->, by that of finished comparisons.

  python tools/official_autoattack.py --their_resnet18=resnet18.keras

writes the CIFAR-10 ResNet-18 that comes with pyautoattack as a Keras model, for --classifier.
"""

import importlib.util
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import keras
import numpy as np
import tensorflow as tf

import urkle_tf
from experiments import jobs, pages
from urkle_tf import errors, networks, spec
from urkle_tf.data import compatibility, sources
from urkle_tf.evaluation import foreign, scoring
from urkle_tf.networks.saved import foreign_models
from urkle_tf.output import files, tables

STAGES = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def bridge(logits):
  """A classifier in TensorFlow as a PyTorch module with gradients.

  Args:
    logits: a function of images float32 [n, h, w, c] and a seed int32 [2] to float32 [n, classes].

  Returns:
    A `torch.nn.Module`, images float32 [n, c, h, w] -> [n, classes].  Each call draws fresh noise
    by a seed of its own, and its gradient is taken under the same noise.
  """
  import torch

  any_size = tf.function(logits, reduce_retracing=True)

  @tf.function(reduce_retracing=True)
  def pull_back(images, seed, cotangents):
    with tf.GradientTape() as tape:
      tape.watch(images)
      values = logits(images, seed)
    return tape.gradient(values, images, cotangents)

  def channels_last(images):
    return tf.constant(np.ascontiguousarray(images.detach().numpy().transpose(0, 2, 3, 1)))

  class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, number):
      ctx.seed = tf.constant([7, number], tf.int32)
      ctx.save_for_backward(images)
      return torch.from_numpy(any_size(channels_last(images), ctx.seed).numpy())

    @staticmethod
    def backward(ctx, cotangents):
      (images,) = ctx.saved_tensors
      found = pull_back(channels_last(images), ctx.seed, tf.constant(cotangents.numpy()))
      return torch.from_numpy(np.ascontiguousarray(found.numpy().transpose(0, 3, 1, 2))), None

  class Module(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.calls = 0

    def forward(self, images):
      self.calls += 1
      return Function.apply(images, self.calls)

  return Module().eval()


def stages(module, images, labels, norm, epsilon, names, file=None, rand=False, batch_size=100):
  """Which images each stage of the official AutoAttack leaves unbroken, with its standard budget.

  Args:
    module: a `torch.nn.Module`, [n, c, h, w] -> logits [n, classes].
    images: float32 [n, h, w, c] in [0, 1].
    labels: int [n].
    norm: "linf", "l2" or "l1".
    epsilon: the radius.
    names: of the stages, in order.
    file: JSON that keeps finished stages; None to keep nothing.
    rand: whether its version for random models is meant (20 samples a gradient).
    batch_size: images that are attacked together.

  Returns:
    {"clean": [bool] a image, stage: {"standing": [bool], "seconds", "cpu_seconds"}}.
  """
  import pyautoattack
  import torch

  found = json.loads(file.read_text()) if file is not None and file.is_file() else {}
  x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
  y = torch.from_numpy(np.asarray(labels, np.int64))

  def right(x, y):
    parts = zip(x.split(batch_size), y.split(batch_size))
    with torch.no_grad():
      return torch.cat([module(a).argmax(1) == b for a, b in parts]).numpy()

  standing = np.array(found["clean"]) if "clean" in found else right(x, y)
  found["clean"] = standing.tolist()
  for name in names:
    if name not in found:
      clocks = time.perf_counter(), time.process_time()
      judge = pyautoattack.AutoAttack(
        module, eps=epsilon, norm=NORMS[norm], seed=0, version="rand" if rand else "standard"
      )
      judge.attacks_to_run = [name]
      after = standing.copy()
      if standing.any():
        worst = judge.run_standard_evaluation(x[standing], y[standing], batch_size=batch_size)
        worst = worst[0] if isinstance(worst, tuple) else worst
        after[standing] = right(worst.contiguous(), y[standing])
      spent = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
      seconds = dict(zip(("seconds", "cpu_seconds"), spent))
      found[name] = {"standing": after.tolist(), "attacked": int(standing.sum()), **seconds}
      if file is not None:
        files.write(file, json.dumps(found))
    standing = np.array(found[name]["standing"])
  return found


def scores(path, source, sampled):
  """What the official attack asks of a classifier.

  Returns:
    (a function of images and a seed to logits, differentiable; the weights' fingerprint).
  """
  if foreign_models.is_foreign(path):
    model = foreign.look_at(foreign_models.load(path), source)
    if model.metadata["attacked"] == "inner scores":
      raise errors.UserError(
        f"only scores inside {path} have gradients, and they may differ from its outputs, which "
        "the official attack would not see: give the part of the model that ends with them"
      )
  else:
    model = urkle_tf.load_classifier(path)
  frozen, fingerprint = model.frozen(), model.metadata["fingerprint"]
  if not sampled and not foreign_models.is_foreign(path):
    return lambda images, seed: frozen.logits(images), fingerprint
  read = frozen.from_representation
  return lambda images, seed: read(*frozen.represent(images), seed=seed), fingerprint


def their_resnet18():
  """The CIFAR-10 ResNet-18 that comes with pyautoattack.

  Returns:
    (theirs, a `torch.nn.Module`: float32 [n, 3, 32, 32] -> logits [n, 10]; the same as a Keras
    model: float32 [n, 32, 32, 3] -> logits [n, 10]).  Pixels are in [0, 1].
  """
  import torch
  from pyautoattack.examples import resnet

  theirs = resnet.ResNet18().eval()
  weights = pathlib.Path(resnet.__file__).with_name("model_test.pt")
  theirs.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
  arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
  backbone = networks.resnet18((32, 32, 3), stem="small")
  urkle_tf.import_torch_state(arrays, backbone)
  head = keras.layers.Dense(10)
  model = keras.Model(backbone.input, head(backbone.output))
  head.set_weights([arrays["linear.weight"].T, arrays["linear.bias"]])
  return theirs, model


def _installed():
  if not importlib.util.find_spec("pyautoattack"):
    raise errors.UserError("this needs the official AutoAttack: pip install pyautoattack")


def official(given, out):
  """The table of the official ensemble."""
  _installed()
  data = {"data_dir": given.data_dir, "examples": given.examples}
  source = sources.load(given.dataset, given.split, **data)
  compatibility.check_labelled(source)
  _, images, labels = next(scoring.stream(source, source.size))
  names = STAGES["rand" if given.sampled else "standard"]
  logits, fingerprint = scores(given.classifier, source, given.sampled)
  file = out / "official.json"
  decide = ("dataset", "split", "examples", "norm", "epsilon", "sampled")
  asked = {name: getattr(given, name) for name in decide}
  asked["classifier"] = fingerprint  # its folder may hold another one later
  if not file.is_file():
    files.write(file, json.dumps({"asked": asked}))
  elif json.loads(file.read_text()).get("asked", asked) != asked:
    what = f"{file} has results of other flags or another classifier"
    raise errors.UserError(f"{what}: give those, or another --out")
  attacked = images, labels, given.norm, given.epsilon, names
  found = stages(bridge(logits), *attacked, file, given.sampled)
  rows = [(name, np.mean(found[name]["standing"]), found[name]) for name in names]
  return _stages("official", [("clean", np.mean(found["clean"]), {}), *rows])


def ours(given, out):
  """The table of this package's ensemble on the same images."""
  served = "sampled" if given.sampled else "deterministic"
  same = ("classifier", "dataset", "data_dir", "split", "examples", "norm")
  report = urkle_tf.assess(
    **{name: getattr(given, name) for name in same},
    modes=served,
    output_dir=str(out / "ours"),
    epsilons=[given.epsilon],
    attacks=f"autoattack(version={'rand' if given.sampled else 'standard'})",
    standing=True,
    checks=False,
    representation_examples=0,
  )
  return _stages("ours", [[row["name"], row["accuracy"], row] for row in report["attacks"]])


def _stages(whose, rows):
  """The table of (stage, share of the images that it leaves unbroken, what it took)."""
  lines = []
  for name, share, row in rows:
    seconds, cells = row.get("cpu_seconds"), ["", ""]
    if seconds is not None:
      cells = [f"{seconds:.0f}", f"{row['attacked'] / max(seconds, 1e-9):.2f}"]
    lines.append([name, f"{100 * share:.1f}", *cells])
  return tables.markdown([whose, "standing, %", "CPU s", "images a CPU second"], lines)


def compared(rows):
  """Both ensembles beside each other, stage by stage, as Markdown.

  Args:
    rows: {name: the folder of a comparison}.
  """
  lines = []
  for name, out in rows.items():
    theirs = pages.read(out / "official.json")
    mine = {row["name"]: row for row in pages.read(out / "ours" / "report.json")["attacks"]}
    theirs.pop("asked", None)  # older files have none
    count = len(theirs.pop("clean"))
    total = {"theirs": 0.0, "mine": 0.0}
    for stage, row in theirs.items():
      ours = mine[stage.replace("-", "_")]
      seconds = {"theirs": row["cpu_seconds"], "mine": ours["cpu_seconds"]}
      total = {key: value + seconds[key] for key, value in total.items()}
      standing = np.mean(row["standing"]), ours["accuracy"]
      lines.append([name, str(count), stage, *_cells(*standing, seconds)])
    lines.append([name, str(count), "all", *_cells(*standing, total)])
  header = ["classifier", "images", "stage", "standing after it: official", "ours"]
  return tables.markdown([*header, "CPU seconds: official", "ours", "ratio"], lines)


def _cells(theirs, mine, seconds):
  ratio = seconds["mine"] / max(seconds["theirs"], 1e-9)
  spent = f"{seconds['theirs']:.1f}", f"{seconds['mine']:.1f}", f"{ratio:.2f}"
  return f"{100 * theirs:.1f}", f"{100 * mine:.1f}", *spent


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("--page", help="write the table of --rows into this page, and nothing else")
  parser.add_argument("--rows", nargs="*", default=[], metavar="NAME=OUT")
  parser.add_argument("--their_resnet18", metavar="FILE.keras", help="write it, and nothing else")
  parser.add_argument("--classifier", help="what --classifier of evaluate takes")
  parser.add_argument("--dataset", default="cifar10")
  parser.add_argument("--data_dir", help="where the data set lies")
  parser.add_argument("--split", default="test")
  parser.add_argument("--examples", type=int, default=500, help="how many images, the first ones")
  parser.add_argument("--norm", default="linf", choices=NORMS)
  parser.add_argument("--epsilon", type=spec.number, default=8 / 255)
  parser.add_argument("--sampled", action="store_true", help="sampled z, version rand")
  parser.add_argument("--out", help="folder of both results")
  parser.add_argument("--only", choices=("official", "ours"), help="one of the two alone")
  given = parser.parse_args()
  if given.page:
    pairs = [row.rpartition("=") for row in given.rows]
    if not pairs or not all(name for name, _, _ in pairs):
      raise errors.UserError("give the rows of the page: --rows NAME=OUT NAME=OUT")
    block = compared({name: pathlib.Path(out) for name, _, out in pairs})
    pages.update(pathlib.Path(given.page), {"table": block})
    return
  if given.their_resnet18:
    if not given.their_resnet18.endswith(".keras"):
      raise errors.UserError(f"--their_resnet18={given.their_resnet18} must end in .keras")
    _installed()
    _, model = their_resnet18()
    model.save(given.their_resnet18)
    return
  if not given.classifier or not given.out:
    raise errors.UserError("give --classifier and --out, --page and --rows, or --their_resnet18")
  for name, judge in (("official", official), ("ours", ours)):
    if given.only in (None, name):
      print(judge(given, pathlib.Path(given.out)), flush=True)


if __name__ == "__main__":
  jobs.main(main)
