"""The elements of a report, for every format; and the report as Markdown."""

import dataclasses
from collections.abc import Callable

from urkle_tf.output import tables


class Strong(str):
  """Text that stands out."""


class Alarm(Strong):
  """Text about something that is wrong."""


class Share(str):
  """A share of the images as text: 97.22 (95.00 to 98.50), in percent.

  Attributes:
    fraction: what the text says, in [0, 1].
  """

  fraction: float

  def __new__(cls, fraction, interval=None):
    """The text for a fraction and, if there is one, its interval [low, high]."""
    text = f"{100 * fraction:.2f}"
    if interval is not None:
      text += f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    share = super().__new__(cls, text)
    share.fraction = fraction
    return share

  @classmethod
  def of(cls, row, prefix=""):
    """A row's accuracy with its interval."""
    return cls(row[f"{prefix}accuracy"], row[f"{prefix}interval"])


def calibration(row):
  """The cells of a row's NLL, ECE and Brier score."""
  return [f"{row[name]:.4f}" for name in ("nll", "ece", "brier")]


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading: of the whole, level 1, or of a section, level 2."""

  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph."""

  text: str


@dataclasses.dataclass(frozen=True)
class Items:
  """A list."""

  texts: list[str]


@dataclasses.dataclass(frozen=True)
class Glance:
  """The few figures that are read first: (name, figure, how it was measured)."""

  figures: list[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Attributes:
    caption: what it holds, in a few words.
    head: the columns' names.
    rows: texts, `Strong` or `Share`, one per column.
  """

  caption: str
  head: list[str]
  rows: list[list]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture.

  Attributes:
    file: its path within the report's folder.
    title: what it shows.
    described: a description with its figures, for readers who cannot see it.
    draw: a function that draws it into a file; None if it is already drawn.
  """

  file: str
  title: str
  described: str
  draw: Callable | None = dataclasses.field(default=None, compare=False)


def markdown(parts):
  """A report as Markdown.

  Args:
    parts: of the classes above, in order.
  """
  blocks = [block for part in parts if (block := _block(part))]
  return "\n\n".join(blocks) + "\n"


def _block(part):
  match part:
    case Heading(text, level):
      return f"{'#' * level} {text}"
    case Text(text):
      return text
    case Items(texts):
      return "\n".join(f"- {text}" for text in texts)
    case Glance(figures):
      return "\n".join(
        f"- {name}: **{figure}**{f', {how}' if how else ''}" for name, figure, how in figures
      )
    case Table(_, head, rows):
      return tables.markdown(head, [[_cell(cell) for cell in row] for row in rows])
    case Picture(file, title):
      return f"![{title}]({file})"
  raise TypeError(part)


def _cell(cell):
  return f"**{cell}**" if isinstance(cell, Strong) else str(cell)
