"""The newcomer's walks lead where they say."""

import re

from commands import ROOT


def test_every_name_on_the_walks_is_there():
  for page in sorted((ROOT / "docs" / "walks").glob("*.md")):
    text = page.read_text("utf-8")
    places = re.findall(r"`((?:urkle_tf|tests)/[\w/]+\.py)`(?: \(`(?:\w+\.)?(\w+)`)?", text)
    assert places
    for file, name in places:
      assert name in (ROOT / file).read_text("utf-8"), f"{page.name}: {name} of {file}"
