"""Every command and every snippet of Python in README and docs runs, in the order of its page.

A page is run in its own folder, into which `PREPARE` puts what the page mentions.  What would take
long is made smaller by replacing words of it, all of which are listed in `SMALLER`.  Of a slow page
only flags, files and syntax are read, except with `--full`.  What would take hours is always only
read, and so are the launchers, which have their own tests.
"""

import importlib
import importlib.util
import inspect
import io
import json
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from unittest import mock
from urllib import request

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch_vits
from absl import flags
from small_models import digits, photographs, sequential, small_classifier, small_encoder
from torch_resnets import listed, resnet_state

import urkle_tf
from examples.keras_app import serve
from experiments import jobs, photos
from urkle_tf import command_line, export, networks
from urkle_tf.data import sources
from urkle_tf.networks.regressor import Regressor

DOCS = commands.ROOT / "docs"
TRUST = "urkle_tf.networks.saved.trust"  # which `urkle_tf.trust` is
HUB = importlib.util.find_spec("keras_hub") is not None

# --- What the pages mention ---


ABOUT = {"norm": "linf", "epsilon": 0.1, "dataset": "digits"}  # what exports say of the training


def photographed():
  """Images of two sizes in class folders."""
  photographs(pathlib.Path("photos/cats"), 4, 40)
  photographs(pathlib.Path("photos/dogs"), 4, 50)


def encoder(folder, size=32, channels=3):
  """An untrained one."""
  backbone = networks.backbone("convnet(width=4, layers=2)", (size, size, channels))
  model = networks.GaussianEncoder(backbone, latent_dim=6, loc="dense")
  export.export_encoder(model, folder, ABOUT)
  return model


def classifier(folder, model, sure=1.0):
  """An untrained one of ten classes over an encoder, whose logits are this many times as large."""
  made = small_classifier(model)
  kernel = made.head.get_layer("dense1").kernel
  kernel.assign(sure * kernel)
  made.class_names = [str(number) for number in range(10)]
  export.export_classifier(made, folder, ABOUT)


def start(monkeypatch):
  """Digits as files of many sizes and both formats: loose, and in class folders."""
  train, test = sources.load("digits", "train"), sources.load("digits", "test")
  photos.make(pathlib.Path(), train, test, photos=48, of_class=10, tested=8)


def embedding(monkeypatch):
  photographed()
  encoder(pathlib.Path("runs/photos/encoder"))


def migrating(monkeypatch):
  photographed()
  state = resnet_state(np.random.default_rng(0), width=64)
  tensor = lambda value: types.SimpleNamespace(numpy=lambda: value)  # noqa: E731
  # As much of PyTorch's as the page asks for.
  tensors = {f"module.{n}": tensor(value) for n, value in listed(state, state).items()}
  torch = types.ModuleType("torch")
  torch.load = lambda file, map_location: {"epoch": 1, "state_dict": tensors}
  monkeypatch.setitem(sys.modules, "torch", torch)


def regulariser(monkeypatch):
  rng = np.random.default_rng(0)
  backbone = sequential((8, 8, 3), keras.layers.Conv2D(4, 3), keras.layers.Flatten())
  images = rng.uniform(size=(64, 8, 8, 3)).astype(np.float32)
  return {"backbone": backbone, "images": images, "labels": np.arange(64) % 10}


def run_of_digits(monkeypatch):
  classifier(pathlib.Path("RUN/classifier"), encoder(pathlib.Path("RUN/encoder"), 8, 1))


def exports(monkeypatch):
  run_of_digits(monkeypatch)
  reported(monkeypatch)


def reported(monkeypatch):
  """A report of RUN/classifier, and a hub that takes everything."""
  found = export.read_metadata("RUN/classifier")
  part = {"mode": "sampled", "accuracy": 0.5, "interval": [0.4, 0.6], "examples": 90}
  config = {"dataset": "digits", "split": "test", "fingerprint": found["fingerprint"]}
  pathlib.Path("REPORT").mkdir()
  report = json.dumps({"clean": part, "attacks": [], "config": config})
  pathlib.Path("REPORT/report.json").write_text(report)
  hub = types.ModuleType("huggingface_hub")
  hub.HfApi = mock.MagicMock()
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def monitoring(monkeypatch):
  for name in ("RUN", "vae", "vae_urkle"):
    encoder(pathlib.Path(name) / "encoder", 8, 1)
  return {"images": digits()[0][:6]}


def serving(monkeypatch):
  """A server's place is taken by the example's, without a network between."""
  start(monkeypatch)
  encoder(pathlib.Path("runs/photos/encoder"), channels=1)

  def urlopen(asked):
    assert asked.full_url == "http://localhost:8501/v1/models/photos:predict"
    model = tf.saved_model.load("models/photos/1")
    return io.StringIO(json.dumps(serve.answer(model, json.loads(asked.data))))

  monkeypatch.setattr(request, "urlopen", urlopen)


def robustify(monkeypatch):
  photographed()
  convolution = keras.layers.Conv2D(4, 3, strides=4, activation="relu")
  model = sequential((32, 32, 3), convolution, keras.layers.GlobalAveragePooling2D())
  model.save("model.keras")
  sequential((4,), keras.layers.Dense(2)).save("head.keras")
  return {"model": model, "images": np.zeros((2, 32, 32, 3), np.float32), "small_clip": small_clip}


def small_clip():
  """A random CLIP of KerasHub."""
  hub = importlib.import_module("keras_hub").models
  vision = hub.CLIPVisionEncoder(16, 8, 1, 2, 16, image_shape=(32, 32, 3), name="vision")
  return hub.CLIPBackbone(vision, hub.CLIPTextEncoder(20, 8, 8, 1, 2, 16, name="text"), 8)


def beside_the_package(monkeypatch, *modules):
  """A page's files, such as "pretexts.colours", are found beside those of the package."""
  for module in modules:
    name = module.rpartition(".")[0]
    package = importlib.import_module(f"urkle_tf.{name}")
    folder = pathlib.Path("urkle_tf", *name.split(".")).absolute()
    folder.mkdir(parents=True)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"urkle_tf.{module}", raising=False)


def extended(names):
  assert pathlib.Path("runs/colours/encoder/saved_model.pb").is_file()


def attack_walk(monkeypatch):
  beside_the_package(monkeypatch, "attacks.noise")
  run_of_digits(monkeypatch)


def attack_walked(names):
  """The attack moved the training's images within the ball, and hurts in the report."""
  rows = pathlib.Path("runs/noise/metrics.jsonl").read_text(encoding="utf-8").splitlines()
  for row in map(json.loads, rows):
    assert 0 < row["attack_distance"] <= 1 + 1e-5
    assert row["attack_objective"] > 0
  report = json.loads(pathlib.Path("reports/noise/report.json").read_text(encoding="utf-8"))
  found = [row for row in report["attacks"] if row["mode"] == "deterministic"]
  assert [(row["name"], row["restarts"]) for row in found] == [("noise", 5), ("pgd", 1)]
  assert found[0]["nll"] > report["clean"]["deterministic"]["nll"]


def measurement_walk(monkeypatch):
  beside_the_package(monkeypatch, "evaluation.measurements.margins")
  classifier(pathlib.Path("RUN/classifier"), small_encoder(), sure=3.0)


def measurement_walked(names):
  """The gaps between the two likeliest classes, by hand, in report.json and in report.md."""
  images = sources.load("digits", "test", examples=20).images / np.float32(255)
  logits = urkle_tf.load_classifier("RUN/classifier").logits(images).numpy().astype(np.float64)
  probabilities = np.sort(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
  gaps = probabilities[:, -1] - probabilities[:, -2]
  undecided = np.mean(gaps < 0.2)
  assert 0 < undecided < 1  # the option decides something
  found = json.loads(pathlib.Path("REPORT/report.json").read_text(encoding="utf-8"))
  mean = pytest.approx(gaps.mean(), rel=1e-4)
  assert found["margins"]["deterministic"] == {"mean": mean, "undecided": undecided}
  section = pathlib.Path("REPORT/report.md").read_text(encoding="utf-8").split("## Margins\n")[1]
  assert f"| deterministic | {gaps.mean():.3f} | {undecided:.3f} |" in section


def grid(monkeypatch):
  pathlib.Path("runs/sweep/hparams").mkdir(parents=True)
  return {"backbone": networks.backbone("convnet(width=4, layers=2)", (8, 8, 1))}


def served_alike(names):
  """What the page got by each road is what the export says."""
  model = tf.saved_model.load("runs/photos/encoder")
  expected = model.signatures["embed"](tf.constant(names["images"]))["embedding"].numpy()
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)
  np.testing.assert_allclose(names["embedding"], expected, atol=1e-5)


def reference(monkeypatch):
  """What the examples of docstrings take as given, without files."""
  backbone = networks.backbone("convnet(width=4, layers=2)", (32, 32, 3))
  model = networks.GaussianEncoder(backbone)
  names = {"keras": keras, "np": np, "tf": tf, "urkle_tf": urkle_tf, **readme(monkeypatch)}
  names |= {"backbone": backbone, "encoder": model, "logits": lambda x: model(x).loc[:, :4]}
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255), steps=1)
  return names | {"attack": attack, "objective": lambda images: -model(images).loc[:, 0]}


def runs_of_reference(monkeypatch):
  """The same, beside folders that commands wrote."""
  model = encoder(pathlib.Path("RUN/encoder"))
  classifier(pathlib.Path("RUN/classifier"), model)
  reported(monkeypatch)
  regressor = Regressor(model.network, networks.mlp(6, [1], "head"), samples=4)
  export.export_regressor(regressor, "RUN/regressor")
  small = encoder(pathlib.Path("runs/digits/encoder"), 8, 1)
  classifier(pathlib.Path("runs/digits-slf/classifier"), small)
  np.savez("resnet18.npz", **resnet_state(np.random.default_rng(0)))
  np.savez("vit.npz", **torch_vits.state(torch_vits.TIMM))
  return reference(monkeypatch)


def readme(monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(4, 32, 32, 3)).astype(np.float32)
  return {"images": images, "labels": np.array([0, 1, 2, 1]), "classes": 3}


def attacked_a_little(names):
  change = np.abs(names["attacked"] - names["images"]).max()
  assert 0 < change <= 8 / 255 + 1e-6


# --- How each is run ---

SMALL = "--encoder='convnet(width=4, layers=2)' --latent_dim=6 --loc=dense"
TINY = f"{SMALL} --attack_steps=1 --epochs=1"
QUICK = "--attack_steps=1 --eot=1 --samples=2 --nochecks --representation_examples=4"


OWN_IMAGES = {
  "--flagfile=configs/photos.cfg": "--flagfile=configs/photos.cfg --batch_size=16 "
  f"--precision=float32 {TINY}",
  "--output_dir=runs/photos-slf": "--output_dir=runs/photos-slf --epochs=1",
  "--output_dir=runs/photos-report": f"--output_dir=runs/photos-report {QUICK}",
}
DIGITS = {"width=32, layers=3": "width=4, layers=2", "epochs=60": "epochs=1, attack_steps=1"}

# What puts into the current folder what a page mentions, and returns the names that its snippets
# take as given, or None.
PREPARE = {
  "start.md": start,
  "embedding.md": embedding,
  "migrating.md": migrating,
  "regulariser.md": regulariser,
  "exports.md": exports,
  "monitoring.md": monitoring,
  "evaluation.md": run_of_digits,
  "finetuning.md": run_of_digits,
  "grid.md": grid,
  "extending.md": lambda patch: beside_the_package(patch, "pretexts.colours", "data.stripes"),
  "walks/attack.md": attack_walk,
  "walks/measurement.md": measurement_walk,
  "robustness.md": run_of_digits,
  "robustify.md": robustify,
  "serving.md": serving,
  "../README.md": readme,
  "api/encoders.md": runs_of_reference,
  "api/measuring.md": runs_of_reference,
  "api/sharing.md": runs_of_reference,
  "api/training.md": lambda patch: {**reference(patch), **robustify(patch)},
}
for name in ("attacks", "pretexts", "robustness", "networks", "data"):
  PREPARE[f"api/{name}.md"] = reference
# {page: {words of its commands and snippets: what is run in their place}}
SMALLER = {
  "start.md": OWN_IMAGES,
  "../README.md": {**OWN_IMAGES, "epochs=20": "epochs=1", "steps=20": "steps=2"},
  "monitoring.md": {"steps=50": "steps=2"},
  "evaluation.md": {
    "--dataset=cifar10 --data_dir=DATA": f"--dataset=digits --examples=8 {QUICK}",
    "pgd(steps=20, step_size": "pgd(steps=2, step_size",
    "pgd(steps=100,": "pgd(steps=3,",
  },
  "finetuning.md": {
    "--dataset=mnist --data_dir=DATA_DIR": "--dataset='digits:rotation' --epochs=1",
    "--labels=0.01 ...": "--labels=0.1 --examples=300 --epochs=1 --attack_steps=1",
    "--protocol=semi_supervised": "--protocol='semi_supervised(clean_epochs=1)'",
    "--dataset=mnist:rotation": "--dataset=digits:rotation --examples=8 --attack_steps=1",
    "--encoder=TEACHER/encoder --output_dir=HEAD": "--encoder=RUN/encoder --output_dir=CHOSEN",
    "--select=clean --dataset=cifar10 --data_dir=DATA_DIR": "--select=clean --dataset=digits",
    "--validation_split=train[48000:] --epochs=20": "--validation_split='train[90%:]' --epochs=1",
  },
  "grid.md": {"--dataset=digits --norm=l2": f"--dataset=digits --examples=256 {TINY} --norm=l2"},
  "extending.md": {
    "--output_dir=runs/colours": f"--examples=256 {TINY} --output_dir=runs/colours",
    "epochs=2": "epochs=1",
  },
  "walks/attack.md": {
    "--output_dir=runs/noise": f"--output_dir=runs/noise --examples=256 {TINY}",
    "--output_dir=reports/noise": f"--output_dir=reports/noise --examples=8 {QUICK}",
    "draws=50": "draws=5",
  },
  "walks/measurement.md": {
    "--output_dir=REPORT": f"--output_dir=REPORT --examples=20 {QUICK} --attacks=fgsm "
    "--representation_examples=0"
  },
  "python.md": {
    **DIGITS,
    'validation_split="train[90%:]"': 'validation_split="train[90%:]", epochs=2',
    'pgd(steps=20)"': 'pgd(steps=1)", examples=8, eot=1, checks=False, representation_examples=4',
  },
  "robustness.md": {"--eot=50": f"--examples=4 {QUICK}", "autoattack,": "apgd_ce(steps=5),"},
  "robustify.md": {
    "applications.ResNet50(": "applications.MobileNet(alpha=0.1, ",
    'CLIPBackbone.from_preset("clip_vit_base_patch16")': "CLIPBackbone and small_clip()",
    '.from_preset("clip_vit_base_patch16")\nimages': "(scale=1 / 127.5, offset=-1.0)\nimages",
    "  epochs=2,": "  epochs=1, batch_size=4, attack_steps=1,",
    "--image_size=32 --epochs=20": "--image_size=32 --epochs=1 --batch_size=4 --attack_steps=1",
    'weights="imagenet"': "weights=None",
    "--output_dir=REPORT": f"--output_dir=REPORT {QUICK}",
    "--output_dir=COMPARED": f'--output_dir=COMPARED {QUICK} --measure="retrieval(neighbours=1)"',
    "  epochs=20,": "  epochs=1, batch_size=4, attack_steps=1,",
  },
  "api/training.md": {**DIGITS, "epochs=20": "epochs=1, batch_size=4, attack_steps=1"},
  "api/measuring.md": {'attacks="pgd"': 'attacks="pgd(steps=1)", examples=8, checks=False'},
  "api/attacks.md": {"steps=7": "steps=1", "steps=10": "steps=2", "queries=100": "queries=5"}
  | {"=500": "=150"},
  "api/sharing.md": {
    '(32, 32, 3), stem="small")': '(32, 32, 3), width=4, stem="small")',
    "(224, 224, 3), 16, 12, 12, 768, 3072": "(16, 16, 3), 8, 2, 2, 8, 12",
  },
}
# Pages that are only read, except with --full.
SLOW = {*SMALLER, "serving.md", "speed.md", "api/encoders.md"}
SLOW -= {"../README.md", "walks/measurement.md"}
# {page: beginnings of commands that are always only read, because they are of full size}
CITED = {
  "evaluation.md": (  # tests/evaluation/measurements runs what these do
    "python -m urkle_tf.evaluate --classifier=ONE",
    "python -m urkle_tf.evaluate --classifier=OTHER",
  ),
  **dict.fromkeys(
    ("any_model.md", "representation.md", "certificates.md"), ("python -m urkle_tf.evaluate",)
  ),
  "robustify.md": (
    "python -m urkle_tf.train --dry_run",
    *([] if HUB else ["import keras\nimport keras_hub"]),
  ),
  "speed.md": ("python -m urkle_tf.train --data_service",),
  "api/training.md": ("python -m urkle_tf.train --pretext",),
  "api/sharing.md": () if HUB else ("import keras_hub",),
  "../README.md": ("python -m urkle_tf",),  # those of start.md
}
# {beginning of a command that is never run here: why}
ELSEWHERE = {
  "python -m pip install": "tests/packaging_test.py builds the wheel",
  "bash launch/quickstart.sh": "tests/experiments/quickstart_test.py runs what it does",
  "bash launch/test.sh": "it runs this",
  "docker": "the server comes as an image only",
  "python examples/keras_app/": "tests/docs/keras_app_test.py runs them",
}
# What takes the names that a page's snippets have made.
CHECK = {
  "extending.md": extended,
  "walks/attack.md": attack_walked,
  "walks/measurement.md": measurement_walked,
  "serving.md": served_alike,
  "../README.md": attacked_a_little,
}

STARTS = ("python", "bash", "tensorboard", "mkdir", "docker")  # what begins a command


def blocks(text):
  """What a page asks to be run, in its order: [("python", source) or ("shell", command)].

  Other indented text, formulas or listings, is not run.
  """
  found, source, continued = [], None, False
  for line in text.splitlines():
    if line.startswith("```"):
      if source is not None:
        found.append(("python", "\n".join(source)))
      source = [] if line == "```python" else None
    elif source is not None:
      source.append(line)
    elif line.startswith("    ") and line.strip():
      if continued:
        found[-1] = ("shell", found[-1][1][:-1] + line.strip())
      elif line.split()[0] in STARTS:
        found.append(("shell", line.strip()))
      else:
        continue
      continued = found[-1][1].endswith("\\")
  return found


def run_module(words, monkeypatch, only_read):
  """Runs one of our commands in this process; or has it read its flags."""
  with monkeypatch.context() as patch:
    if only_read:
      patch.setattr(command_line, "run", lambda function, names: flags.FLAGS(sys.argv))
    code, said = commands.run(words[0].removeprefix("urkle_tf."), words[1:])
  assert not code, f"{words} exited with {code}: {said}"


def read_script(words):
  """Checks that a script is there and knows the flags that it is given."""
  files = [words[0], "experiments/jobs.py"]  # which holds what they share
  files += ["urkle_tf/train.py", "urkle_tf/command_line.py"]  # whose flags some hand on
  text = "".join((commands.ROOT / file).read_text(encoding="utf-8") for file in files)
  text += "".join(f'"--extra_{module}"' for module in jobs.MODULES)
  for word in words[1:]:
    name = word.partition("=")[0]
    assert not name.startswith("--") or f'"{name}"' in text, f"{words[0]} knows no {name}"


def run_command(line, monkeypatch, only_read=False):
  """Runs a command, as a shell would read it."""
  words = shlex.split(line, comments=True)
  if words[0] == "tensorboard":
    assert only_read or pathlib.Path(words[1].removeprefix("--logdir=")).is_dir()
  elif words[0] == "mkdir":
    if not only_read:
      subprocess.run(line, shell=True, check=True)
  elif words[0] == "bash":
    assert (commands.ROOT / words[1]).is_file()
  elif words[:2] == ["python", "-m"]:
    run_module(words[2:], monkeypatch, only_read)
  elif words[0] == "python" and words[1].startswith("examples/"):
    assert (commands.ROOT / words[1]).is_file()  # examples_test.py runs every one, in fewer epochs
  else:
    assert words[0] == "python", line
    read_script(words[1:])


def run_page(page, text, tmp_path, monkeypatch, full):
  """Runs what a page asks to be run, made smaller."""
  read = page in SLOW and not full
  # Pages of results cite commands of full size alone.
  cited = ("python",) if page.startswith("results/") else CITED.get(page, ())
  for folder in ("configs", "examples", "experiments", "launch", "tools"):
    (tmp_path / folder).symlink_to(commands.ROOT / folder)
  monkeypatch.chdir(tmp_path)
  found, replaced = blocks(text), set()
  assert found
  prepare = PREPARE.get(page) if not read else None
  names = {"__name__": "__main__", **((prepare and prepare(monkeypatch)) or {})}
  for kind, block in found:
    if block.startswith(tuple(ELSEWHERE)):
      continue
    only_read = read or block.startswith(cited)
    for words, smaller in SMALLER.get(page, {}).items():
      if words in block:
        replaced.add(words)
        block = block.replace(words, smaller)
    if kind == "python":
      code = compile(block, block, "exec")
      if only_read:
        continue
      if file := re.match(r"# (urkle_tf/\S+\.py)\n", block):  # of the package, as the page has it
        pathlib.Path(file[1]).write_text(block, encoding="utf-8")
      else:
        exec(code, names)
    else:
      run_command(block, monkeypatch, only_read)
  assert replaced == set(SMALLER.get(page, {})), "these words are no longer on the page"
  if not read and page in CHECK:
    CHECK[page](names)


def text_of(page):
  """A page's text; in the reference, each name is replaced by its docstring."""
  text = (DOCS / page).read_text(encoding="utf-8")
  return re.sub("^::: (\\S+)$", lambda found: docstring(found[1]), text, flags=re.MULTILINE)


def docstring(name):
  return inspect.getdoc(pkgutil.resolve_name(name.replace("urkle_tf.trust", TRUST)))


def test_every_public_name_is_in_the_reference_with_an_example():
  listed = []
  for file in DOCS.glob("api/*.md"):
    entries = re.findall(r"^::: (\S+)((?:\n    .*)*)", file.read_text("utf-8"), re.MULTILINE)
    for name, options in entries:
      shown = re.search(r"members: \[(.*)\]", options)
      members = shown[1].split(", ") if shown else [name.rpartition(".")[2]]
      examples = " ".join(block for kind, block in blocks(docstring(name)) if kind == "python")
      assert set(members) <= set(re.findall(r"\w+", examples)), f"{name} lacks an example"
      # A function in a module of its name is both.
      listed.append(re.sub(r"\.(\w+)\.\1$", r".\1", name))
  assert len(listed) == len(set(listed))
  names = {f"urkle_tf.{name}" for name in urkle_tf.__all__ if name != "__version__"}
  for module in ("attacks", "networks", "pretexts", "robustness"):
    own = importlib.import_module(f"urkle_tf.{module}").__all__
    names |= {f"urkle_tf.{module}.{name}" for name in own}
  # One is listed by its shorter name, and the other is a dict.
  names -= {"urkle_tf.networks.GaussianEncoder", "urkle_tf.networks.BACKBONES"}
  assert names <= set(listed)


def test_links_lead_somewhere():
  for file in (*commands.ROOT.glob("*.md"), *DOCS.rglob("*.md")):
    text = re.sub(r"(```|`)[^`]*\1", "", file.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
      if "://" not in target:
        assert (file.parent / target.split("#")[0]).exists(), f"{file.name}: {target}"


def asking():
  """The pages that ask for something to be run."""
  files = [commands.ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
  pages = [os.path.relpath(file, DOCS) for file in files]
  return [page for page in pages if blocks(text_of(page))]


@pytest.mark.parametrize("name", asking())
def test_a_page_runs_as_it_stands(name, tmp_path, monkeypatch, request):
  run_page(name, text_of(name), tmp_path, monkeypatch, request.config.getoption("--full"))
