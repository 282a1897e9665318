"""Pages that show what finished runs measured: the parts that several launchers share."""

import json
import re
import statistics

from urkle_tf import errors


def flags(run):
  """{name: text} of the flags that a run was trained with."""
  lines = (run / "flags.cfg").read_text(encoding="utf-8").splitlines()
  return dict(line.removeprefix("--").split("=", 1) for line in lines)


def training_minutes(*folders):
  """The minutes that metrics.jsonl accounts for, over all folders that have one."""
  seconds = 0.0
  for folder in folders:
    file = folder / "metrics.jsonl"
    if file.exists():
      seconds += json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["seconds"]
  return round(seconds / 60, 2)


def mean(values, digits=2):
  """The mean of some seeds' figures as text, with the standard deviation if there are several."""
  text = f"{statistics.fmean(values):.{digits}f}"
  return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(header, rows):
  """A table in Markdown, of lists of texts."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(text, blocks):
  """Replaces what is between markers in a page, and leaves the rest as people wrote it.

  Args:
    text: the page.
    blocks: {name: Markdown} for the lines between `<!-- name -->` and `<!-- /name -->`.

  Raises:
    UserError: if a marker is missing.
  """
  for name, block in blocks.items():
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if len(re.findall(pattern, text, re.DOTALL)) != 1:
      raise errors.UserError(
        f"the page must hold the lines <!-- {name} --> and <!-- /{name} --> once: between them "
        "comes what was measured"
      )
    inside = f"{block}\n" if block else ""
    text = re.sub(pattern, lambda m, new=inside: m[1] + new + m[2], text, flags=re.DOTALL)
  return text
