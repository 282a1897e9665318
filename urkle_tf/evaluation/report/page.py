"""A report as one self-contained HTML file, for paper, a phone or a large screen."""

import base64
import html
import pathlib
import re
import struct

from urkle_tf.evaluation.report.document import (
  Alarm,
  Glance,
  Heading,
  Items,
  Picture,
  Share,
  Strong,
  Table,
  Text,
)

# Two palettes, by the reader's own setting.  Tables scroll within themselves, with their first
# column in place, so the page never scrolls sideways.
_STYLE = pathlib.Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
# The browser refuses everything that is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( \(.*\)|/255)?|-")
_LONG = 60  # longer cells, in characters, are sentences


def page(parts, folder):
  """A report as a page.

  Args:
    parts: of the classes of `document`, in order; the last one, if it is a `Text`, is the foot.
    folder: where the pictures lie, a `pathlib.Path`.

  Returns:
    HTML: one file, with its style and pictures, and without scripts.
  """
  parts = list(parts)
  foot = parts.pop() if isinstance(parts[-1], Text) else None
  title = next(part.text for part in parts if isinstance(part, Heading))
  body = "\n".join(_element(part, folder) for part in parts)
  if foot:
    body += f"\n<footer>{_escape(foot.text)}</footer>"
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_escape(title)}</title>
<style>
{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _escape(text):
  return html.escape(str(text))


def _element(part, folder):
  match part:
    case Heading(text, level):
      return f"<h{level}>{_escape(text)}</h{level}>"
    case Text(text):
      return f"<p>{_escape(text)}</p>"
    case Items(texts):
      return "<ul>" + "".join(f"<li>{_escape(text)}</li>" for text in texts) + "</ul>"
    case Glance(figures):
      return '<dl class="glance">' + "".join(map(_tile, figures)) + "</dl>"
    case Table():
      return _table(part)
    case Picture():
      return _picture(part, (folder / part.file).read_bytes())
  raise TypeError(part)


def _tile(figure):
  name, value, how = map(_escape, figure)
  kind = ' class="alarm"' if isinstance(figure[1], Alarm) else ""
  how = f"<dd>{how}</dd>" if how else ""
  return f'<div{kind}><dt>{name}</dt><dd class="figure">{value}</dd>{how}</div>'


def _table(table):
  head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in table.head)
  rows = "\n".join(f"<tr>{''.join(map(_cell, range(len(row)), row))}</tr>" for row in table.rows)
  caption = _escape(table.caption)
  return (
    f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>\n'
    f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
    "</table></div>"
  )


def _cell(column, cell):
  text = _escape(cell)
  if isinstance(cell, Strong):
    kind = ' class="alarm"' if isinstance(cell, Alarm) else ""
    text = f"<strong{kind}>{text}</strong>"
  if column == 0:
    return f'<th scope="row">{text}</th>'
  if isinstance(cell, Share):
    return f'<td class="number share" style="--share: {cell.fraction:.2%}">{text}</td>'
  if _NUMBER.fullmatch(str(cell)):
    return f'<td class="number">{text}</td>'
  return f'<td class="long">{text}</td>' if len(text) > _LONG else f"<td>{text}</td>"


def _picture(picture, png):
  width, height = struct.unpack(">II", png[16:24])
  data = base64.b64encode(png).decode("ascii")
  # A wide picture scrolls on a phone, where it would be unreadable if it shrank.
  style = f"min-width: {min(round(15 * width / height), 60)}rem; max-width: {width / 24:.4g}rem"
  title = _escape(picture.title)
  return (
    f'<figure><div class="picture" role="group" aria-label="{title}" tabindex="0">'
    f'<img src="data:image/png;base64,{data}" alt="{_escape(picture.described)}" '
    f'width="{width}" height="{height}" style="{style}"></div>'
    f"<figcaption>{title}</figcaption></figure>"
  )
