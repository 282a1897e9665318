"""Scripts of tools/ and examples/ as modules."""

import importlib.util
import pathlib
import sys

from commands import ROOT


def load(path):
  """A script, by its path from the root, such as "tools/style.py"."""
  name = pathlib.Path(path).stem
  spec = importlib.util.spec_from_file_location(name, ROOT / path)
  module = importlib.util.module_from_spec(spec)
  before = sys.modules.get(name)
  sys.modules[name] = module  # its dataclasses look for it there, while it is read
  try:
    spec.loader.exec_module(module)
  finally:
    sys.modules.pop(name)
    if before is not None:
      sys.modules[name] = before
  return module
