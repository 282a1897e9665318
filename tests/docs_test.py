"""Every command and every snippet of Python in these pages runs, as it stands, in its order.

A page is run in a folder of its own, in which `prepare` lays what the page speaks of.
"""

import importlib
import pathlib
import shlex
import sys
import types

import keras
import numpy as np
import pytest
from absl import flags
from examples_test import EXAMPLES
from PIL import Image
from torch_weights_test import listed, resnet_state

from urkle_tf import export, networks

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def photos(folder):
  """Images of several sizes in class folders."""
  rng = np.random.default_rng(0)
  for number in range(8):
    place = folder / ("cats", "dogs")[number % 2] / f"{number}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), np.uint8)).save(place)


def encoder(folder, size=32):
  """An untrained one."""
  backbone = networks.backbone("convnet(width=4, layers=2)", (size, size, 3))
  export.export_encoder(networks.GaussianEncoder(backbone, latent_dim=6), folder)


def embedding(monkeypatch):
  del monkeypatch
  photos(pathlib.Path("photos"))
  encoder(pathlib.Path("runs/photos/encoder"))


class Tensor:
  """As much of PyTorch's as the page asks for."""

  def __init__(self, value):
    self.numpy = lambda: value


def migrating(monkeypatch):
  photos(pathlib.Path("photos"))
  state = resnet_state(np.random.default_rng(0), width=64)
  tensors = {f"module.{name}": Tensor(value) for name, value in listed(state, state).items()}
  torch = types.ModuleType("torch")
  torch.load = lambda file, map_location: {"epoch": 1, "state_dict": tensors}
  monkeypatch.setitem(sys.modules, "torch", torch)


def regulariser(monkeypatch):
  del monkeypatch
  rng = np.random.default_rng(0)
  layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
  images = rng.uniform(size=(64, 8, 8, 3)).astype(np.float32)
  return {"backbone": keras.Sequential(layers), "images": images, "labels": np.arange(64) % 10}


# {page: what lays in its folder what it speaks of, and returns the names that it takes as given}
PAGES = {"embedding.md": embedding, "migrating.md": migrating, "regulariser.md": regulariser}


def blocks(text):
  """What a page asks to be run, in its order: [("python", source) or ("shell", command)]."""
  found, source = [], None
  for line in text.splitlines():
    if line.startswith("```"):
      if source is not None:
        found.append(("python", "\n".join(source)))
      source = [] if line == "```python" else None
    elif source is not None:
      source.append(line)
    elif line.startswith("    ") and line.strip():
      if found and found[-1][0] == "shell" and found[-1][1].endswith("\\"):
        found[-1] = ("shell", found[-1][1][:-1] + line.strip())
      else:
        found.append(("shell", line.strip()))
  return found


def test_blocks_are_found():
  page = "text\n\n    python -m a --b=c \\\n      --d\n\n```python\nif x:\n  y\n```\n\n    ls\n"
  page += "```\nno python\n```\n"
  assert blocks(page) == [
    ("shell", "python -m a --b=c --d"),
    ("python", "if x:\n  y"),
    ("shell", "ls"),
  ]


def run_command(line, monkeypatch):
  """Runs one of our commands in this process, as a shell would read it."""
  words = shlex.split(line)
  if words[0] == "python" and words[1].startswith("examples/"):
    assert pathlib.Path(words[1]).stem in EXAMPLES  # it runs there, in fewer epochs
    return
  if words[0] == "tensorboard":
    assert pathlib.Path(words[1].removeprefix("--logdir=")).is_dir()
    return
  assert words[:2] == ["python", "-m"], line
  kept, exits = set(flags.FLAGS), []
  monkeypatch.setattr(sys, "argv", words[2:])
  monkeypatch.setattr(sys, "exit", exits.append)
  try:
    importlib.import_module(words[2]).main()
  finally:
    flags.FLAGS.unparse_flags()
    flags.FLAGS.remove_flag_values(dict.fromkeys(set(flags.FLAGS) - kept, 0))
  assert not any(exits), f"{line} exited with {exits}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {"__name__": "__main__", **(PAGES[page](monkeypatch) or {})}
  found = blocks((DOCS / page).read_text(encoding="utf-8"))
  assert found
  for kind, text in found:
    if kind == "python":
      exec(compile(text, page, "exec"), names)
    else:
      run_command(text, monkeypatch)
