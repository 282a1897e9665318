"""The site: it builds without a warning, lists every public name, and fetches nothing."""

import pathlib
import re
import subprocess
import sys

import pytest

import urkle_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_site_builds_and_is_whole(tmp_path):
  inventory = pytest.importorskip("mkdocstrings").Inventory
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  with (tmp_path / "objects.inv").open("rb") as file:
    known = inventory.parse_sphinx(file)
  for name in set(urkle_tf.__all__) - {"__version__"}:
    assert f"urkle_tf.{name}" in known
  pages = {file: file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.html")}
  assert len(pages) > 40
  for file, text in pages.items():
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', text), file
  search = (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8")
  assert "kl_robustness" in search
