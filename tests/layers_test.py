"""The package's layers: imports point one way, without circles; functions stay short and narrow."""

import ast
import graphlib

from commands import ROOT

# Each may import from those before it, and from itself; those in one line know nothing of each
# other.  Modules at the top of the package stand among them.
LAYERS = (
  ("errors", ""),  # "": the package itself, for its version
  ("spec", "distribution", "settings", "loops"),
  ("attacks", "networks", "data", "output"),
  ("regulariser",),
  ("export", "pretexts", "robustness"),
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
  graphlib.TopologicalSorter(EDGES).prepare()  # else there is a circle within a package


def test_functions_are_short_and_narrow():
  large = []
  for module, tree in TREES.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        given = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        lines, parameters = node.end_lineno - node.lineno + 1, len({*given} - {"self", "cls"})
        if lines > MOST_LINES or parameters > MOST_PARAMETERS:
          large.append(f"{module}.{node.name}")
  assert large == ["training.trainer.__init__"]  # of `Trainer`, which has many options
