"""What is shipped and how: the wheel, the scripts, the configs."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from email import parser

import pytest
from packaging import requirements, specifiers

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "urkle_tf"
COMMANDS = ("train", "finetune", "evaluate", "embed")


def tracked_files():
  """The files that a clone has, but for those that were deleted and not yet committed."""
  try:
    listed = subprocess.run(
      ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("not a git checkout")
  return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# --- The wheel ---


PRESET = {
  f"urkle_tf/networks/presets/some/{name}" for name in ("weights.npz", "preset.json", "README.md")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A wheel built from the sdist of a copy, so that nothing is left in the checkout."""
  source = tmp_path_factory.mktemp("source")
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  shutil.copytree(PACKAGE, source / "urkle_tf", ignore=shutil.ignore_patterns("__pycache__"))
  for name in PRESET:  # beside those that are shipped
    file = source / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(name.encode())
  built = tmp_path_factory.mktemp("wheel")
  command = [sys.executable, "setup.py", "--quiet", "sdist", f"--dist-dir={built}"]
  subprocess.run(command, cwd=source, capture_output=True, check=True)
  (sdist,) = built.glob("*.tar.gz")
  result = subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    + ["--quiet", "--disable-pip-version-check", f"--wheel-dir={built}", str(sdist)],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  (path,) = built.glob("*.whl")
  with zipfile.ZipFile(path) as archive:
    yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
  (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
  return parser.Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_the_version_that_the_package_states(metadata):
  import urkle_tf

  assert metadata["Name"].replace("-", "_") == "urkle_tf"
  assert metadata["Version"] == urkle_tf.__version__


def test_citation_states_the_same_version(metadata):
  lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
  assert f"version: {metadata['Version']}" in lines


def test_wheel_asks_for_python_3_11_to_3_13(metadata):
  accepted = specifiers.SpecifierSet(metadata["Requires-Python"])
  tried = ("3.10.13", "3.11.0", "3.13.9", "3.14.0")
  assert [version in accepted for version in tried] == [False, True, True, False]


def test_wheel_names_what_it_needs(metadata):
  needed = [requirements.Requirement(text) for text in metadata.get_all("Requires-Dist")]
  always = {r.name.replace("_", "-"): r for r in needed if r.marker is None}
  assert " ".join(sorted(always)) == (
    "absl-py importlib-resources keras keras-cv matplotlib numpy scikit-learn scipy tensorboard "
    "tensorflow tensorflow-datasets tensorflow-metadata tensorflow-probability tqdm"
  )
  assert always["tensorflow-probability"].extras == {"tf"}
  assert "2.19.1" in always["tensorflow"].specifier
  assert "2.18.1" not in always["tensorflow"].specifier
  assert "3.14.1" not in always["keras"].specifier
  assert set(metadata.get_all("Provides-Extra")) == {
    "test",
    "attacks",
    "docs",
    "gpu",
    "hub",
    "judge",
    "notebooks",
  }
  attacks = {r.name for r in needed if r.marker and r.marker.evaluate({"extra": "attacks"})}
  assert attacks == {"adversarial-robustness-toolbox", "foolbox", "statsmodels"}


def test_wheel_ships_every_module_its_types_presets_and_licence_and_nothing_else(wheel):
  shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
  modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
  files = (path for path in PACKAGE.glob("networks/presets/*/*") if path.is_file())
  presets = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
  assert shipped == modules | presets | PRESET | {"urkle_tf/py.typed", "urkle_tf/__init__.pyi"}
  for name in PRESET:
    assert wheel.read(name) == name.encode()
  assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_import_is_fast_and_loads_nothing_else():
  code = """import sys, time
before, started = set(sys.modules), time.perf_counter()
import urkle_tf
print(time.perf_counter() - started, *sorted(set(sys.modules) - before))"""
  command = [sys.executable, "-c", code]
  said = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(5)]
  seconds, *loaded = min((done.stdout.split() for done in said), key=lambda words: float(words[0]))
  assert loaded == ["urkle_tf"]
  assert float(seconds) < 0.01


# --- Scripts ---


SCRIPTS = [ROOT / ".ci" / "run"]
SCRIPTS += [f for part in ("launch", "experiments", "tools") for f in (ROOT / part).glob("*.sh")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_can_be_run_or_says_that_it_is_sourced(script):
  result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  first = script.read_text(encoding="utf-8").splitlines()[0]
  assert os.access(script, os.X_OK) if first.startswith("#!") else first.startswith("# Sourced")


def environment(code, **variables):
  """Runs bash code after sourcing launch/environment.sh, with the given environment variables."""
  return subprocess.run(
    ["bash", "-c", f"set -euo pipefail; source '{ROOT}/launch/environment.sh'; {code}"],
    capture_output=True,
    text=True,
    env={**os.environ, **variables},
  )


def test_environment_takes_the_python_that_it_is_told_to_or_says_what_to_do(tmp_path):
  assert environment("find_python", PYTHON=sys.executable).stdout.strip() == sys.executable
  # A PATH on which every python is there and none runs, as a version manager's shims are.
  for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
    (tmp_path / name).write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / name).chmod(0o755)
  for name in ("bash", "dirname", "sh"):
    (tmp_path / name).symlink_to(shutil.which(name))
  none = environment("find_python", PATH=str(tmp_path), PYTHON="")
  wrong = environment("find_python", PYTHON=str(tmp_path / "none"))
  versions = "Python 3.11, 3.12 or 3.13"
  for result, words in ((none, f"needs {versions}"), (wrong, f"is not a {versions}")):
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert words in line


# --- Versions ---


def asked():
  """{name: what setup.py asks for} of the package and of its tests, as the wheel states it."""
  source = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
  values = {}
  for node in source.body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      values[node.targets[0].id] = node.value
  texts = [
    node.value
    for name in ("INSTALL_REQUIRES", "EXTRAS_REQUIRE", "FOOLBOX", "RUFF")
    for node in ast.walk(values[name])
    if isinstance(node, ast.Constant) and any(sign in str(node.value) for sign in "<>=")
  ]
  found = [requirements.Requirement(text) for text in texts]
  return {r.name.lower().replace("_", "-"): r for r in found if "and-cuda" not in r.extras}


def constraints(lines):
  """{name: version} of lines such as `numpy==2.1.3`."""
  pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
  return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_the_lock_is_within_the_bounds():
  lines = (ROOT / "launch" / "constraints.txt").read_text(encoding="utf-8").splitlines()
  locked, wanted = constraints(lines), asked()
  # setuptools comes with every environment; the others of these are of an extra that no test needs.
  never_locked = {"setuptools", "adversarial-robustness-toolbox", "statsmodels", "keras-hub"}
  assert set(wanted) - set(locked) <= never_locked | {"pyautoattack", "torch"}
  outside = {n: v for n, v in locked.items() if n in wanted and v not in wanted[n].specifier}
  assert outside == {}


def test_the_oldest_versions_are_the_lower_bounds():
  oldest = constraints(environment("oldest_versions").stdout.splitlines())
  wanted = asked()
  assert set(oldest) == set(wanted)
  for name, series in oldest.items():
    (lowest,) = [s.version for s in wanted[name].specifier if s.operator == ">="]
    assert series == f"{lowest}.*"


@pytest.mark.parametrize(
  ("variables", "extras", "folder", "file"),
  [
    ({}, "test", ".venv", "launch/constraints.txt"),
    ({}, "", ".venv", "/dev/null"),
    ({"URKLE_VERSIONS": "oldest"}, "test", ".venv-oldest", ".venv-oldest.txt"),
    ({"URKLE_VERSIONS": "newest"}, "test", ".venv-newest", "/dev/null"),
  ],
)
def test_which_versions_are_installed_where(tmp_path, variables, extras, folder, file):
  (tmp_path / "launch").mkdir()
  for name in ("setup.py", "launch/environment.sh", "launch/constraints.txt"):
    shutil.copy(ROOT / name, tmp_path / name)
  python = tmp_path / folder / "bin" / "python"  # says how it is called, and installs nothing
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/bin/sh\ncase "$*" in *install*) echo "$*" ;; '
    "*hashlib*) cat > /dev/null; echo hash ;; esac\n"
  )
  python.chmod(0o755)
  result = subprocess.run(
    ["bash", "-c", f"set -euo pipefail; source launch/environment.sh; make_environment {extras}"],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**{k: v for k, v in os.environ.items() if k != "URKLE_VERSIONS"}, **variables},
  )
  assert result.returncode == 0, result.stderr
  place = file if file.startswith("/") else f"{tmp_path}/{file}"
  assert f"--constraint {place} --editable {tmp_path}" in result.stdout


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
    found += [f"{path.relative_to(ROOT)}: {part}" for part in forbidden if part in text]
  assert not found


def test_no_tracked_file_is_over_a_mebibyte_but_for_presets():
  weights = set(PACKAGE.glob("networks/presets/*/weights.npz"))
  assert not [p for p in tracked_files() if p.stat().st_size > 2**20 and p not in weights]
  assert sum(path.stat().st_size for path in weights) < 24 * 2**20


# --- Configs ---

# For each file: its command's name after the last underscore, else train. Prints what fails.
PARSE_CONFIGS = """
import importlib, pathlib, sys
from absl import flags
from urkle_tf import command_line
command_line.run = lambda function, names: None  # the flags are defined, nothing is run
importlib.import_module(f"urkle_tf.{sys.argv[1]}").main()
for config in sys.argv[2:]:
  flags.FLAGS.unparse_flags()
  try:
    rest = flags.FLAGS([sys.argv[1], f"--flagfile={config}", "--output_dir=unused"])[1:]
    assert not rest, f"these are no flags: {rest}"
    flags.FLAGS.validate_all_flags()
  except Exception as error:
    print(f"{pathlib.Path(config).name}: {error}")
"""


def command_of(config):
  ending = config.stem.rpartition("_")[2]
  return ending if ending in COMMANDS else "train"


@pytest.mark.parametrize("command", COMMANDS)
def test_configs_parse_as_flags_of_their_command(command, tmp_path):
  configs = [c for c in sorted((ROOT / "configs").glob("*.cfg")) if command_of(c) == command]
  # One more that must not parse, so that silence means something.
  wrong = tmp_path / "wrong.cfg"
  wrong.write_text("--no_such_flag=1\n")
  words = [sys.executable, "-c", PARSE_CONFIGS, command, *map(str, configs), str(wrong)]
  result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 0, result.stderr
  (line,) = result.stdout.splitlines()
  assert line.startswith("wrong.cfg: ")


def test_configs_hold_no_comment_after_a_value():
  """The flag parser reads such a comment as part of the value."""
  for config in sorted((ROOT / "configs").glob("*.cfg")):
    for line in config.read_text(encoding="utf-8").splitlines():
      assert line.startswith("#") or "#" not in line, config


# --- Flags ---


def test_only_the_command_lines_read_flags():
  allowed = {PACKAGE / f"{name}.py" for name in (*COMMANDS, "command_line")}
  files = set(PACKAGE.rglob("*.py")) - allowed
  assert not [path for path in files if re.search(r"\bFLAGS\b", path.read_text(encoding="utf-8"))]
