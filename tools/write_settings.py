#!/usr/bin/env python3
"""Writes what is made from urkle_tf/settings.py: urkle_tf/__init__.pyi and docs/settings.md.

  python tools/write_settings.py

The former shows the public names to editors and type checkers, because `urkle_tf` loads them on
first use.  tests/settings_test.py fails if one of the two is not current.
"""

import argparse
import ast
import dataclasses
import inspect
import pathlib
import re
import sys
import textwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

import urkle_tf
from urkle_tf import settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
FUNCTIONS = {  # those behind each command
  command.__name__.lower(): command
  for command in (settings.Pretrain, settings.Adapt, settings.Assess, settings.Represent)
}
TYPES = {"str": "text", "int": "integer", "bool": "switch"}
TYPES |= {"number": "number", "numbers": "list of numbers"}
PAGE = """# Settings

This page lists every setting of the four commands. `tools/write_settings.py` makes it from
`urkle_tf/settings.py`, which also holds the shorter texts of `--help`.

Each setting is a flag of the command and a keyword argument of the function. The flag is
`--name=value`. A switch is turned on by `--name` and off by `--noname`. A number may be a fraction,
such as 8/255, and lists of numbers are separated by commas. An empty default is `None`.

A *spec* is a name with options in parentheses, such as `simclr(temperature=0.2)`: see
[options](grid.md#options). [The glossary](concepts.md#glossary) explains mu, sigma, z and others.
To begin, see [start here](start.md), which needs few of these settings.
"""
SECTION = """
## {command}

These are the flags of `python -m urkle_tf.{command}` and the arguments of `urkle_tf.{function}`.
Only the command takes {only}.

| setting | type | default | meaning |
|---|---|---|---|
{rows}
"""


def docstring(function):
  """The docstring of a public function, without its arguments, from the source of its module."""
  path = ROOT / "urkle_tf" / urkle_tf._NAMES[function].replace(".", "/")
  file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
  for node in ast.parse(file.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef) and node.name == function:
      return ast.get_docstring(node)
  raise LookupError(f"{file} has no function {function}")


def stub():
  """The text of urkle_tf/__init__.pyi."""
  places = [(f"urkle_tf.{m}".rsplit(".", 1)[0], n) for n, m in urkle_tf._MODULES.items()]
  places += [(f"urkle_tf.{m}", n) for n, m in urkle_tf._NAMES.items() if n not in FUNCTIONS]
  lines = ['"""The public names: written by tools/write_settings.py."""', ""]
  lines += ["from typing import Any", "", "__version__: str", ""]
  lines += [f"from {module} import {name} as {name}" for module, name in sorted(places)]
  for name, command in FUNCTIONS.items():
    lines += ["", f"def {name}("]
    for parameter in settings.signature(command).parameters.values():
      kind = inspect.formatannotation(parameter.annotation)
      default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
      lines.append(f"  {parameter.name}: {kind}{default},".replace("'", '"'))
    doc = settings.documented(docstring(name), command)
    lines += [") -> dict[str, Any]:", textwrap.indent(f'"""{doc}\n"""', "  ")]
  return "\n".join(lines) + "\n"


def page():
  """The text of docs/settings.md."""
  parts = [PAGE]
  for (command, flags), (function, arguments) in zip(settings.COMMANDS.items(), FUNCTIONS.items()):
    fields, rows = dataclasses.fields(flags), []
    for field in fields:
      default = "required" if field.default is settings.REQUIRED else f"`{shown(field.default)}`"
      default = "" if field.default is None else default
      meaning = settings.text(field).replace("|", "\\|")
      meaning = re.sub(r"docs/(\w+)\.md", linked, meaning)
      rows.append(f"| `{field.name}` | {TYPES[settings.kind(field)]} | {default} | {meaning} |")
    taken = {field.name for field in dataclasses.fields(arguments)}
    only = " and ".join(f"`--{field.name}`" for field in fields if field.name not in taken)
    parts.append(
      SECTION.format(command=command, function=function, only=only, rows="\n".join(rows))
    )
  return "".join(parts)


def linked(page):
  """A link to another page, from the match of its file's name."""
  return f"[{page[1].replace('_', ' ')}]({page[1]}.md)"


def shown(default):
  """A default as a page shows it."""
  return f"{default:.4g}" if isinstance(default, float) else default


def written():
  """The files that this script writes: {path: text}."""
  return {ROOT / "urkle_tf" / "__init__.pyi": stub(), ROOT / "docs" / "settings.md": page()}


def main():
  """Writes them."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  for path, text in written().items():
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
  main()
