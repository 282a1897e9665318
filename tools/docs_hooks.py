"""What the site has beside docs/: pages of the clone's root, and the files that pages link to.

MkDocs calls these functions: see `hooks` in mkdocs.yml.
"""

import os
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FLAG = re.compile(r"(?<![\w-])--\w+")


def on_pre_build(config):
  """Has the search run from the disk by our script: that of the plugin is fetched by each page."""
  config.extra["polyfills"] = ["worker.js"]


def on_files(files, config):
  """Adds the pages of the root."""
  for source, name in PAGES.items():
    files.append(File.generated(config, name, content=(ROOT / source).read_text("utf-8")))
  return files


def on_page_markdown(markdown, page, config, files):
  """Leads links to files outside docs/ to copies of them in the site; those to folders end."""
  names = {name: source for source, name in PAGES.items()}
  uri = page.file.src_uri
  here = (ROOT / names[uri] if uri in names else DOCS / uri).parent

  def led(match):
    text, target, anchor = match[1], match[2], match[3] or ""
    path = pathlib.Path(os.path.normpath(here / target))
    if "://" in target or not path.exists() or (path.is_relative_to(DOCS) and uri not in names):
      return match[0]
    if path.is_dir():
      return text
    inside = path.is_relative_to(DOCS)
    name = path.relative_to(DOCS).as_posix() if inside else added(path, config, files)
    return f"[{text}]({os.path.relpath(name, os.path.dirname(uri) or '.')}{anchor})"

  return LINK.sub(led, markdown)


def on_page_content(html, page, config, files):
  """Keeps the dashes of a flag and its name on one line."""
  whole = r'<span class="flag">\g<0></span>'
  return re.sub(r"(?s)<code>.*?</code>", lambda code: FLAG.sub(whole, code[0]), html)


def added(path, config, files):
  """A file of the clone as a file of the site; returns its name there."""
  name = path.relative_to(ROOT).as_posix()
  if name in PAGES:
    return PAGES[name]
  # Markdown would become a page without a place in the navigation.
  name = f"files/{name}".replace(".md", ".md.txt")
  if files.get_file_from_path(name) is None:
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return name
