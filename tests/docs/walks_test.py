"""The newcomer's walks lead where they say."""

import pathlib
import re

from commands import ROOT


def test_the_step():
  """Each file of the walk names the next; the last holds the equation, above its lines."""
  page = (ROOT / "docs" / "walks" / "step.md").read_text("utf-8")
  names = re.findall(r"^\d+\. `(urkle_tf/\S+\.py)`", page, re.MULTILINE)
  assert names[0] == "urkle_tf/train.py"
  assert 2 <= len(names) <= 6
  texts = [(ROOT / name).read_text("utf-8") for name in names]
  for text, name in zip(texts, names[1:], strict=False):
    module = pathlib.Path(name).stem
    assert re.search(rf"\b{module}\.\w+\(", text), f"{module} is not called"
  before, after = texts[-1].split("def _loss(")[1].split("# Equation 12")
  assert "self.pretext.loss(" not in before
  assert "self.pretext.loss(" in after
  assert "self.robustness.losses(" in after


def test_every_name_on_the_walks_is_there():
  for page in sorted((ROOT / "docs" / "walks").glob("*.md")):
    text = page.read_text("utf-8")
    places = re.findall(r"`((?:urkle_tf|tests)/[\w/]+\.py)`(?: \(`(?:\w+\.)?(\w+)`)?", text)
    assert places
    for file, name in places:
      assert name in (ROOT / file).read_text("utf-8"), f"{page.name}: {name} of {file}"
