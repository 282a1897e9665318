"""The package's layers: imports point one way, without circles; functions stay short and narrow."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Each may import from those before it, and from itself; those in one line know nothing of each
# other.  Modules at the top of the package stand among them.
LAYERS = (
  ("errors", ""),  # "": the package itself, for its version
  ("spec", "distribution", "settings", "loops"),
  ("attacks", "networks", "data", "output"),
  ("export", "pretexts", "robustness", "regulariser"),
  ("training",),
  ("downstream", "evaluation"),
  ("command_line",),
  ("train", "finetune", "evaluate", "embed", "doctor"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MOST_LINES, MOST_PARAMETERS = 80, 10


def modules(root):
  """{dotted name below the package, "" for itself: file}."""
  found = {}
  for file in sorted(root.rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
  return found


def imported(tree, known, package="urkle_tf"):
  """The modules of the package that a tree imports, in its functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
      base = node.module.removeprefix(package).removeprefix(".")
      for alias in node.names:
        full = f"{base}.{alias.name}".removeprefix(".")
        yield full if full in known else base
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names if f"{alias.name}.".startswith(f"{package}.")]
      yield from (name.removeprefix(package).removeprefix(".") for name in names)


def circles(edges):
  """The modules that import themselves in the end."""
  reached = {name: set(targets) for name, targets in edges.items()}
  for middle in edges:
    for targets in reached.values():
      if middle in targets:
        targets |= reached[middle]
  return sorted(name for name, targets in reached.items() if name in targets)


def sizes(tree):
  """(name, lines, parameters without self and cls) of each function, methods by their class."""

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
      name = f"{prefix}{child.name}" if named else prefix
      if named and not isinstance(child, ast.ClassDef):
        arguments = child.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in given)
        yield name, child.end_lineno - child.lineno + 1, count
      yield from visit(child, f"{name}." if named else prefix)

  return visit(tree, "")


MODULES = modules(ROOT / "urkle_tf")
TREES = {name: ast.parse(file.read_text("utf-8")) for name, file in MODULES.items()}
EDGES = {name: set(imported(tree, MODULES)) for name, tree in TREES.items()}


def test_every_module_has_its_layer():
  assert {name.split(".")[0] for name in MODULES} == set(LEVEL)
  assert len({name for name in LEVEL if name}) <= 22


def test_imports_point_one_way():
  wrong = []
  for name, targets in EDGES.items():
    own = name.split(".")[0]
    for target in targets:
      top = target.split(".")[0]
      if top != own and LEVEL[top] >= LEVEL[own]:
        wrong.append(f"{name} imports {target}")
  assert wrong == []


@pytest.mark.parametrize("package", ["pretexts", "robustness", "attacks"])
def test_schemes_pretexts_and_attacks_know_nothing_of_exports_reports_and_trainings(package):
  """Through others neither."""
  reached, waiting = set(), [name for name in MODULES if name.split(".")[0] == package]
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      waiting += EDGES[name]
  above = {"export", "training", "downstream", "evaluation", "command_line"}
  assert sorted(name for name in reached if name.split(".")[0] in above) == []


def test_there_is_no_circle():
  assert circles(EDGES) == []


def test_functions_are_short_and_narrow():
  found = {
    f"{module}.{name}".removeprefix("."): (lines, parameters)
    for module, tree in TREES.items()
    for name, lines, parameters in sizes(tree)
    if lines > MOST_LINES or parameters > MOST_PARAMETERS
  }
  assert found.pop("training.trainer.Trainer.__init__")[0] <= MOST_LINES
  assert found == {}
