"""Specs: `"urkle(beta=0.1)"` names a module and options for its class.

A spec is a name, followed by keyword options in parentheses.  A value is a number (or a fraction),
True, False, None, a quoted string or a bare word.  Nothing is evaluated:
`"urkle(beta=__import__('os'))"` is an error, not a program.
"""

import importlib
import inspect
import math
import pkgutil
import re

from urkle_tf import errors

_SPEC = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_OPTION = re.compile(r"""\s*([A-Za-z_]\w*)\s*=\s*("[^"]*"|'[^']*'|[^,()'"=]+?)\s*(,|$)""")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def number(text):
  """Reads an int, a float or a fraction such as `8/255`.

  Raises:
    ValueError: if `text` is none of them, or too large for a float.
  """
  text = text.strip()
  if re.fullmatch(r"[+-]?\d+", text):
    return int(text)
  match = re.fullmatch(f"({_NUMBER})(?:/({_NUMBER}))?", text)
  if not match or (match[2] and float(match[2]) == 0):
    raise ValueError(f"{text!r} is not a number")
  found = float(match[1]) / float(match[2] or 1)
  if not math.isfinite(found):
    raise ValueError(f"{text!r} is not a finite number")
  return found


def split(text):
  """Splits a list of specs at the commas that are not in parentheses or quotes.

  Args:
    text: for example `"fgsm,pgd(steps=20, restarts=5)"`.

  Returns:
    The parts as text, without surrounding spaces and without empty parts.
  """
  parts, depth, quote = [""], 0, ""
  for character in text:
    if character in "\"'":
      quote = "" if quote == character else quote or character
    elif not quote:
      depth += (character == "(") - (character == ")")
    if character == "," and not quote and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return [part.strip() for part in parts if part.strip()]


def _value(text):
  if text[0] in "\"'":
    return text[1:-1]
  words = {"true": True, "false": False, "none": None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return number(text)
  except ValueError:
    return text


def parse(text):
  """Splits a spec into its name and its options.

  Args:
    text: for example `"urkle(beta=0.1, positives=false)"`.

  Returns:
    `(name, options)`: a string and a dict.

  Raises:
    UserError: if `text` is not a spec.
  """
  match = _SPEC.fullmatch(text or "")
  if not match:
    raise errors.UserError(f"cannot read {text!r}: write name or name(option=value, ...)")
  name, rest = match[1], (match[2] or "").strip()
  options, position = {}, 0
  while position < len(rest):
    option = _OPTION.match(rest, position)
    if not option or (option[3] == "," and not rest[option.end() :].strip()):
      raise errors.UserError(
        f"cannot read {rest[position:]!r} in {text!r}: write options as option=value, ..., and put "
        "a value that holds brackets, commas, quotes or = between quotes"
      )
    if option[1] in options:
      raise errors.UserError(f"option {option[1]!r} is given twice in {text!r}")
    options[option[1]] = _value(option[2])
    position = option.end()
  return name, options


def _call(function, name, options, given):
  """Calls `function(**given, **options)`; raises `UserError` for options it does not take."""
  parameters = inspect.signature(function).parameters
  known = [p for p in parameters if p not in ("self", *given)]
  for option in options:
    errors.one_of(f"option of {name}", option, known)
  missing = [p for p in known if parameters[p].default is inspect.Parameter.empty]
  if missing := [p for p in missing if p not in options]:
    raise errors.UserError(f"{name} needs the option {missing[0]!r}: {name}({missing[0]}=...)")
  try:
    return function(**given, **options)
  except TypeError as error:
    raise errors.UserError(f"{name}: an option has a value of the wrong type ({error})") from error


def names(package):
  """The names of the plug-ins of `urkle_tf.<package>`: its public modules.

  These do not include `base` and the modules that the package lists in `SHARED`.
  """
  found = importlib.import_module(f"urkle_tf.{package}")
  others = ("base", *getattr(found, "SHARED", ()))
  modules = [module.name for module in pkgutil.iter_modules(found.__path__)]
  return [name for name in modules if name not in others and not name.startswith("_")]


def plugin(package, text, base):
  """The class of the plug-in that a spec names.

  Args:
    package: for example `"pretexts"`: `urkle_tf.pretexts.<name>` is imported.
    text: the spec.
    base: the base class; the one subclass of it in that module is returned.

  Raises:
    UserError: if there is no such module, or it does not hold exactly one subclass.
  """
  name, _ = parse(text)
  if name not in names(package):
    kind = package.rpartition(".")[2].removesuffix("s").replace("robustnes", "robustness")
    raise errors.unknown(kind, name, names(package))
  module = importlib.import_module(f"urkle_tf.{package}.{name}")
  found = [
    value
    for _, value in inspect.getmembers(module, inspect.isclass)
    if issubclass(value, base) and value.__module__ == module.__name__
  ]
  if len(found) != 1:
    classes = ", ".join(value.__name__ for value in found) or "none"
    raise errors.UserError(
      f"{module.__file__} must hold one subclass of {base.__name__}, but holds {classes}: move "
      "shared code into a module whose name begins with an underscore"
    )
  return found[0]


def build(package, text, base, defaults=None, **given):
  """Instantiates the plug-in that a spec names.

  Args:
    package: see `plugin`.
    text: the spec; its options become keyword arguments.
    base: see `plugin`.
    defaults: a dict of options, which those of the spec override.
    **given: further keyword arguments, which the spec may not set.

  Raises:
    UserError: as in `plugin`, or if the plug-in has no such option.
  """
  name, options = parse(text)
  return _call(plugin(package, text, base), name, {**(defaults or {}), **options}, given)


def call(functions, text, kind, **given):
  """Calls the function that a spec names.

  Args:
    functions: `{name: function}`.
    text: the spec; its options become keyword arguments.
    kind: what the functions make, for messages.
    **given: further keyword arguments, which the spec may not set.

  Raises:
    UserError: if there is no such function or option.
  """
  name, options = parse(text)
  errors.one_of(kind, name, functions)
  return _call(functions[name], name, options, given)
