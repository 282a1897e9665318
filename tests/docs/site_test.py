"""The site: it builds without a warning, and fetches nothing."""

import re
import sys

import commands
import pytest


@pytest.mark.timeout(600)
def test_the_site_builds_and_is_whole(tmp_path):
  pytest.importorskip("mkdocstrings")
  words = ("-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}")
  commands.process(sys.executable, *words)
  pages = {file: file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.html")}
  assert len(pages) > 40
  for file, text in pages.items():
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', text), file
  search = (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8")
  assert "kl_robustness" in search
