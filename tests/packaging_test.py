"""What is shipped and how: the wheel, the scripts, the configs."""

import itertools
import os
import re
import runpy
import shutil
import sys
import zipfile
from unittest import mock

import commands
import pytest
from absl import flags
from packaging import requirements

import urkle_tf

PACKAGE = commands.ROOT / "urkle_tf"
CONFIGS = sorted((commands.ROOT / "configs").glob("*.cfg"))
COMMANDS = ("train", "finetune", "evaluate", "embed")


def tracked_files():
  """The files of a clone, except for those deleted but not yet committed."""
  if not (commands.ROOT / ".git").exists():
    pytest.skip("not a git checkout")
  listed = commands.process("git", "ls-files", "-z").stdout
  files = (commands.ROOT / name for name in listed.split("\0") if name)
  return [file for file in files if file.is_file()]


# --- The wheel ---


SOME = "urkle_tf/networks/presets/some"
PRESET = {f"{SOME}/{name}" for name in ("weights.npz", "preset.json", "README.md")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A wheel built from the sdist of a copy, so that nothing is left in the checkout."""
  source = tmp_path_factory.mktemp("source")
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(commands.ROOT / name, source)
  shutil.copytree(PACKAGE, source / "urkle_tf", ignore=shutil.ignore_patterns("__pycache__"))
  for name in PRESET:  # beside those that are shipped
    file = source / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(name.encode())
  built = tmp_path_factory.mktemp("wheel")
  words = ("setup.py", "--quiet", "sdist", f"--dist-dir={built}")
  commands.process(sys.executable, *words, cwd=source)
  (sdist,) = built.glob("*.tar.gz")
  words = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", f"--wheel-dir={built}")
  commands.process(sys.executable, "-m", "pip", "wheel", *words, sdist)
  (path,) = built.glob("*.whl")
  with zipfile.ZipFile(path) as archive:
    yield archive


def test_wheel_ships_every_module_its_types_presets_and_licence_and_nothing_else(wheel):
  shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
  modules = {str(path.relative_to(commands.ROOT)) for path in PACKAGE.rglob("*.py")}
  files = (path for path in PACKAGE.glob("networks/presets/*/*") if path.is_file())
  files = (path for path in files if "__pycache__" not in path.parts)
  presets = {str(path.relative_to(commands.ROOT)) for path in files}
  others = {"urkle_tf/py.typed", "urkle_tf/__init__.pyi", "urkle_tf/evaluation/report/page.css"}
  assert shipped == modules | presets | PRESET | others
  assert f"urkle_tf-{urkle_tf.__version__}.dist-info/METADATA" in wheel.namelist()
  assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_import_is_fast_and_loads_nothing_else():
  # Of the processor: a loaded machine may let any import wait for a tenth of a second.
  code = """import sys, time
before, started = set(sys.modules), time.process_time()
import urkle_tf
print(time.process_time() - started, *sorted(set(sys.modules) - before))"""
  said = [commands.process(sys.executable, "-c", code) for _ in range(5)]
  seconds, *loaded = min((done.stdout.split() for done in said), key=lambda words: float(words[0]))
  assert loaded == ["urkle_tf"]
  assert float(seconds) < 0.01


# --- Scripts ---


SCRIPTS = [commands.ROOT / ".ci" / "run"]
for part in ("launch", "experiments", "tools"):
  SCRIPTS += (commands.ROOT / part).glob("*.sh")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_can_be_run_or_says_that_it_is_sourced(script):
  commands.process("bash", "-n", script)
  first = script.read_text(encoding="utf-8").splitlines()[0]
  assert os.access(script, os.X_OK) if first.startswith("#!") else first.startswith("# Sourced")


# --- Versions ---


def asked():
  """{name: what setup.py asks for} of the package and of its extras."""
  with mock.patch("setuptools.setup") as setup:
    runpy.run_path(str(commands.ROOT / "setup.py"))
  given = setup.call_args.kwargs
  texts = itertools.chain(given["install_requires"], *given["extras_require"].values())
  found = map(requirements.Requirement, texts)
  return {r.name.lower().replace("_", "-"): r for r in found if "and-cuda" not in r.extras}


def constraints(lines):
  """{name: version} of lines such as `numpy==2.1.3`."""
  pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
  return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_the_lock_is_within_the_bounds():
  lines = (commands.ROOT / "launch" / "constraints.txt").read_text(encoding="utf-8").splitlines()
  locked, wanted = constraints(lines), asked()
  # setuptools comes with every environment; the others of these are of an extra that no test needs.
  never_locked = {"setuptools", "adversarial-robustness-toolbox", "statsmodels", "keras-hub"}
  assert set(wanted) - set(locked) <= never_locked | {"pyautoattack", "torch"}
  outside = {n: v for n, v in locked.items() if n in wanted and v not in wanted[n].specifier}
  assert outside == {}


def test_the_oldest_versions_are_the_lower_bounds():
  code = "set -euo pipefail; source launch/environment.sh; oldest_versions"
  oldest = constraints(commands.process("bash", "-c", code).stdout.splitlines())
  wanted = asked()
  assert set(oldest) == set(wanted)
  for name, series in oldest.items():
    (lowest,) = [s.version for s in wanted[name].specifier if s.operator == ">="]
    assert series == f"{lowest}.*"


# --- What must not be in the repository ---


def test_no_file_names_a_machine_or_a_registry():
  # Put together here, so that this file does not hold what it looks for.
  forbidden = ["/".join(parts) for parts in (("", "opt", ""), ("", "work", ""), ("", "root", ""))]
  forbidden += [".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted"))]
  found = []
  for path in tracked_files():
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue  # a picture
    found += [f"{path.relative_to(commands.ROOT)}: {part}" for part in forbidden if part in text]
  assert not found


def test_no_tracked_file_is_over_a_mebibyte_but_for_presets():
  weights = set(PACKAGE.glob("networks/presets/*/weights.npz"))
  assert not [p for p in tracked_files() if p.stat().st_size > 2**20 and p not in weights]
  assert sum(path.stat().st_size for path in weights) < 24 * 2**20


# --- Configs ---


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_configs_parse_as_flags_of_their_command(config):
  """The command's name is behind the last underscore, else it is train."""
  ending = config.stem.rpartition("_")[2]
  with commands.defined(ending if ending in COMMANDS else "train"):
    words = ["command", f"--flagfile={config}", "--output_dir=unused"]
    assert flags.FLAGS(words) == ["command"]
  for line in config.read_text(encoding="utf-8").splitlines():
    assert line.startswith("#") or "#" not in line  # which would be part of the value


# --- Flags ---


def test_only_the_command_lines_read_flags():
  allowed = {PACKAGE / f"{name}.py" for name in (*COMMANDS, "command_line")}
  files = set(PACKAGE.rglob("*.py")) - allowed
  assert not [path for path in files if re.search(r"\bFLAGS\b", path.read_text(encoding="utf-8"))]
