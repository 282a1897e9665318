"""A report as one self-contained HTML file, for paper, a phone or a large screen."""

import base64
import html
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

# Two palettes, by the reader's own setting. Tables scroll within themselves, with
# their first column in place, so that the page never does.
_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --quiet: #57606a; --paper: #ffffff; --panel: #f4f6f8; --line: #d5dae0;
  --accent: #0b62a4; --bar: #cfe3f3; --alarm: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ec; --quiet: #9da7b1; --paper: #14181d; --panel: #1d232a; --line: #363e47;
    --accent: #7cc0f4; --bar: #1f4666; --alarm: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 {
  font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line);
}
p, ul { max-width: 46rem; margin: 0 0 1rem; }
ul { padding-left: 1.25rem; }
main > p { color: var(--quiet); }
.glance {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .6rem; margin: 1.25rem 0;
}
.glance div {
  padding: .75rem 1rem; border-radius: .6rem; background: var(--panel);
  border-left: .3rem solid var(--accent); display: flex; flex-direction: column;
}
.glance dt { font-size: .85rem; color: var(--quiet); }
.glance dd { margin: 0; font-size: .8rem; color: var(--quiet); }
.glance dd.figure { font-size: 1.5rem; line-height: 1.3; font-weight: 650; color: var(--ink); }
.glance .alarm { border-color: var(--alarm); }
.glance .alarm dd.figure { color: var(--alarm); }
.scroll, .picture { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; }
.scroll { margin: 0 0 1rem; }
[tabindex]:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table {
  border-collapse: separate; border-spacing: 0; width: 100%;
  font-size: .88rem; font-variant-numeric: tabular-nums;
}
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .45rem .7rem; text-align: left; vertical-align: top; }
thead th { background: var(--panel); color: var(--quiet); vertical-align: bottom; }
th { font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tr > :first-child {
  position: sticky; left: 0; background: var(--paper); max-width: 12rem;
}
thead tr > :first-child { background: var(--panel); }
.number { white-space: nowrap; }
.share {
  background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 100% / var(--share) .3rem;
  padding-bottom: .7rem;
}
.long { min-width: 16rem; }
strong.alarm { color: var(--alarm); }
figure { margin: 0 0 1.25rem; }
figcaption { font-size: .88rem; color: var(--quiet); margin-top: .35rem; }
.picture { background: #ffffff; }
img { display: block; width: 100%; height: auto; margin: 0 auto; padding: .5rem; }
footer { margin-top: 3rem; font-size: .8rem; color: var(--quiet); }
@media (max-width: 40rem) {
  main { padding: 1rem .75rem 2rem; }
  table { font-size: .8rem; }
  th, td { padding: .4rem .45rem; }
}
@media print {
  .scroll, .picture { overflow: visible; border: 0; }
  figure, tr { break-inside: avoid; }
}
"""

# The browser itself refuses whatever is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( \(.*\)|/255)?|-")
_LONG = 60  # letters from which a cell is a sentence


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
<style>{_STYLE}</style>
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
    return f'<td class="number share" style="--share: {100 * cell.fraction:.2f}%">{text}</td>'
  if _NUMBER.fullmatch(str(cell)):
    return f'<td class="number">{text}</td>'
  return f'<td class="long">{text}</td>' if len(text) > _LONG else f"<td>{text}</td>"


def _picture(picture, png):
  width, height = struct.unpack(">II", png[16:24])
  data = base64.b64encode(png).decode("ascii")
  # On a phone a wide picture scrolls, because shrunk it would be unreadable.
  style = f"min-width: {min(round(15 * width / height), 60)}rem; max-width: {width / 24:.4g}rem"
  title = _escape(picture.title)
  return (
    f'<figure><div class="picture" role="group" aria-label="{title}" tabindex="0">'
    f'<img src="data:image/png;base64,{data}" alt="{_escape(picture.described)}" '
    f'width="{width}" height="{height}" style="{style}"></div>'
    f"<figcaption>{title}</figcaption></figure>"
  )
