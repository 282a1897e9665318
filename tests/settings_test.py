"""Settings: one line each, from which flags, help, signatures, docstrings and docs follow."""

import dataclasses
import inspect
import math
import pathlib
import shutil
import sys

import commands
import numpy as np
import pytest
from absl import flags
from cases import refuses

import urkle_tf
from tools import write_settings
from urkle_tf import settings

OF = dict(zip(settings.COMMANDS, write_settings.FUNCTIONS.items(), strict=True))


def test_what_is_made_of_the_settings_is_current():
  for path, text in write_settings.written().items():
    assert path.read_text(encoding="utf-8") == text, "run: python tools/write_settings.py"


def test_a_new_setting_is_one_line(tmp_path):
  """A copy of the package with one more line: the command, the signature, the stub and the docs."""
  for folder in ("urkle_tf", "tools"):
    ignored = shutil.ignore_patterns("__pycache__", "presets")
    shutil.copytree(commands.ROOT / folder, tmp_path / folder, ignore=ignored)
  (tmp_path / "docs").mkdir()
  file = tmp_path / "urkle_tf" / "settings.py"
  text = file.read_text(encoding="utf-8")
  after = "  protocol: str = setting(\n"
  assert text.count(after) == 1
  line = '  added: float = setting(1 / 4, "its `epochs`, and text", free=True)\n'
  file.write_text(text.replace(after, line + after), encoding="utf-8")

  def run(*words):
    there = {"cwd": tmp_path, "environment": {"PYTHONPATH": str(tmp_path)}}
    return commands.process(sys.executable, *words, **there).stdout

  run("tools/write_settings.py")
  stub = (tmp_path / "urkle_tf" / "__init__.pyi").read_text(encoding="utf-8")
  adapt = stub[stub.index("def adapt(") : stub.index("def assess(")]
  assert "  added: float = 0.25,\n" in adapt
  assert "    added: its `epochs`, and text.\n" in adapt
  page = (tmp_path / "docs" / "settings.md").read_text(encoding="utf-8")
  assert "\n| `added` | number | `0.25` | its `epochs`, and text |\n" in page
  full = " ".join(run("-m", "urkle_tf.finetune", "--helpfull").split())
  assert " --added its --epochs, and text [0.25] " in full
  asked = "import sys; from urkle_tf import settings as s; from urkle_tf.training import runs as r;"
  asked += "print('added' in r.FREE, "
  asked += "s.Adapt('an encoder', 'a folder').added, 'tensorflow' in sys.modules)"
  assert run("-c", asked) == "True 0.25 False\n"


@pytest.mark.parametrize("command", OF)
def test_flags_are_the_arguments_of_the_function(command):
  """Of the function itself, which imports TensorFlow."""
  name, arguments = OF[command]
  function = getattr(urkle_tf, name)
  parameters = inspect.signature(function).parameters
  assert list(parameters) == [field.name for field in dataclasses.fields(arguments)]
  with commands.defined(command) as names:
    assert names[: len(parameters)] == list(parameters)
    assert set(names[len(parameters) :]) <= {"dry_run", "seeds", "trust"}
    doc = " ".join(function.__doc__.split())
    for field in dataclasses.fields(arguments):
      default = parameters[field.name].default
      usual = None if default is inspect.Parameter.empty else default
      assert flags.FLAGS[field.name].default == usual
      assert f" {field.name}: {settings.text(field)}." in doc
  with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
    function(epoch=3)


@pytest.mark.parametrize(
  "function, options, words",
  [
    ("pretrain", {"epochs": "3"}, "epochs must be a whole number, got '3'"),
    ("pretrain", {"epsilon": "8/255"}, "epsilon must be a number, got '8/255'"),
    ("pretrain", {"encoder": 3}, "encoder must be a text, got 3"),
    ("pretrain", {"batch_size": None}, "batch_size must be a whole number, got None"),
    ("assess", {"epsilons": 0.1}, "epsilons must be a list of numbers, got 0.1"),
    ("assess", {"epsilons": ["x"]}, "epsilons must be a list of numbers, got ['x']"),
    ("pretrain", {"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
    ("assess", {"epsilons": [0.1, math.nan]}, "epsilons must be finite, got [0.1, nan]"),
    ("assess", {"html": "no"}, "html must be True or False, got 'no'"),
    ("assess", {"attacks": ["pgd", 3]}, "attacks must be a text, got ['pgd', 3]"),
  ],
)
def test_values_of_another_type_are_refused(function, options, words):
  refuses(words, getattr(urkle_tf, function), output_dir="nowhere", **options)


def test_values_in_python_reach_the_function_as_those_of_flags():
  """Else flags.cfg would hold np.float64(0.1), and the same call with 0.1 would be refused."""
  seen = []
  call = settings.arguments(settings.Assess)(seen.append)
  numbers = {"epsilon": np.float64(0.1), "seed": np.int64(3)}
  numbers["epsilons"] = np.float32(0.5), np.int64(1)
  call(encoder=pathlib.Path("a/b"), attacks=["pgd", "fgsm"], **numbers)
  given = seen[0]
  found = (given.encoder, given.epsilon, given.seed, given.epsilons, given.attacks)
  assert repr(found) == "('a/b', 0.1, 3, [0.5, 1], ['pgd', 'fgsm'])"


def test_paths_may_begin_at_home(monkeypatch):
  """Shells leave the sign in --output_dir=~/run; half of a run would lie in a folder named `~`."""
  monkeypatch.setenv("HOME", "/home/one")
  seen = []
  call = settings.arguments(settings.Adapt)(seen.append)
  call(encoder=pathlib.Path("~/run/encoder"), output_dir="~/slf", dataset="mnist")
  found = (seen[0].encoder, seen[0].output_dir, seen[0].dataset)
  assert found == ("/home/one/run/encoder", "/home/one/slf", "mnist")
