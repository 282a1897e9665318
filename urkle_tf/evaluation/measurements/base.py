"""The interface of a measurement: its options, its figures, its part of the report."""

import contextlib
import dataclasses
import importlib
from typing import Any, ClassVar

from urkle_tf import errors, settings, spec

_WANTED: dict[str, tuple[str, Any]] = {
  "str": ("text", (str, list)),
  "int": ("an integer of at least 0", int),
  "bool": ("true or false", bool),
  "number": ("a number", (int, float)),
  "numbers": ("numbers separated by commas", list),
}


def alias(flag) -> Any:
  """An option that a flag of `evaluate` also sets, if `--measure` does not.

  Args:
    flag: the name of a setting of `settings.Assess`, whose default is the option's.
  """
  return dataclasses.field(default=getattr(settings.Assess, flag), metadata={"flag": flag})


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A part of the report.

  A subclass is a frozen dataclass in a module of `measurements`.  Its fields are the options of
  `--measure="NAME(option=...)"`; NAME is that of the module, and of the part in report.json.
  Modules import what needs TensorFlow within `prepare` and `measure`, so that options are read and
  reports are rendered without it.

  Attributes:
    kinds: the kinds of models that it is for: "classifier", "foreign" (a classifier made elsewhere,
      or an encoder with something on top), "encoder", "foreign_encoder", "regressor".
    by_default: whether it is in the report without being named by `--measure`.
    place: the position in the report; equal places are sorted by name.
    glance_place: the position among the figures that are read first; None for `place`.
  """

  kinds: ClassVar[tuple[str, ...]] = ("classifier", "foreign")
  by_default: ClassVar[bool] = False
  place: ClassVar[int] = 100
  glance_place: ClassVar[int | None] = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      object.__setattr__(self, field.name, _typed(self.name, field, getattr(self, field.name)))

  @property
  def name(self):
    """The name of its module."""
    return type(self).__module__.rpartition(".")[2]

  @classmethod
  def aliases(cls):
    """{option: the flag that sets it too}."""
    fields = dataclasses.fields(cls)
    return {field.name: field.metadata["flag"] for field in fields if "flag" in field.metadata}

  def wanted(self, kind, named):
    """Whether the report has it.

    Args:
      kind: the model's kind; if it is not in `kinds`, the result has no effect.
      named: whether `--measure` names it.
    """
    return named or self.by_default

  def prepare(self, context):
    """Checks the options before any work; the result is kept as `context.prepared[name]`.

    Args:
      context: a `Context`, which has a `model` already only if that is foreign.

    Raises:
      UserError: for options that do not fit the model or the data.
    """

  def measure(self, context):
    """The entry of report.json under the measurement's name: a dict or a list.

    By default what `measure(context, options)` of `urkle_tf/evaluation/NAME.py` returns.

    Args:
      context: a `Context`, with the results of earlier measurements.
    """
    return importlib.import_module(f"urkle_tf.evaluation.{self.name}").measure(context, self)

  def intro(self, part):
    """A first line of the report that replaces the one about accuracies; "" keeps that one."""
    return ""

  def glance(self, part, report):
    """The figures that are read first: triples (name, figure, how it was measured).

    Args:
      part: the result of `measure`.
      report: the content of report.json.
    """
    return []

  def render(self, part, report):
    """The readable part: a list of objects of `report.document`; arguments as above.

    A `Picture` that can be drawn is drawn after all measurements; it is shown if its file exists.
    """
    return []

  def lines(self, part):
    """The lines that the command prints, a list; if it is empty, the figures of `glance`."""
    return []


def _typed(name, field, value):
  """An option's value, checked and converted to its type."""
  kind = settings.kind(field)
  if value is None and field.default is None:
    return None
  text, types = _WANTED[kind]
  if kind == "numbers" and not isinstance(value, list):
    with contextlib.suppress(ValueError):
      value = [spec.number(part) for part in str(value).split(",")]
  wrong = isinstance(value, bool) and kind != "bool"
  if wrong or not isinstance(value, types) or (kind == "int" and value < 0):
    raise errors.UserError(f"{name}: {field.name} must be {text}, got {value!r}")
  return value
